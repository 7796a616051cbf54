"""D4RL's HDF5 layout: a published single-agent file, good and damaged, and our own export for several agents."""

from __future__ import annotations

import json
import shutil
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

NAMES = (
    *("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "infos/agent_rewards"),
    *("infos/state", "infos/next_state", "infos/action_mask", "infos/next_action_mask"),
)


def oracle(source: Path, spec: TaskSpec) -> dict[str, Any]:
    """What a plain reader finds."""
    with h5py.File(source, "r") as file:
        arrays = {name: file[name][()] for name in NAMES if name in file}
    agents, rows = spec.num_agents, len(arrays["rewards"])
    for name in ("rewards", "terminals", "timeouts"):
        if name in arrays and arrays[name].shape == (rows, 1):
            arrays[name] = arrays[name][:, 0]
    failed = arrays["terminals"].astype(bool)
    lengths, terminated, kept, start = [], [], 0, 0
    for row in range(rows):
        limit = arrays["timeouts"][row] if "timeouts" in arrays else row - start + 1 == spec.max_steps
        if failed[row] or limit:
            lengths.append(row - start + 1)
            terminated.append(failed[row])
            kept = start = row + 1
    found: dict[str, Any] = {"lengths": lengths, "terminated": terminated}
    ends = np.cumsum(lengths) - 1

    def shaped(name: str) -> np.ndarray:
        array = arrays[name]
        return array if "state" in name else array.reshape(rows, agents, *array.shape[2 if agents > 1 else 1 :])

    found["actions"] = shaped("actions")[:kept]
    found["rewards"] = arrays.get("infos/agent_rewards", np.repeat(arrays["rewards"].reshape(-1, 1), agents, axis=1))[
        :kept
    ]
    for name, path, following in (
        ("observations", "observations", "next_observations"),
        ("state", "infos/state", "infos/next_state"),
        ("action_mask", "infos/action_mask", "infos/next_action_mask"),
    ):
        if (
            path in arrays
            and (name != "state" or spec.state_size)
            and (name != "action_mask" or spec.action.is_discrete)
        ):
            found[name] = shaped(path)[:kept]
            if following in arrays:
                found[f"final_{name}"] = shaped(following)[ends]
    return found


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.integers(1, 20),
)
def test_any_published_shape_is_read(
    layouts, damage, scratch, width, actions, lengths, following, given_spec, piece
) -> None:
    """Catches a lost agent axis, failures and time limits confused, and a task implied with the wrong sizes."""
    root = scratch()
    spec = layouts.small_task(agents=1, observation_size=width, action_size=actions, max_steps=7)
    layouts.write_d4rl(root / "hopper.hdf5", layouts.random_store(spec, lengths), next_observations=following)
    judge = damage.Judge(root)
    with patch.object(episodes, "PIECE_ROWS", piece):
        judge("d4rl", root / "hopper.hdf5", spec if given_spec else None, oracle, "good")
    assert judge.read == 1


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["shared", "mean", "sum"]),
    st.integers(1, 20),
)
def test_a_round_trip_loses_nothing(layouts, scratch, agents, lengths, discrete, final, team, piece) -> None:
    """Catches final frames, terminations, masks, states, agents' rewards or the task lost on the way out and back."""
    root = scratch()
    spec = layouts.small_task(
        agents=agents, discrete=discrete, state_size=3 if discrete else None, max_steps=7, team_reward=team
    )
    store = layouts.random_store(spec, lengths, final=final)
    with patch.object(episodes, "PIECE_ROWS", piece):
        export_dataset("d4rl", store, root / "out.hdf5")
        found = import_dataset("d4rl", root / "out.hdf5", root / "in", dataset_id="x", spec=None, provenance={})
    layouts.assert_same(found, store)
    with h5py.File(root / "out.hdf5") as file:
        returns = np.add.reduceat(file["rewards"][()], store.offsets[:-1])
    np.testing.assert_allclose(returns, store.team_returns(), rtol=1e-4, atol=1e-4)


def test_a_published_file_implies_its_task(layouts, read, tmp_path: Path) -> None:
    """Catches a task guessed where the file does not tell, and one refused where it does."""
    spec = layouts.small_task(agents=1)
    store = layouts.random_store(spec, [4, 2, 3], terminated=[False, True, True])
    layouts.write_d4rl(tmp_path / "hopper.hdf5", store)
    found = read("d4rl", tmp_path / "hopper.hdf5", None)
    assert found.spec.task_id == "d4rl/hopper" and found.spec.max_steps == 4 and found.spec.num_agents == 1
    layouts.assert_same(read("d4rl", tmp_path / "hopper.hdf5", spec), store)
    with h5py.File(tmp_path / "hopper.hdf5", "r+") as file:
        del file["actions"]
        file["actions"] = np.zeros((9, 2), dtype=np.int64)
    with pytest.raises(
        UserError, match=r"continuous actions \[M, A\], found .* int64 \[9, 2\]; say of which known task"
    ):
        read("d4rl", tmp_path / "hopper.hdf5", None)


def replace_array(path: Path, name: str, values: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values


def test_columns_are_squeezed(layouts, read, tmp_path: Path) -> None:
    """Catches files that D4RL's own loader reads, which squeezes rewards and terminals, and are refused here; and
    one agent's choices as a column."""
    spec = layouts.small_task(agents=1)
    store = layouts.random_store(spec, [4, 2, 3], terminated=[False, True, True])
    path = tmp_path / "hopper.hdf5"
    layouts.write_d4rl(path, store)
    with h5py.File(path) as file:
        arrays = {name: file[name][()] for name in ("rewards", "terminals", "timeouts")}
    for name, values in arrays.items():
        replace_array(path, name, values[:, None])
    layouts.assert_same(read("d4rl", path, spec), store)
    replace_array(path, "rewards", np.stack([arrays["rewards"]] * 2, axis=1))
    with pytest.raises(UserError, match=r"rewards: expected shape \[9\], found \[9, 2\]"):
        read("d4rl", path, spec)

    spec = layouts.small_task(agents=1, discrete=True)
    store = layouts.random_store(spec, [4, 2, 3])
    export_dataset("d4rl", store, tmp_path / "choices.hdf5")
    replace_array(tmp_path / "choices.hdf5", "actions", store.actions)
    assert store.actions.shape == (9, 1)
    layouts.assert_same(read("d4rl", tmp_path / "choices.hdf5", None), store)


@pytest.mark.parametrize("dtype", ["i8", "i4", "u1", "u8", "i2", "?", "f2", "f8"])
def test_numbers_of_other_types_are_read_exactly(dtype: str, layouts, read, tmp_path: Path) -> None:
    """Catches rewards of 0 and 1 stored as integers or bools, and observations as bytes or half floats, refused."""
    path = tmp_path / "sparse.hdf5"
    layouts.write_d4rl(path, layouts.random_store(layouts.small_task(agents=1), [4, 3]), next_observations=False)
    rewards = np.array([0, 0, 0, 1, 0, 0, 1])
    observations = np.arange(28).reshape(7, 4) * (9 if dtype in ("u1", "f2") else 1) % 256
    observations = observations % 2 if dtype == "?" else observations
    replace_array(path, "rewards", rewards.astype(dtype))
    replace_array(path, "observations", observations.astype(dtype))
    found = read("d4rl", path, None)
    assert found.rewards[:, 0].tolist() == rewards.tolist() and found.rewards.dtype == np.float32
    rows = layouts.step_rows(found)
    assert np.array_equal(found.observations[rows, 0], observations) and found.observations.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2**24 + 1, "i8"),
        (-(2**24) - 1, "i4"),
        (2**31 - 1, "i4"),
        (2**60 + 1, "i8"),
        (2**64 - 1, "u8"),
        (2**63 - 1, "i8"),
    ],
)
def test_integers_are_never_rounded(value: int, dtype: str, layouts, read, tmp_path: Path) -> None:
    """Catches an integer that float32 does not hold turned into its neighbour in silence."""
    path = tmp_path / "sums.hdf5"
    layouts.write_d4rl(path, layouts.random_store(layouts.small_task(agents=1), [4, 3]))
    rewards = np.zeros(7, dtype)
    rewards[:2] = 2**24, value
    replace_array(path, "rewards", rewards)
    with pytest.raises(
        UserError, match=rf"rewards: expected integers that float32 holds exactly, found {value} at row 1"
    ):
        read("d4rl", path, None)


def test_a_file_without_ends_says_so(layouts, read, tmp_path: Path) -> None:
    """Catches a message about shapes where no flag is set."""
    path = tmp_path / "endless.hdf5"
    layouts.write_d4rl(path, layouts.random_store(layouts.small_task(agents=1), [4, 3]))
    for name in ("terminals", "timeouts"):
        replace_array(path, name, np.zeros(7, bool))
    with pytest.raises(UserError, match=r"expected at least one episode that ends, found 7 rows without an end"):
        read("d4rl", path, None)


def test_without_timeouts_the_limit_must_be_known(layouts, read, tmp_path: Path) -> None:
    """Catches a time limit guessed from the data, and rows behind the last end dropped in silence."""
    spec = layouts.small_task(agents=1, max_steps=5)
    store = layouts.random_store(spec, [5, 2, 5, 3], terminated=[False, True, True, False])
    layouts.write_d4rl(tmp_path / "a.hdf5", store, timeouts=False)
    with pytest.raises(UserError, match=r"expected timeouts, found none.*say of which known task"):
        read("d4rl", tmp_path / "a.hdf5", None)
    found = read("d4rl", tmp_path / "a.hdf5", spec)
    layouts.assert_same(found, store.select(slice(3)))
    assert found.provenance["dropped_rows"] == 3


def test_what_lies_outside_the_file_is_never_read(layouts, read, tmp_path: Path) -> None:
    """Catches a file that pulls in others through links or outer storage, or claims what it does not hold."""
    store = layouts.random_store(layouts.small_task(agents=1), [5, 2])
    layouts.write_d4rl(tmp_path / "good.hdf5", store)
    (tmp_path / "raw").write_bytes(bytes(7 * 4))

    def soft(file: Any) -> None:
        file["rewards"] = h5py.SoftLink("/terminals")

    def outside(file: Any) -> None:
        file["rewards"] = h5py.ExternalLink(str(tmp_path / "good.hdf5"), "rewards")

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((7,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "good.hdf5"), "rewards", (7,))
        file.create_virtual_dataset("rewards", layout)

    def external(file: Any) -> None:
        file.create_dataset("rewards", (7,), "f4", external=[(str(tmp_path / "raw"), 0, 28)])

    def unwritten(file: Any) -> None:
        file.create_dataset("rewards", (7,), "f4", chunks=(2,))

    def huge(file: Any) -> None:
        file.create_dataset("rewards", (2**50,), "f4", chunks=(2**20,))

    def filtered(file: Any) -> None:
        file.create_dataset("rewards", data=np.zeros(7, dtype="f4"), scaleoffset=2)

    def texts(file: Any) -> None:
        file["rewards"] = ["a"] * 7

    for change, message in (
        (soft, "found a link"),
        (outside, "found a link"),
        (virtual, "kept in other files"),
        (external, "kept in other files"),
        (unwritten, "expected 4 stored chunks for .*found 0"),
        (huge, "expected an array that a file of .* bytes can hold"),
        (filtered, "gzip, lzf, shuffle or checksum filters, found number 6"),
        (texts, "expected plain numbers"),
    ):
        shutil.copy(tmp_path / "good.hdf5", tmp_path / "bad.hdf5")
        with h5py.File(tmp_path / "bad.hdf5", "r+") as file:
            del file["rewards"]
            change(file)
        with pytest.raises(UserError, match=message):
            read("d4rl", tmp_path / "bad.hdf5", None)


def test_text_of_variable_length_is_not_read(layouts, read, tmp_path: Path) -> None:
    """Catches a record read out of HDF5's heap, whose damage crashes or hangs the library (2.0.0)."""
    export_dataset("d4rl", layouts.random_store(layouts.small_task(), [5, 2]), tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file.attrs["marl_flow"] = file.attrs["marl_flow"].decode()
    with pytest.raises(UserError, match="expected text of fixed length"):
        read("d4rl", tmp_path / "a.hdf5", None)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_rightly(layouts, damage, judge, tmp_path: Path) -> None:
    """Catches a traceback, a crash, a partial store, or silently wrong numbers over 2,100 damaged sources."""
    one = layouts.small_task(agents=1)
    several = layouts.small_task(discrete=True, state_size=3, action_size=4, team_reward="mean")
    layouts.write_d4rl(tmp_path / "one.hdf5", layouts.random_store(one, [5, 2, 3, 1]))
    export_dataset("d4rl", layouts.random_store(several, [5, 2, 3, 1]), tmp_path / "ours.hdf5")
    sources = [(one, tmp_path / "one.hdf5"), (None, tmp_path / "one.hdf5"), (None, tmp_path / "ours.hdf5")]
    for number in range(2100):
        draw = np.random.default_rng(number)
        spec, good = sources[number % 3]
        if draw.random() < 0.5:
            files, what = damage.break_bytes(damage.files_of(good), draw, head=2048)
            damage.lay(judge.source, files)
        else:
            shutil.copy(good, judge.source)
            what = _break_structure(damage, judge.source, draw)
        judge("d4rl", judge.source, spec, oracle, f"{number}: {what}")
    assert judge.refused > 800 and judge.read > 200, (judge.refused, judge.read)


def _break_structure(damage, path: Path, draw: np.random.Generator) -> str:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = str(draw.choice([name for name in names if not name.startswith("metadata")]))
        kind = str(draw.choice(["array", "array", "array", "missing", "group", "record", "flags", "all rows"]))
        if kind == "record" and "marl_flow" in file.attrs:
            text, kind = damage.break_json(file.attrs["marl_flow"].decode(), draw)
            file.attrs["marl_flow"] = np.bytes_(text)
            return kind
        if kind == "all rows":
            rows = draw.permutation(11) if draw.random() < 0.5 else np.arange(int(draw.integers(1, 11)))
            for each in names:
                if not each.startswith("metadata"):
                    _replace(file, each, file[each][()][rows])
            return f"rows {rows}"
        array = file[name][()]
        if kind == "flags":
            name = str(draw.choice(["terminals", "timeouts"]))
            array = file[name][()]
            array[int(draw.integers(11))] ^= True
        elif kind in ("array", "record"):
            array, what = damage.break_array(array, draw)
            kind = what
            array = array.astype({"O": "S8", "U": "S8", "M": "i8"}.get(array.dtype.kind, array.dtype))
        del file[name]
        if kind == "group":
            file.create_group(name)
        elif kind != "missing":
            _replace(file, name, array)
    return f"{kind} of {name}"


def _replace(file: Any, name: str, array: np.ndarray) -> None:
    if name in file:
        del file[name]
    file[name] = array


def test_the_record_is_text_other_readers_pass_over(layouts, tmp_path: Path) -> None:
    """Catches a record that is no JSON or that hides where the data came from."""
    store = layouts.random_store(layouts.small_task(), [5, 2])
    export_dataset("d4rl", store, tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5") as file:
        record = json.loads(file.attrs["marl_flow"])
        assert {"observations", "actions", "rewards", "terminals", "timeouts", "next_observations"} <= set(file)
        assert file["rewards"].shape == (7,)
    assert record["task"] == store.spec.to_json() and record["exported_from"]["dataset_id"] == store.dataset_id
