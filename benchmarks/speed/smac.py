"""Speed of the embedded SMAC, in environment steps (one joint step of one unfinished battle), and its memory.

Random legal play in whole episodes, so that battles that are over cost but do not count. Resets, observations, states,
legal actions and rewards are included; choosing actions is not, its cost is a row of its own. SMAClite, where it can be
imported, takes its turns in the same process and plays the same maps in the same way, one battle at a time.
`benchmarks/bench.py` prints the rows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marl_flow import seeding
from marl_flow.benchmarks.studies.smac_simulator import ACTION_STREAM, random_legal
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import find_map

TARGETS = {"3m": 50_000, "8m": 20_000, "2s3z": 20_000, "5m_vs_6m": None}
BATCHES = (1024, 4096)
"""The targets are for the larger one: at the end of whole episodes few battles remain and share the fixed costs."""
REPEATS = 3
LITE_EPISODES = 5
MEMORY_MAP, MEMORY_BATCHES, MEMORY_STEPS = "8m", (8192, 16384, 32768), 3
KEPT_BY_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""glibc keeps freed memory up to thresholds that it raises as it goes; held low, a peak is what battles held."""
LITE_HINT = (
    "SMAClite is not here, so no ratio: get its repository uoe-agents/smaclite and the packages in its setup.py, and "
    "name both folders in PYTHONPATH"
)

Run = Callable[[], tuple[int, float, float]]
"""Plays something: environment steps, CPU-seconds they took, CPU-seconds of choosing actions."""


def rows() -> Iterator[dict[str, Any]]:
    """Records of name, value, unit, target; memory where /proc tells it (Linux)."""
    with seeding.one_thread():
        for name, target in TARGETS.items():
            runs: dict[str, Run] = {f"{size:,} at once": our_run(name, size) for size in BATCHES}
            if has_lite():
                runs["lite"] = lite_run(name)
            speeds, shares = in_turn(runs)
            for size in BATCHES:
                way = f"{size:,} at once"
                goal = target if size == BATCHES[-1] else None
                yield row(f"smac/{name}, {way}", speeds[way], "steps/CPU-s", goal)
            yield row("  choosing random actions, added to a step", 100.0 * shares[way], "%")
            if has_lite():
                yield row("  SMAClite, one battle", speeds["lite"], "steps/CPU-s")
                yield row("  against SMAClite", speeds[way] / speeds["lite"], "x")
    if Path("/proc/self/status").exists():
        yield from memory_rows()


def has_lite() -> bool:
    return importlib.util.find_spec("smaclite") is not None


def row(name: str, value: float, unit: str, target: float | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "target": target}


def in_turn(runs: dict[str, Run]) -> tuple[dict[str, float], dict[str, float]]:
    """Steps per CPU-second of each run, and the cost of choosing over that of stepping: medians of REPEATS rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    shares: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            steps, seconds, choosing = run()
            speeds[name].append(steps / seconds)
            shares[name].append(choosing / seconds)
    speed, share = ({name: sorted(v)[REPEATS // 2] for name, v in part.items()} for part in (speeds, shares))
    return speed, share


def our_run(name: str, num_envs: int) -> Run:
    """One episode of every row."""
    env = SmacEnv(f"smac/{name}", num_envs)
    seeds = torch.tensor(seeding.environment_seeds("behaviour", 2, num_envs))

    def run() -> tuple[int, float, float]:
        steps, seconds, choosing = 0, 0.0, 0.0
        start = time.process_time()
        step = env.reset(seeds.tolist())
        for tick in range(env.spec.max_steps):
            seconds += time.process_time() - start
            steps += int((~step.finished).sum())
            over = bool(step.finished.all())
            start = time.process_time()
            if over:
                break
            assert step.action_mask is not None
            uniform = seeding.row_uniform(seeds, ACTION_STREAM + tick, env.spec.num_agents)
            actions = random_legal(step.action_mask, uniform)
            choosing += time.process_time() - start
            start = time.process_time()
            step = env.step(actions)
        else:
            seconds += time.process_time() - start
        return steps, seconds, choosing

    return run


# SMAClite


def lite_map(name: str) -> dict[str, Any]:
    """A marines' map, which SMAClite does not ship, in its own format: as its 10m_vs_11m."""
    left, _, right = name.partition("_vs_")
    ours, theirs = int(left.removesuffix("m")), int((right or left).removesuffix("m"))
    sides = (("ALLY", 9, ours), ("ENEMY", 23, theirs))
    return {
        "name": name,
        "num_allied_units": ours,
        "num_enemy_units": theirs,
        "groups": [{"x": x, "y": 16, "faction": side, "units": {"MARINE": count}} for side, x, count in sides],
        "attack_point": [9, 16],
        "terrain_preset": "SIMPLE",
        "num_unit_types": 0,
        "ally_has_shields": False,
        "enemy_has_shields": False,
    }


def lite_run(name: str) -> Run:
    """LITE_EPISODES battles of SMAClite one after the other, with SMAC's step limit."""
    from smaclite.env.maps.map import MapInfo, get_standard_map
    from smaclite.env.smaclite import SMACliteEnv

    if name == "2s3z":
        battle = get_standard_map(name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(lite_map(name)), encoding="utf-8")
            battle = MapInfo.from_file(str(path))
    with contextlib.redirect_stdout(io.StringIO()):  # it says which collision code it found
        env = SMACliteEnv(map_info=battle, seed=0)
    limit = find_map(name).battle.max_steps
    source = np.random.default_rng(seeding.derive_seed(0, "bench_smac", "lite actions"))

    def run() -> tuple[int, float, float]:
        steps, seconds, choosing = 0, 0.0, 0.0
        for episode in range(LITE_EPISODES):
            start = time.process_time()
            env.reset(seed=episode)
            seconds += time.process_time() - start
            for _ in range(limit):
                start = time.process_time()
                actions = [int(source.choice(np.flatnonzero(legal))) for legal in env.get_avail_actions()]
                middle = time.process_time()
                _, _, done, _, _ = env.step(actions)
                seconds += time.process_time() - middle
                choosing += middle - start
                steps += 1
                if done:
                    break
        return steps, seconds, choosing

    return run


# Memory


def memory_rows() -> Iterator[dict[str, Any]]:
    """Peak memory of a battle, observations and states included, and how far from linear it is in their number."""
    small, middle, large = MEMORY_BATCHES
    os.environ |= dict.fromkeys(KEPT_BY_MALLOC, "65536")  # the processes read them
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {size: pool.apply(peak_bytes, (size,)) for size in MEMORY_BATCHES}
    first = (peaks[middle] - peaks[small]) / (middle - small)
    second = (peaks[large] - peaks[middle]) / (large - middle)
    yield row(f"smac/{MEMORY_MAP}, memory per battle", second / 1024, "KiB")
    yield row(
        f"  from linear, {small:,} to {middle:,} to {large:,} battles", 100.0 * abs(second / first - 1.0), "%", 10
    )


def peak_bytes(num_envs: int) -> int:
    """Most memory that a fresh process ever held in which so many battles were fought."""
    torch.set_num_threads(1)
    env = SmacEnv(f"smac/{MEMORY_MAP}", num_envs)
    seeds = torch.tensor(seeding.environment_seeds("behaviour", 2, num_envs))
    step = env.reset(seeds.tolist())
    for tick in range(MEMORY_STEPS):
        assert step.action_mask is not None
        uniform = seeding.row_uniform(seeds, ACTION_STREAM + tick, env.spec.num_agents)
        step = env.step(random_legal(step.action_mask, uniform))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
