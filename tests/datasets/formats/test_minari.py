"""Minari datasets: a collector's single-agent one, good and damaged, and our own export for several agents."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marl_flow.datasets.formats import episodes, export_dataset, import_dataset
from marl_flow.interfaces import TaskSpec, UserError


def oracle(source: Path, spec: TaskSpec) -> dict[str, Any]:
    """What a plain reader finds."""
    metadata = json.loads((source / "data" / "metadata.json").read_text())
    agents = spec.num_agents
    parts: dict[str, list[np.ndarray]] = {}
    lengths, terminated = [], []
    with h5py.File(source / "data" / "main_data.hdf5", "r") as file:
        for k in range(metadata["total_episodes"]):
            group = file[f"episode_{k}"]
            rewards = group["rewards"][()]
            steps = len(rewards)
            lengths.append(steps)
            terminated.append(group["terminations"][-1])
            wide = np.repeat(rewards[:, None], agents, axis=1) if rewards.ndim == 1 else rewards
            parts.setdefault("rewards", []).append(wide)
            actions = group["actions"][()]
            parts.setdefault("actions", []).append(actions[:, None] if agents == 1 else actions)
            for name, path in (
                ("observations", "observations"),
                ("state", "infos/state"),
                ("action_mask", "infos/action_mask"),
            ):
                if (name == "observations" or _keeps(spec, name)) and path in group:
                    values = group[path][()]
                    values = values[:, None] if agents == 1 and name != "state" else values
                    parts.setdefault(name, []).append(values[:-1])
                    parts.setdefault(f"final_{name}", []).append(values[-1:])
    found: dict[str, Any] = {name: np.concatenate(values) for name, values in parts.items()}
    if not metadata.get("marl_flow", {"has_final_observation": True})["has_final_observation"]:
        found = {name: values for name, values in found.items() if not name.startswith("final_")}
    return {**found, "lengths": lengths, "terminated": terminated}


def _keeps(spec: TaskSpec, name: str) -> bool:
    return bool(spec.state_size) if name == "state" else spec.action.is_discrete


@settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 20),
)
def test_any_published_shape_is_read(layouts, damage, scratch, width, actions, lengths, given_spec, piece) -> None:
    """Catches a lost agent axis, episodes in the order of their names, and a lost final observation."""
    root = scratch()
    spec = layouts.small_task(agents=1, observation_size=width, action_size=actions, max_steps=7)
    layouts.write_minari(root / "hopper-v0", layouts.random_store(spec, lengths))
    judge = damage.Judge(root)
    with patch.object(episodes, "PIECE_ROWS", piece):
        judge("minari", root / "hopper-v0", spec if given_spec else None, oracle, "good")
    assert judge.read == 1


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(1, 20),
)
def test_a_round_trip_loses_nothing(layouts, scratch, agents, lengths, discrete, final, piece) -> None:
    """Catches final frames, terminations, masks, states, agents' rewards or the task lost on the way out and back."""
    pytest.importorskip("minari")
    root = scratch()
    spec = layouts.small_task(
        agents=agents, discrete=discrete, state_size=3 if discrete else None, max_steps=7, team_reward="mean"
    )
    store = layouts.random_store(spec, lengths, final=final)
    with patch.object(episodes, "PIECE_ROWS", piece):
        export_dataset("minari", store, root / "small-v3")
        found = import_dataset("minari", root / "small-v3", root / "in", dataset_id="x", spec=None, provenance={})
    layouts.assert_same(found, store)


@pytest.mark.parametrize("discrete", [False, True])
def test_minaris_own_library_reads_our_export(layouts, tmp_path: Path, monkeypatch, discrete: bool) -> None:
    """Catches an export that only we can read, one that shows up elsewhere, and an environment left changed."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    before = dict(os.environ)
    spec = layouts.small_task(discrete=discrete, state_size=3 if discrete else None)
    store = layouts.random_store(spec, [5, 2, 3], terminated=[False, True, True])
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path / "root")
    export_dataset("minari", store, Path("small-v3"))  # a relative path, which the library alone gets wrong
    assert dict(os.environ) == before and not (tmp_path / "elsewhere").exists()
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["small-v3"]
    dataset = minari.MinariDataset(tmp_path / "root" / "small-v3" / "data")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (3, 10, "small-v3")
    for k, episode in enumerate(dataset.iterate_episodes()):
        one = store.select([k])
        np.testing.assert_array_equal(episode.observations, one.observations)
        np.testing.assert_array_equal(episode.actions, one.actions)
        np.testing.assert_array_equal(episode.rewards, one.rewards)
        assert all(
            dataset.action_space.contains(action) for action in episode.actions.astype(dataset.action_space.dtype)
        )
        assert bool(episode.terminations[-1]) == bool(one.terminated[0]) != bool(episode.truncations[-1])


def test_a_published_set_implies_its_task(layouts, read, tmp_path: Path) -> None:
    """Catches a task guessed where the set does not tell: other bounds, choices, other storage."""
    spec = layouts.small_task(agents=1)
    store = layouts.random_store(spec, [4, 2, 3], terminated=[False, True, True])
    layouts.write_minari(tmp_path / "hopper-v0", store)
    found = read("minari", tmp_path / "hopper-v0", None)
    assert found.spec.task_id == "minari/hopper-v0" and found.spec.max_steps == 4
    layouts.assert_same(read("minari", tmp_path / "hopper-v0", spec), store)
    for name, space in (
        ("wide", {"type": "Box", "low": [-2.0, -1.0], "high": [2.0, 1.0], "shape": [2], "dtype": "float32"}),
        ("choice", {"type": "Discrete", "n": 4, "start": 0, "dtype": "int64", "low": -1, "high": 1}),
    ):
        layouts.write_minari(tmp_path / f"{name}-v0", store, action_space=json.dumps(space))
        with pytest.raises(
            UserError, match=r"expected actions in a box from -1 to 1, found .*; say of which known task"
        ):
            read("minari", tmp_path / f"{name}-v0", None)
        layouts.assert_same(read("minari", tmp_path / f"{name}-v0", spec), store)
    layouts.write_minari(tmp_path / "arrow-v0", store, data_format="arrow")
    with pytest.raises(UserError, match="expected data_format 'hdf5', found 'arrow'"):
        read("minari", tmp_path / "arrow-v0", None)


def test_an_end_without_a_flag_is_no_termination(layouts, read, tmp_path: Path) -> None:
    """Catches an episode that its collector stopped taken for a failure, and a flag inside an episode passed over."""
    spec = layouts.small_task(agents=1)
    layouts.write_minari(tmp_path / "a-v0", layouts.random_store(spec, [4, 2], terminated=[True, True]))
    with h5py.File(tmp_path / "a-v0" / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0/terminations"][-1] = False
    assert read("minari", tmp_path / "a-v0", spec).terminated.tolist() == [False, True]
    with h5py.File(tmp_path / "a-v0" / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0/truncations"][1] = True
    with pytest.raises(
        UserError, match=r"episode_0/truncations: expected a flag at the last step \(3\) only.*at step 1"
    ):
        read("minari", tmp_path / "a-v0", spec)


def test_columns_are_squeezed(layouts, read, tmp_path: Path) -> None:
    """Catches a set whose flags, rewards and choices are columns [T, 1] refused; rewards are bools."""
    spec = layouts.small_task(agents=1, discrete=True)
    store = layouts.random_store(spec, [4, 2, 3], terminated=[False, True, True])
    store.rewards.flags.writeable = True
    store.rewards[:] = store.rewards > 0
    export_dataset("minari", store, tmp_path / "choices-v0")
    with h5py.File(tmp_path / "choices-v0" / "data" / "main_data.hdf5", "r+") as file:
        for episode in list(file):
            for name in ("rewards", "terminations", "truncations", "actions"):
                values = file[f"{episode}/{name}"][()]
                del file[f"{episode}/{name}"]
                file[f"{episode}/{name}"] = values.astype(bool if name == "rewards" else values.dtype).reshape(-1, 1)
    layouts.assert_same(read("minari", tmp_path / "choices-v0", None), store)


def test_an_export_needs_a_name_minari_takes(layouts, tmp_path: Path) -> None:
    """Catches a dataset that Minari cannot name, found out only by whoever receives it."""
    with pytest.raises(UserError, match="folder name like spread-expert-v0"):
        export_dataset("minari", layouts.random_store(layouts.small_task(), [3]), tmp_path / "spread")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_rightly(layouts, damage, judge, tmp_path: Path) -> None:
    """Catches a traceback, a crash, a partial store, or silently wrong numbers over 2,100 damaged sources."""
    pytest.importorskip("minari")
    one = layouts.small_task(agents=1)
    several = layouts.small_task(discrete=True, state_size=3, action_size=4, team_reward="mean")
    layouts.write_minari(tmp_path / "one-v0", layouts.random_store(one, [5, 2, 1]))
    export_dataset("minari", layouts.random_store(several, [5, 2, 1]), tmp_path / "ours-v0")
    sources = [(one, tmp_path / "one-v0"), (None, tmp_path / "one-v0"), (None, tmp_path / "ours-v0")]
    contents = [damage.files_of(good) for _, good in sources]
    for number in range(2100):
        draw = np.random.default_rng(number)
        spec, files = sources[number % 3][0], contents[number % 3]
        kind = str(draw.choice(["bytes", "hdf5", "json"]))
        if kind == "bytes":
            files, what = damage.break_bytes(files, draw, head=4096)
            damage.lay(judge.source, files)
        elif kind == "json":
            text, what = damage.break_json(files["data/metadata.json"].decode(), draw)
            damage.lay(judge.source, {**files, "data/metadata.json": text.encode("utf-8", "surrogatepass")})
        else:
            damage.lay(judge.source, files)
            what = _break_structure(damage, judge.source / "data" / "main_data.hdf5", draw)
        judge("minari", judge.source, spec, oracle, f"{number}: {what}")
    assert judge.refused > 800 and judge.read > 200, (judge.refused, judge.read)


def _break_structure(damage, path: Path, draw: np.random.Generator) -> str:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = str(draw.choice(names))
        kind = str(draw.choice(["array", "array", "array", "missing", "group", "episode", "extra", "link"]))
        if kind == "episode":
            del file[f"episode_{int(draw.integers(3))}"]
            return kind
        if kind == "extra":
            file.copy("episode_0", str(draw.choice(["episode_3", "episode_00", "other"])))
            return kind
        array = file[name][()]
        del file[name]
        if kind == "link":
            file[name] = (
                h5py.SoftLink("/episode_0/rewards") if draw.random() < 0.5 else h5py.ExternalLink("x.hdf5", "/y")
            )
        elif kind == "group":
            file.create_group(name)
        elif kind == "array":
            array, kind = damage.break_array(array, draw)
            file.create_dataset(
                name, data=array.astype({"O": "S8", "U": "S8", "M": "i8"}.get(array.dtype.kind, array.dtype))
            )
    return f"{kind} of {name}"
