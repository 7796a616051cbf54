"""MADiff's and CoFlow's `.npy` files: reading the published ones, good and damaged, and our own export of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marl_flow.datasets.formats import episodes, export_dataset
from marl_flow.datasets.specs import known_spec
from marl_flow.interfaces import TaskSpec, UserError

SUITES = ("mamujoco", "smac")


def oracle(source: Path, spec: TaskSpec) -> dict[str, Any]:
    """What a plain reader finds."""
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in source.glob("*.npy")}
    lengths = arrays["path_lengths"].astype(int)
    drop = 0 if spec.task_id.startswith("mamujoco/") else spec.num_agents
    found: dict[str, Any] = {
        "observations": arrays["obs"][..., drop:],
        "actions": arrays["actions"],
        "rewards": arrays["rewards"],
        "lengths": lengths,
    }
    if spec.state_size and "states" in arrays:
        found["state"] = arrays["states"]
    if spec.action.is_discrete and "legals" in arrays:
        found["action_mask"] = arrays["legals"]
    if (source / "task.json").exists():
        found["terminated"] = arrays["terminated"]
        if json.loads((source / "task.json").read_text())["has_final_observation"]:
            found["final_observations"] = arrays["final_observations"][..., drop:]
            found |= {
                f"final_{a}": arrays[f"final_{b}"]
                for a, b in (("state", "states"), ("action_mask", "legals"))
                if a in found
            }
    else:
        ends = np.cumsum(lengths) - 1
        zero = arrays["discounts"][ends, 0] == 0 if "discounts" in arrays else np.ones(len(ends), bool)
        found["terminated"] = zero & (lengths < spec.max_steps)
    return found


def small(layouts, suite: str) -> TaskSpec:
    if suite == "smac":
        return layouts.small_task("smac", discrete=True, state_size=6, action_size=5)
    return layouts.small_task("mamujoco", observation_size=6)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SUITES),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
    st.booleans(),
    st.integers(1, 20),
)
def test_any_shape_is_read(layouts, damage, scratch, suite, agents, width, lengths, discounts, piece) -> None:
    """Catches ids taken for observations, episodes cut in the wrong place, and time limits taken for terminations."""
    root, is_battle = scratch(), suite == "smac"
    spec = layouts.small_task(
        suite,
        agents=agents,
        observation_size=width if is_battle else width + agents,
        action_size=width,
        discrete=is_battle,
        state_size=width if is_battle else None,
        max_steps=7,
    )
    store = layouts.random_store(spec, lengths, final=False)
    layouts.write_madiff(root / "Good", store, discounts=discounts)
    judge = damage.Judge(root)
    with patch.object(episodes, "PIECE_ROWS", piece):
        judge("madiff", root / "Good", spec, oracle, "good")
    assert judge.read == 1


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["mpe", *SUITES]),
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
    st.booleans(),
    st.integers(1, 20),
)
def test_a_round_trip_loses_nothing(layouts, scratch, suite, agents, lengths, final, piece) -> None:
    """Catches final frames, terminations, masks, states or dtypes lost on the way out and back."""
    from marl_flow.datasets.formats import import_dataset

    root = scratch()
    spec = layouts.small_task(
        suite,
        agents=agents,
        observation_size=6,
        discrete=suite == "smac",
        state_size=3 if suite == "smac" else None,
        max_steps=7,
    )
    store = layouts.random_store(spec, lengths, final=final)
    with patch.object(episodes, "PIECE_ROWS", piece):
        export_dataset("madiff", store, root / "out")
        found = import_dataset("madiff", root / "out", root / "in", dataset_id="x", spec=spec, provenance={})
    layouts.assert_same(found, store)
    assert found.provenance["exported_from"] == {"dataset_id": store.dataset_id, "digest": None}


def test_the_published_widths_are_the_known_tasks() -> None:
    """Catches a task whose input width with ids is not the published one."""
    from marl_flow.datasets.formats.agent_ids import width_with_ids

    published = {
        "mamujoco/2ant": 56,
        "mamujoco/4ant": 37,
        "mamujoco/2halfcheetah": 15,
        "smac/3m": 33,
        "smac/8m": 88,
        "smac/5m_vs_6m": 60,
        "smac/2s3z": 85,
    }
    assert {name: width_with_ids(known_spec(name)) for name in published} == published


def test_ends_by_discount_and_by_length(layouts, read, tmp_path: Path) -> None:
    """Catches a time limit taken for a failure, and an episode cut off by the recorder taken for one."""
    spec = small(layouts, "smac")
    layouts.write_madiff(tmp_path / "Good", layouts.random_store(spec, [5, 2, 3]))
    np.save(tmp_path / "Good" / "logprobs.npy", np.zeros(10))
    found = read("madiff", tmp_path / "Good", spec)
    assert found.terminated.tolist() == [False, True, True] and found.provenance["arrays_left_out"] == ["logprobs"]
    discounts = np.load(tmp_path / "Good" / "discounts.npy")
    discounts[6] = 1
    np.save(tmp_path / "Good" / "discounts.npy", discounts)
    assert read("madiff", tmp_path / "Good", spec).terminated.tolist() == [False, False, True]
    discounts[5] = 0
    np.save(tmp_path / "Good" / "discounts.npy", discounts)
    with pytest.raises(UserError, match=r"0 at the last step of an episode only, found it at row 5"):
        read("madiff", tmp_path / "Good", spec)


def test_omigas_ant_is_refused_with_the_reason(layouts, read, tmp_path: Path) -> None:
    """Catches other data imported under the name of the published ones."""
    spec = known_spec("mamujoco/2ant")
    layouts.write_madiff(tmp_path / "Good", layouts.random_store(spec, [3, 2]))
    wide = np.zeros((5, 2, 113), dtype=np.float32)
    np.save(tmp_path / "Good" / "obs.npy", wide)
    with pytest.raises(UserError, match=r"expected observations of 56 columns .*found 113; .*OMIGA's 2ant"):
        read("madiff", tmp_path / "Good", spec)


@pytest.mark.parametrize("suite", SUITES)
def test_refusals_name_the_file_and_the_row(layouts, read, tmp_path: Path, suite: str) -> None:
    """Catches ids of the wrong agent, illegal actions, and lengths that do not fit, read as if nothing were wrong."""
    spec = small(layouts, suite)
    layouts.write_madiff(tmp_path / "Good", layouts.random_store(spec, [5, 2, 3]))
    good = {path.name: np.load(path) for path in (tmp_path / "Good").iterdir()}

    def attempt(name: str, change: Any, message: str) -> None:
        values = good[name].copy()
        changed = change(values)
        np.save(tmp_path / "Good" / name, values if changed is None else changed)
        with pytest.raises(UserError, match=message):
            read("madiff", tmp_path / "Good", spec)
        np.save(tmp_path / "Good" / name, good[name])

    attempt(
        "obs.npy", lambda a: a.__setitem__((7, 1, 0), 1), r"one-hot id of agent 1 .*found \[1.0, 1.0, 0.0\] at row 7"
    )
    attempt("obs.npy", lambda a: a[:, ::-1], "one-hot id of agent 0")
    attempt("path_lengths.npy", lambda a: a.__setitem__(1, -2), "episodes of 1 to 5 steps .*found -2 in episode 1")
    attempt("path_lengths.npy", lambda a: a.__setitem__(0, 2**62), "found 4611686018427387904 in episode 0")
    attempt("path_lengths.npy", lambda a: a.__setitem__(1, 3), "add up to the 10 rows of obs, found 11")
    attempt("path_lengths.npy", lambda a: a.astype(float), "expected integers, found float64")
    if suite == "smac":
        attempt("actions.npy", lambda a: a.__setitem__((2, 1), 5), "choices from 0 to 4, found 5 at row 2")
        attempt(
            "legals.npy",
            lambda a: a.__setitem__((6, 2), 0),
            "at least one legal choice, found none at episode 1, step 1",
        )
        attempt("legals.npy", lambda a: a.__setitem__((6, 2), 0.5), "expected flags, 0 or 1, found 0.5 at row 6")
        attempt("actions.npy", lambda a: a.astype(float), "expected integers")
    else:
        attempt("actions.npy", lambda a: a.__setitem__((2, 1, 0), -1.1), "found .*-1.1.* at episode 0, step 2, agent_1")


def test_an_export_of_another_task_is_refused(layouts, read, tmp_path: Path) -> None:
    """Catches data of one map read as another of the same sizes."""
    spec = small(layouts, "smac")
    export_dataset("madiff", layouts.random_store(spec, [5, 2]), tmp_path / "out")
    with pytest.raises(UserError, match=r"task.json: expected data of the requested task.*'max_steps': 9"):
        read(
            "madiff",
            tmp_path / "out",
            layouts.small_task("smac", discrete=True, state_size=6, action_size=5, max_steps=9),
        )


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_rightly(layouts, damage, judge, tmp_path: Path) -> None:
    """Catches a traceback, a crash, a partial store, or silently wrong numbers over 2,100 damaged sources."""
    sources = []
    for suite in SUITES:
        spec = small(layouts, suite)
        layouts.write_madiff(tmp_path / suite, layouts.random_store(spec, [5, 2, 3, 1]))
        sources.append((spec, damage.files_of(tmp_path / suite)))
    export_dataset("madiff", layouts.random_store(spec, [5, 2, 3, 1]), tmp_path / "ours")
    sources.append((spec, damage.files_of(tmp_path / "ours")))
    for number in range(2100):
        draw = np.random.default_rng(number)
        spec, good = sources[number % 3]
        files, what = _broken(damage, good, draw)
        judge("madiff", damage.lay(judge.source, files), spec, oracle, f"{number}: {what}")
    assert judge.refused > 1000 and judge.read > 200, (judge.refused, judge.read)


def _broken(damage, files: dict[str, bytes], draw: np.random.Generator) -> tuple[dict[str, bytes], str]:
    kind = str(
        draw.choice(
            ["bytes", "array", "array", "array", "header", "lengths", "all rows", "ids", "legals", "task", "names"]
        )
    )
    arrays = sorted(name for name in files if name.endswith(".npy"))
    name = str(draw.choice(arrays))
    if kind == "array":
        array, what = damage.break_array(damage.npy_of(files[name]), draw)
        return {**files, name: damage.npy_bytes(array)}, f"{what} in {name}"
    if kind == "header":
        return {**files, name: damage.lying_header(files[name], draw)}, f"header of {name}"
    if kind == "lengths":
        choices: list[Any] = [
            [5, 3, 2, 1],
            [5, 2, 3],
            [11],
            [6, 2, 2, 1],
            [5, 0, 5, 1],
            [-1, 6, 5, 1],
            [2**62, 2**62, 2**63 - 1, 2**63 + 12],
        ]
        lengths = choices[int(draw.integers(len(choices)))]
        array = np.array(
            lengths,
            dtype=np.uint64 if max(lengths) > 2**62 else draw.choice(["i1", "i8", "u1"]) if min(lengths) >= 0 else "i8",
        )
        return {**files, "path_lengths.npy": damage.npy_bytes(array)}, f"lengths {lengths}"
    if kind == "all rows":
        rows = draw.permutation(11) if draw.random() < 0.5 else np.arange(int(draw.integers(1, 11)))
        names = [n for n in arrays if n != "path_lengths.npy" and not n.startswith(("final", "terminated"))]
        return {**files, **{n: damage.npy_bytes(damage.npy_of(files[n])[rows]) for n in names}}, f"rows {rows}"
    if kind == "ids":
        array = damage.npy_of(files["obs.npy"]).copy()
        row, agent = int(draw.integers(11)), int(draw.integers(3))
        array[row, agent, :3] = np.roll(array[row, agent, :3], int(draw.integers(3)))
        return {**files, "obs.npy": damage.npy_bytes(array)}, f"ids at {row}, {agent}"
    if kind == "legals" and "legals.npy" in files:
        array = damage.npy_of(files["legals.npy"]).copy()
        array[int(draw.integers(11)), int(draw.integers(3)), int(draw.integers(5))] = draw.choice([0, 0, 0, 1, 2])
        return {**files, "legals.npy": damage.npy_bytes(array)}, "legals"
    if kind == "task" and "task.json" in files:
        text, what = damage.break_json(files["task.json"].decode(), draw)
        return {**files, "task.json": text.encode()}, f"task.json {what}"
    if kind == "names":
        fresh = str(
            draw.choice(["task.json", "logprobs.npy", "states.npy", "terminated.npy", "final_observations.npy"])
        )
        return {**files, fresh: files[name]}, f"also {fresh}"
    return damage.break_bytes(files, draw)
