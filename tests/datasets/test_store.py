"""Stores in memory and on disk: the layout, atomic writing, and refusing every kind of damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from marl_flow.datasets import writer
from marl_flow.datasets.layout import check_values, returns_to_go
from marl_flow.datasets.store import EpisodeStore, content_digest, open_store
from marl_flow.datasets.writer import AlreadyThere, StoreWriter, remove_store, replace_store, write_store
from marl_flow.interfaces import UserError


def assert_same(left: EpisodeStore, right: EpisodeStore) -> None:
    found, expected = dict(left.arrays()), dict(right.arrays())
    assert list(found) == list(expected) and left.spec == right.spec
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        assert found[name].dtype == expected[name].dtype


# In memory


def test_arrays_are_read_only_and_not_copied(make_store) -> None:
    """Catches an algorithm that normalises the data in place, and a store that doubles memory."""
    store = make_store([2, 3])
    mine = np.zeros(store.rewards.shape, dtype=np.float32)
    again = EpisodeStore(**{**vars(store), "rewards": mine})
    with pytest.raises(ValueError, match="read-only"):
        again.rewards[0] = 1.0
    mine[0] = 7.0
    assert again.rewards[0, 0] == 7.0


@pytest.mark.parametrize("discrete", [False, True])
def test_select_keeps_frames_and_steps_aligned(make_store, discrete: bool) -> None:
    """Catches offsets over steps applied to frames, which shifts every episode but the first."""
    store = make_store([2, 4, 3, 1], discrete=discrete, terminated=[False, True, False, True])
    chosen = store.select([3, 1, 1])
    assert chosen.lengths.tolist() == [1, 4, 4] and chosen.terminated.tolist() == [True, True, True]
    np.testing.assert_array_equal(chosen.observations[:, 0, 0], [300, 301, *[100, 101, 102, 103, 104] * 2])
    np.testing.assert_array_equal(-chosen.rewards[:, 0], [300, *[100, 101, 102, 103] * 2])
    if discrete:
        assert chosen.state is not None and chosen.action_mask is not None
        np.testing.assert_array_equal(chosen.state[:, 0], chosen.observations[:, 0, 0])
        np.testing.assert_array_equal(chosen.action_mask[2:7], store.action_mask[3:8])


def test_select_of_neighbours_copies_nothing(make_store) -> None:
    """Catches a split into training and held-out episodes that costs a second copy of the data."""
    store = make_store([2, 4, 3, 1])
    part = store.select(slice(1, 3))
    assert part.lengths.tolist() == [4, 3] and part.offsets.tolist() == [0, 4, 7]
    assert np.shares_memory(part.observations, store.observations) and np.shares_memory(part.actions, store.actions)
    np.testing.assert_array_equal(part.observations[part.first_frames, 0, 0], [100, 200])


@pytest.mark.parametrize("episodes", [[], (), slice(0, 0), np.zeros(0), np.zeros(4, bool), [0.0, 1.5], ["0"], [[0, 1]]])
def test_select_of_no_episodes_is_refused(episodes, make_store) -> None:
    """Catches an IndexError about arrays of another type where no episode, or no number of one, was given."""
    with pytest.raises(ValueError, match=r"select needs .*episodes"):
        make_store([2, 4, 3, 1]).select(episodes)
    assert make_store([2, 4]).select(np.array([False, True])).lengths.tolist() == [4]


def test_repr_shows_every_array(make_store) -> None:
    """Catches a repr that dumps numbers, or hides a shape somebody is looking for."""
    text = repr(make_store([2, 3], discrete=True, final=False))
    assert "2 episodes, 5 steps, final observations absent" in text
    for line in (
        "observations  float32  [7, 2, 3]",
        "actions       int16    [5, 2]",
        "action_mask   bool     [7, 2, 5]",
    ):
        assert line in text


def test_returns_by_hand() -> None:
    """Catches a sum that runs on into the next episode, or discounts from the episode's start."""
    rewards = np.array([[1.0], [2.0], [4.0], [10.0], [20.0]], dtype=np.float32)
    found = returns_to_go(rewards, np.array([0, 3, 5]), 0.5)
    np.testing.assert_allclose(found[:, 0], [1 + 1 + 1, 2 + 2, 4, 10 + 10, 20])
    assert found.dtype == np.float32


def test_undiscounted_returns_by_hand(make_store) -> None:
    """Catches returns that leak between episodes, and a team return that sums where it should average."""
    store = make_store([2, 3])
    np.testing.assert_allclose(store.agent_returns(), [[-1, -1.5], [-303, -303.75]])
    np.testing.assert_allclose(store.team_returns(), [-1.25, -303.375])


def test_real_frames_exclude_repeated_last_rows(make_store) -> None:
    """Catches statistics that count the filling of imported data as observations."""
    assert make_store([2, 3]).real_frames is None
    assert make_store([2, 3], final=False).real_frames.tolist() == [True, True, False, True, True, True, False]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("observations", lambda a: a.astype(np.float64), r"observations: expected float32 \[7, 2, 3\].*found float64"),
        ("observations", lambda a: a[:-1], r"observations: expected float32 \[7, 2, 3\].*found float32 \[6, 2, 3\]"),
        ("actions", lambda a: a[..., :1], r"actions: expected float32 \[5, 2, 2\].*found float32 \[5, 2, 1\]"),
        ("rewards", lambda a: a[..., 0], r"rewards: expected float32 \[5, 2\].*found float32 \[5\]"),
        ("terminated", lambda a: a.astype(np.int64), r"terminated: expected bool \[2\].*found int64"),
        ("offsets", lambda a: a.astype(np.int32), "offsets: expected int64"),
        ("offsets", lambda a: a[[0, 2, 1]], "rise by at least one step per episode, found 2 at position 2"),
        ("offsets", lambda a: a[[0, 0, 2]], "rise by at least one step per episode, found 0 at position 1"),
        ("offsets", lambda a: a + 1, "start at 0.*found 1 at position 0"),
        ("state", lambda _: np.zeros((7, 4), np.float32), "state: task mpe/simple_spread has none"),
    ],
)
def test_misshapen_arrays_are_refused(make_store, name: str, change, message: str) -> None:
    """Catches a store that accepts arrays which do not fit each other and fails later inside a gather."""
    store = make_store([2, 3])
    with pytest.raises(UserError, match=message):
        EpisodeStore(**{**vars(store), name: change(getattr(store, name))})


# On disk


@pytest.mark.parametrize("discrete", [False, True])
def test_what_is_written_is_read(tmp_path: Path, make_store, discrete: bool) -> None:
    """Catches a lost array, dtype, flag or provenance entry; and a reader that loads instead of mapping."""
    store = make_store([2, 3, 1], discrete=discrete, final=False, terminated=[True, False, True])
    write_store(tmp_path / "a" / "data", store)
    found = open_store(tmp_path / "a" / "data")
    assert_same(found, store)
    assert not found.has_final_observation and found.provenance["made_by"] == "hand"
    assert all(isinstance(array.base, np.memmap) for _, array in found.arrays())
    for name, array in store.arrays():  # plain .npy files, readable without us
        np.testing.assert_array_equal(np.load(tmp_path / "a" / "data" / f"{name}.npy", allow_pickle=False), array)


def test_pieces_make_the_same_files_as_one_write(tmp_path: Path, make_store) -> None:
    """Catches offsets that restart with every piece, and headers that keep the first piece's shape."""
    store = make_store([2, 3, 1, 4], discrete=True)
    whole = write_store(tmp_path / "whole", store)
    with StoreWriter(
        tmp_path / "pieces", spec=store.spec, dataset_id=store.dataset_id, provenance=store.provenance
    ) as pieces:
        for episodes in ([0], [1, 2], [3]):
            pieces.append(store.select(episodes))
    assert_same(open_store(tmp_path / "pieces"), store)
    assert (tmp_path / "pieces" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert whole.digest is not None


def test_digest_ignores_where_data_were_made(tmp_path: Path, make_store, monkeypatch) -> None:
    """Catches a digest that changes with library versions, or fails to change with the data or the task."""
    here = write_store(tmp_path / "here", make_store([2, 3]))
    monkeypatch.setattr(writer, "platform_record", lambda: {"machine": "another"})
    there = write_store(tmp_path / "there", make_store([2, 3]))
    assert there.provenance["platform"] == {"machine": "another"} != here.provenance["platform"]
    assert here.digest == there.digest
    assert write_store(tmp_path / "other", make_store([3, 2])).digest != here.digest
    assert write_store(tmp_path / "unlike", make_store([2, 3], final=False)).digest != here.digest


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, make_store) -> None:
    """Catches a second build that destroys the first."""
    first = write_store(tmp_path / "data", make_store([2, 3]))
    with pytest.raises(UserError, match=r"already exists.*--force"):
        write_store(tmp_path / "data", make_store([4]))
    assert open_store(tmp_path / "data").digest == first.digest


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, make_store) -> None:
    """Catches half a dataset under the final name, and temporary folders left behind."""
    store = make_store([2, 3])
    with (
        pytest.raises(RuntimeError, match="environment broke"),
        StoreWriter(tmp_path / "data", spec=store.spec, dataset_id="x", provenance={}) as pieces,
    ):
        pieces.append(store)
        assert not (tmp_path / "data").exists()
        raise RuntimeError("environment broke")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, make_store, monkeypatch) -> None:
    """Catches a traceback, or a broken dataset, where the disk runs full."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(UserError, match=r"expected to write .*No space left on device; free some space"):
        write_store(tmp_path / "data", make_store([2, 3]))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path, make_store) -> None:
    """Catches a diverged behaviour policy whose data would poison every run."""
    store = make_store([2, 3])
    rewards = store.rewards.copy()
    rewards[3, 1] = np.nan
    with pytest.raises(UserError, match=r"rewards: expected finite numbers, found nan at \[3, 1\]"):
        write_store(tmp_path / "data", EpisodeStore(**{**vars(store), "rewards": rewards}))
    assert list(tmp_path.iterdir()) == []


def test_choices_outside_the_task_are_refused(tmp_path: Path, make_store) -> None:
    """Catches an action index that would read another row on a GPU."""
    store = make_store([2, 3], discrete=True)
    actions = store.actions.copy()
    actions[4, 0] = 5
    with pytest.raises(UserError, match=r"actions: expected choices from 0 to 4, found 5 at \[4, 0\]"):
        write_store(tmp_path / "data", EpisodeStore(**{**vars(store), "actions": actions}))


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_illegal_choices_are_named(tmp_path: Path, make_store, block: int) -> None:
    """Catches masks read one frame off, which every episode but the first would show, and blocks that lose their place;
    masks of final frames say nothing about any choice.
    """
    store = make_store([2, 3, 4], discrete=True)  # choice t % 5 is the first legal one
    arrays = dict(store.arrays())
    mask = arrays["action_mask"].copy()
    mask[[2, 6, 11]] = False
    check_values(store.spec, {**arrays, "action_mask": mask}, block=block)
    actions = arrays["actions"].copy()
    actions[7, 1] = 0  # step 2 of the last episode
    with pytest.raises(UserError, match=r"legal choices \[2, 3, 4\], found 0 at episode 2, step 2, agent_1"):
        check_values(store.spec, {**arrays, "actions": actions}, block=block)
    mask[4, 0] = False
    with pytest.raises(
        UserError, match=r"action_mask: expected at least one .*found none at episode 1, step 1, agent_0"
    ):
        check_values(store.spec, {**arrays, "action_mask": mask}, block=block)
    writer = StoreWriter(tmp_path / "data", spec=store.spec, dataset_id=store.dataset_id, provenance={})
    with pytest.raises(UserError, match="episode 5, step 2, agent_1"), writer:
        writer.append(store)
        writer.append(EpisodeStore(**{**vars(store), "actions": actions}))


def test_actions_outside_the_bounds_are_named(make_store, make_task) -> None:
    """Catches data whose actions the environment clipped after they were stored, and rounding taken for that."""
    store = make_store([2, 3])
    actions = np.zeros_like(store.actions)
    actions[:] = np.float32([1.0, -0.5]) * np.float32(1 + 1e-6)
    check_values(make_task(), {**dict(store.arrays()), "actions": actions})
    actions[3, 1, 1] = -0.6
    with pytest.raises(
        UserError, match=r"from \[-1.0, -0.5\] to \[1.0, 0.5\], found .*-0.6.* episode 1, step 1, agent_1"
    ):
        check_values(make_task(), {**dict(store.arrays()), "actions": actions})


def test_a_dataset_built_meanwhile_is_said_to_be_there(tmp_path: Path, make_store) -> None:
    """Catches the slower of two builds that speaks of a full disk, or that replaces what the faster one made."""
    store = make_store([2, 3])
    with (
        pytest.raises(AlreadyThere, match="built meanwhile"),
        StoreWriter(tmp_path / "data", spec=store.spec, dataset_id="x", provenance={}) as slower,
    ):
        slower.append(store)
        faster = write_store(tmp_path / "data", make_store([4]))
    assert open_store(tmp_path / "data").digest == faster.digest
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_replacing_keeps_the_old_store_until_the_new_one_is_in(tmp_path: Path, make_store, monkeypatch) -> None:
    """Catches an old dataset deleted before the new one has its place."""
    old = write_store(tmp_path / "data", make_store([2, 3]))
    new = write_store(tmp_path / "fresh", make_store([4]))
    rename = Path.rename

    def refuse_fresh(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="expected to write"):
        patch.setattr(Path, "rename", refuse_fresh)
        replace_store(tmp_path / "data", tmp_path / "fresh")
    assert open_store(tmp_path / "data").digest == old.digest
    replace_store(tmp_path / "data", tmp_path / "fresh")
    assert open_store(tmp_path / "data").digest == new.digest
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_remove_store_spares_foreign_files(tmp_path: Path, make_store) -> None:
    """Catches a --force that deletes a folder of somebody else's work."""
    write_store(tmp_path / "data", make_store([2, 3]))
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"found thesis\.tex too"):
        remove_store(tmp_path / "data")
    assert (tmp_path / "data" / "thesis.tex").exists() and (tmp_path / "data" / "rewards.npy").exists()
    (tmp_path / "data" / "thesis.tex").unlink()
    remove_store(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def rewrite(folder: Path, name: str, array: np.ndarray, *, consistent: bool) -> None:
    """Replaces an array; `consistent` also repairs the manifest, hash and digest, as a careful forger would."""
    np.save(folder / f"{name}.npy", array)
    if consistent:
        store_manifest = json.loads((folder / "manifest.json").read_text())
        entry = store_manifest["arrays"][name]
        entry |= {"dtype": str(array.dtype), "shape": list(array.shape)}
        entry["sha256"] = hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()
        spec = open_store_spec(store_manifest)
        store_manifest["digest"] = content_digest(
            spec, store_manifest["has_final_observation"], store_manifest["arrays"]
        )
        (folder / "manifest.json").write_text(json.dumps(store_manifest))


def open_store_spec(manifest: dict):
    from marl_flow.interfaces import TaskSpec

    return TaskSpec.from_json(manifest["task"])


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def nan_in(name: str):
    def damage(folder: Path) -> None:
        array = np.load(folder / f"{name}.npy")
        array[1, 1] = np.inf
        rewrite(folder, name, array, consistent=True)

    return damage


DAMAGES = {
    "missing array": (lambda f: (f / "rewards.npy").unlink(), "rewards.npy: expected a file, found none"),
    "truncated array": (
        lambda f: os.truncate(f / "observations.npy", (f / "observations.npy").stat().st_size - 8),
        r"observations.npy: expected 296 bytes for float32 \[7, 2, 3\], found 288",
    ),
    "empty file": (lambda f: os.truncate(f / "actions.npy", 0), "actions.npy: expected a readable .npy file"),
    "grown array": (
        lambda f: (f / "rewards.npy").write_bytes((f / "rewards.npy").read_bytes() + b"\0" * 4),
        r"rewards.npy: expected 168 bytes for float32 \[5, 2\], found 172",
    ),
    "another dtype": (
        lambda f: rewrite(f, "rewards", np.zeros((5, 2)), consistent=False),
        r"rewards: expected float32 \[5, 2\], found float64 \[5, 2\]",
    ),
    "another shape": (
        lambda f: rewrite(f, "rewards", np.zeros((4, 2), np.float32), consistent=False),
        r"rewards: expected float32 \[5, 2\], found float32 \[4, 2\]",
    ),
    "another dtype, manifest agrees": (
        lambda f: rewrite(f, "rewards", np.zeros((5, 2)), consistent=True),
        r"rewards: expected float32 \[5, 2\].*found float64",
    ),
    "another shape, manifest agrees": (
        lambda f: rewrite(f, "observations", np.zeros((7, 3, 3), np.float32), consistent=True),
        r"observations: expected float32 \[7, 2, 3\].*found float32 \[7, 3, 3\]",
    ),
    "python objects": (
        lambda f: rewrite(f, "rewards", np.array([[None, None]] * 5), consistent=True),
        "rewards.npy: expected plain numbers, found object",
    ),
    "flipped bit": (lambda f: flip(f / "actions.npy", 140), "actions: expected sha256 .*, found"),
    "not finite": (nan_in("observations"), r"observations: expected finite numbers, found inf at \[1, 1, 0\]"),
    "offsets that fall": (
        lambda f: rewrite(f, "offsets", np.array([0, 6, 5]), consistent=True),
        "offsets: expected .* found 5 at position 2",
    ),
    "offsets that stop short": (
        lambda f: rewrite(f, "offsets", np.array([0, 2, 4]), consistent=True),
        r"observations: expected float32 \[6, 2, 3\]",
    ),
    "edited manifest": (lambda f: edit(f, has_final_observation=False), "digest does not match"),
    "wrong counts": (lambda f: edit(f, steps=6), "expected 2 episodes of 6 steps, found 2 of 5"),
    "another format": (lambda f: edit(f, format_version=99), "expected format_version 1, found 99"),
    "no digest": (lambda f: (f / "manifest.json").write_text("{}"), r"expected the entries .*'digest'"),
    "malformed task": (lambda f: edit(f, task={"agents": []}), "expected a task and array entries"),
    "no rewards entry": (lambda f: edit(f, arrays={}), "expected the arrays .*, found"),
    "garbled manifest": (lambda f: (f / "manifest.json").write_text("{"), "expected a readable manifest.json"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "expected a readable manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, make_store, damage: str) -> None:
    """Catches training on a dataset that is not the one its manifest describes."""
    write_store(tmp_path / "data", make_store([2, 3]))
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "data")
    with pytest.raises(UserError, match=message) as caught:
        open_store(tmp_path / "data", dataset_id="native/mpe/simple_spread/expert-v1")
    assert "rebuild it with `marl-flow data build native/mpe/simple_spread/expert-v1 --force`" in str(caught.value)


def test_structure_is_checked_even_without_verification(tmp_path: Path, make_store) -> None:
    """Catches verify=False reading past the end of a cut file."""
    write_store(tmp_path / "data", make_store([2, 3]))
    os.truncate(tmp_path / "data" / "rewards.npy", 150)
    with pytest.raises(UserError, match="found 150"):
        open_store(tmp_path / "data", verify=False)


def test_another_dataset_in_its_place_is_noticed(tmp_path: Path, make_store) -> None:
    """Catches data of one quality reported as another's."""
    write_store(tmp_path / "data", make_store([2, 3]))
    with pytest.raises(UserError, match=r"expected native/mpe/simple_spread/random-v1, found native/.*/expert-v1"):
        open_store(tmp_path / "data", dataset_id="native/mpe/simple_spread/random-v1")
