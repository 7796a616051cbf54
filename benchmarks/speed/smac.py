"""Speed of the embedded SMAC, in environment steps (one joint step of one unfinished battle), and its memory.

Random legal play in whole episodes: battles that are over cost time but do not count. Resets, observations, states,
legal actions and rewards are included; choosing actions is not, its cost has a row of its own. SMAClite, where it can
be imported, takes turns in the same process and plays the same maps in the same way, one battle at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from marl_flow import seeding
from marl_flow.benchmarks.speed.timing import Row
from marl_flow.benchmarks.studies.smac_simulator import ACTION_STREAM, random_legal
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import find_map

log = logging.getLogger(__name__)

TARGETS = {"3m": 50_000, "8m": 20_000, "2s3z": 20_000, "5m_vs_6m": None}
BATCHES = (1024, 4096)
"""The targets are for the larger one: at the end of whole episodes few battles remain and share the fixed costs."""
REPEATS = 3
LITE_EPISODES = 5
MEMORY_MAP, MEMORY_BATCHES, MEMORY_STEPS = "8m", (8192, 16384, 32768), 3
MALLOC_THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables. glibc keeps freed memory up to thresholds that it raises while it runs; with low, fixed
ones, the peak is the memory that battles take."""
LITE_HINT = (
    "SMAClite is not installed, so no ratio was measured: get its repository uoe-agents/smaclite and the packages in "
    "its setup.py, and add both folders to PYTHONPATH"
)

CountedRun = Callable[[], tuple[int, float, float]]
"""Plays something: environment steps, CPU-seconds that stepping took, CPU-seconds that choosing actions took."""


def rows() -> Iterator[Row]:
    """Speed per map and batch size, ratios to SMAClite where it is installed, memory where /proc tells it (Linux)."""
    with seeding.one_thread():
        for name, target in TARGETS.items():
            runs: dict[str, CountedRun] = {f"{size:,} at once": our_run(name, size) for size in BATCHES}
            if has_lite():
                runs["lite"] = lite_run(name)
            speeds, choosing = in_turn(runs)
            largest = f"{BATCHES[-1]:,} at once"
            for batch in (batch for batch in runs if batch != "lite"):
                goal = target if batch == largest else None
                yield Row(f"smac/{name}, {batch}", speeds[batch], "steps/CPU-s", goal)
            percent = 100.0 * choosing[largest]
            yield Row(f"smac/{name}, choosing random actions, added to a step", percent, "%")
            if has_lite():
                yield Row(f"smac/{name}, SMAClite, one battle", speeds["lite"], "steps/CPU-s")
                yield Row(f"smac/{name} against SMAClite", speeds[largest] / speeds["lite"], "x")
    if Path("/proc/self/status").exists():
        yield from memory_rows()
    if not has_lite():
        log.warning(LITE_HINT)


def has_lite() -> bool:
    return importlib.util.find_spec("smaclite") is not None


def in_turn(runs: dict[str, CountedRun]) -> tuple[dict[str, float], dict[str, float]]:
    """Steps per CPU-second of each run, and the cost of choosing over that of stepping: medians of REPEATS rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    fractions: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            steps, seconds, choosing = run()
            speeds[name].append(steps / seconds)
            fractions[name].append(choosing / seconds)
    speed, fraction = ({name: median(v) for name, v in values.items()} for values in (speeds, fractions))
    return speed, fraction


def our_run(name: str, num_envs: int) -> CountedRun:
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
    armies = (("ALLY", 9, ours), ("ENEMY", 23, theirs))
    return {
        "name": name,
        "num_allied_units": ours,
        "num_enemy_units": theirs,
        "groups": [{"x": x, "y": 16, "faction": side, "units": {"MARINE": count}} for side, x, count in armies],
        "attack_point": [9, 16],
        "terrain_preset": "SIMPLE",
        "num_unit_types": 0,
        "ally_has_shields": False,
        "enemy_has_shields": False,
    }


def lite_run(name: str) -> CountedRun:
    """LITE_EPISODES battles of SMAClite one after the other, with SMAC's step limit."""
    from smaclite.env.maps.map import MapInfo, get_standard_map  # pyright: ignore[reportMissingImports]
    from smaclite.env.smaclite import SMACliteEnv  # pyright: ignore[reportMissingImports]

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


def memory_rows() -> Iterator[Row]:
    """Peak memory per battle, observations and states included, and how far it is from linear in their number."""
    small, middle, large = MEMORY_BATCHES
    os.environ |= dict.fromkeys(MALLOC_THRESHOLDS, "65536")  # the processes read them
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {size: pool.apply(peak_bytes, (size,)) for size in MEMORY_BATCHES}
    first = (peaks[middle] - peaks[small]) / (middle - small)
    second = (peaks[large] - peaks[middle]) / (large - middle)
    yield Row(f"smac/{MEMORY_MAP}, memory per battle", second / 1024, "KiB")
    yield Row(
        f"smac/{MEMORY_MAP}, memory, off linear from {small:,} to {middle:,} to {large:,}",
        100.0 * abs(second / first - 1.0),
        "%",
        10,
    )


def peak_bytes(num_envs: int) -> int:
    """Peak memory of a fresh process in which so many battles were fought."""
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
