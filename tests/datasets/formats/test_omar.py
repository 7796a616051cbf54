"""Reading OMAR's per-seed `.npy` files, good and damaged."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marl_flow.datasets.formats import episodes
from marl_flow.interfaces import TaskSpec, UserError


def oracle(source: Path, spec: TaskSpec) -> dict[str, Any]:
    """What a plain reader finds: rows one by one, seeds in numeric order."""
    folders = sorted(source.glob("seed_*_data"), key=lambda path: int(path.name.split("_")[1])) or [source]
    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("observations", "actions", "rewards", "final_observations")
    }
    lengths, terminated = [], []
    for folder in folders:
        fields = {
            field: np.stack(
                [np.load(folder / f"{field}_{i}.npy", allow_pickle=False) for i in range(spec.num_agents)], 1
            )
            for field in ("obs", "acs", "rews", "dones")
        }
        has_next = (folder / "next_obs_0.npy").exists()
        start = 0
        for row in range(len(fields["obs"])):
            done = bool(fields["dones"][row].all())
            if not done and row - start + 1 < spec.max_steps:
                continue
            lengths.append(row - start + 1)
            terminated.append(done and row - start + 1 < spec.max_steps)
            for name, field in (("observations", "obs"), ("actions", "acs"), ("rewards", "rews")):
                rows[name].append(fields[field][start : row + 1])
            if has_next:
                final = [np.load(folder / f"next_obs_{i}.npy")[row] for i in range(spec.num_agents)]
                rows["final_observations"].append(np.stack(final)[None])
            start = row + 1
    found = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return {**found, "lengths": lengths, "terminated": terminated}


@pytest.fixture
def spec(layouts) -> TaskSpec:
    return layouts.small_task(team_reward="mean")


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
    st.integers(1, 30),
)
def test_any_shape_is_read(layouts, damage, scratch, agents, width, steps, seeds, dtype, next_obs, piece) -> None:
    """Catches agents, seeds or pieces in the wrong order, a lost final observation, and 64-bit numbers misread."""
    root = scratch()
    spec = layouts.small_task(agents=agents, observation_size=width, max_steps=steps)
    for seed, count in enumerate(seeds):
        store = layouts.random_store(spec, [steps] * count, seed)
        layouts.write_omar(root / "quality" / f"seed_{seed}_data", store, dtype=dtype, next_obs=next_obs)
    with patch.object(episodes, "PIECE_ROWS", piece):
        judge = damage.Judge(root)
        judge("omar", root / "quality", spec, oracle, "good")
    assert judge.read == 1


def test_seeds_are_pooled_in_numeric_order(layouts, read, spec, tmp_path: Path) -> None:
    """Catches seed 10 before seed 2, a prey taken for a predator, and provenance that does not identify the files."""
    stores = {seed: layouts.random_store(spec, [5] * (seed + 1), seed) for seed in (10, 2)}
    for seed, store in stores.items():
        layouts.write_omar(tmp_path / "expert" / f"seed_{seed}_data", store, prey=seed == 2)
    found = read("omar", tmp_path / "expert", spec)
    assert found.provenance["strata"] == [{"seed": 2, "episodes": 3}, {"seed": 10, "episodes": 11}]
    assert found.provenance["agents_left_out"] == [3] and found.provenance["dropped_rows"] == 0
    assert found.provenance["layout"] == "omar" and found.provenance["by"] == "test"
    np.testing.assert_array_equal(found.observations[: len(stores[2].observations)], stores[2].observations)
    np.testing.assert_array_equal(found.rewards[15:], stores[10].rewards)
    assert not found.terminated.any(), "time limits are not terminations"
    assert len(found.provenance["files"]) == 2 * 3 * 5
    for record in found.provenance["files"]:
        data = (tmp_path / "expert" / record["name"]).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_one_seed_or_a_flat_folder_can_be_given(layouts, read, spec, tmp_path: Path) -> None:
    """Catches a reader that wants the whole download for one seed."""
    store = layouts.random_store(spec, [5, 5], terminated=[False, False])
    for name, seed in (("seed_7_data", 7), ("flat", None)):
        layouts.write_omar(tmp_path / name, store)
        found = read("omar", tmp_path / name, spec)
        layouts.assert_same(found, store)
        assert found.provenance["strata"] == [{"seed": seed, "episodes": 2}]


def test_a_partial_episode_is_left_out_and_said(layouts, read, spec, tmp_path: Path, caplog) -> None:
    """Catches a tail taken for an episode, and one dropped in silence."""
    store = layouts.random_store(spec, [5, 5, 3])
    layouts.write_omar(tmp_path / "seed_0_data", store)
    with caplog.at_level(logging.WARNING):
        found = read("omar", tmp_path / "seed_0_data", spec)
    assert found.lengths.tolist() == [5, 5] and found.provenance["dropped_rows"] == 3
    assert "last 3 rows have no end" in caplog.text
    layouts.write_omar(tmp_path / "short", store.select([2]))
    with pytest.raises(UserError, match="at least one episode that ends, found 3 rows"):
        read("omar", tmp_path / "short", spec)


def test_dones_of_all_agents_end_an_episode(layouts, read, spec, tmp_path: Path) -> None:
    """Catches dones that are ignored, and an end at the limit taken for a termination."""
    layouts.write_omar(tmp_path / "flat", layouts.random_store(spec, [2, 5, 5]), next_obs=False)
    dones = np.zeros(12)
    dones[[1, 6]] = 1
    for agent in range(3):
        np.save(tmp_path / "flat" / f"dones_{agent}.npy", dones)
    found = read("omar", tmp_path / "flat", spec)
    assert found.lengths.tolist() == [2, 5, 5] and found.terminated.tolist() == [True, False, False]
    np.save(tmp_path / "flat" / "dones_1.npy", np.zeros(12))
    with pytest.raises(UserError, match=r"same flag for every agent, found .* at row 1"):
        read("omar", tmp_path / "flat", spec)


def test_rows_out_of_order_are_noticed(layouts, read, spec, tmp_path: Path) -> None:
    """Catches shuffled transitions, and a step limit that is not the data's, read as episodes."""
    layouts.write_omar(tmp_path / "flat", layouts.random_store(spec, [5] * 4))
    with pytest.raises(UserError, match="expected row 4 to lead to what row 5 of the same episode shows"):
        read("omar", tmp_path / "flat", layouts.small_task(team_reward="mean", max_steps=10))
    order = np.arange(20)
    order[[8, 12]] = [12, 8]
    for path in (tmp_path / "flat").iterdir():
        np.save(path, np.load(path)[order])
    with pytest.raises(UserError, match=r"expected row 7 to lead to what row 8"):
        read("omar", tmp_path / "flat", spec)


def test_refusals_name_the_file_and_the_row(layouts, read, spec, tmp_path: Path) -> None:
    """Catches messages from which nobody can find the fault, and rows numbered within a piece."""
    layouts.write_omar(tmp_path / "flat", layouts.random_store(spec, [5] * 40))
    good = {path.name: np.load(path) for path in (tmp_path / "flat").iterdir()}

    def attempt(name: str, change: Any, message: str) -> None:
        values = good[name].copy()
        changed = change(values)
        np.save(tmp_path / "flat" / name, values if changed is None else changed)
        with pytest.raises(UserError, match=message), patch.object(episodes, "PIECE_ROWS", 50):
            read("omar", tmp_path / "flat", spec)
        np.save(tmp_path / "flat" / name, good[name])

    attempt("rews_1.npy", lambda a: a.__setitem__(123, np.nan), "rews_1.npy: expected finite.*found nan at row 123")
    attempt("acs_2.npy", lambda a: a.__setitem__((61, 1), 1.5), "found .*1.5.* at episode 12, step 1, agent_2")
    attempt("obs_0.npy", lambda a: a[:, :3], r"obs_0.npy: expected shape \[200, 4\], found \[200, 3\]")
    attempt("acs_0.npy", lambda a: a[:-1], r"acs_0.npy: expected shape \[200, 2\], found \[199, 2\]")
    attempt("obs_1.npy", lambda a: a.astype("c8"), "expected plain numbers, found complex64")
    (tmp_path / "flat" / "dones_2.npy").unlink()
    with pytest.raises(UserError, match=r"found no dones_2\.npy"):
        read("omar", tmp_path / "flat", spec)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_rightly(layouts, damage, judge, tmp_path: Path) -> None:
    """Catches a traceback, a crash, a partial store, or silently wrong numbers over 2,000 damaged sources."""
    spec, sources = layouts.small_task(agents=2), []
    for next_obs in (True, False):
        for seed in (3, 10):
            store = layouts.random_store(spec, [5] * 4, seed)
            layouts.write_omar(tmp_path / f"good_{next_obs}" / f"seed_{seed}_data", store, next_obs=next_obs)
        sources.append(damage.files_of(tmp_path / f"good_{next_obs}"))
    for number in range(2000):
        draw = np.random.default_rng(number)
        files, what = _broken(damage, sources[number % 2], draw)
        judge("omar", damage.lay(judge.source, files), spec, oracle, f"{number}: {what}")
    assert judge.refused > 1000 and judge.read > 200, (judge.refused, judge.read)


def _broken(damage, files: dict[str, bytes], draw: np.random.Generator) -> tuple[dict[str, bytes], str]:
    kind = str(draw.choice(["bytes", "array", "array", "header", "all rows", "dones", "names", "version"]))
    if kind == "bytes":
        return damage.break_bytes(files, draw)
    files = dict(files)
    name = str(draw.choice(sorted(files)))
    seed = name.partition("/")[0]
    if kind == "array":
        array, what = damage.break_array(damage.npy_of(files[name]), draw)
        return {**files, name: damage.npy_bytes(array)}, f"{what} in {name}"
    if kind == "header":
        return {**files, name: damage.lying_header(files[name], draw)}, f"header of {name}"
    if kind == "version":
        version = [(2, 0), (3, 0)][int(draw.integers(2))]
        return {**files, name: damage.npy_bytes(damage.npy_of(files[name]), version)}, f"version {version} of {name}"
    if kind == "all rows":  # the same rows of every file of a seed
        rows = draw.permutation(20) if draw.random() < 0.5 else np.arange(int(draw.integers(1, 20)))
        for other in files:
            if other.startswith(f"{seed}/"):
                files[other] = damage.npy_bytes(damage.npy_of(files[other])[rows])
        return files, f"rows {rows} of {seed}"
    if kind == "dones":
        agents = range(2) if draw.random() < 0.6 else [int(draw.integers(2))]
        row, value = int(draw.integers(20)), float(draw.choice([1, 2, np.nan]))
        for agent in agents:
            dones = damage.npy_of(files[f"{seed}/dones_{agent}.npy"])
            dones[row] = value
            files[f"{seed}/dones_{agent}.npy"] = damage.npy_bytes(dones)
        return files, f"dones {value} at {row} of {list(agents)}"
    fresh = str(
        draw.choice(["seed_x_data/obs_0.npy", "obs_0.npy", "seed_03_data/obs_0.npy", f"{seed}/obs_7.npy", "README"])
    )
    return {**files, fresh: files[name]}, f"also {fresh}"
