"""Writing arrays of one's own: what comes back, what memory holds, and every kind of episode that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marl_flow import datasets
from marl_flow.datasets import user_data
from marl_flow.interfaces import UserError

MINE = "user/mpe/simple_spread/mine-v1"


def episode(steps: int, number: int = 0, **changes: Any) -> dict[str, Any]:
    """Frame t of episode k shows 100 k + t; actions and rewards are t / 10."""
    shown = 100.0 * number + np.arange(steps + 1)
    small = np.arange(steps) / 10
    return {
        "observations": np.tile(shown[:, None, None], (1, 2, 3)),
        "actions": np.tile(small[:, None, None], (1, 2, 2)),
        "rewards": np.tile(small[:, None], (1, 2)),
        "terminated": number % 2 == 1,
    } | changes


@pytest.mark.parametrize("piece_steps", [1, 3, 50_000])
def test_what_is_written_is_read(piece_steps: int, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches episodes in another order, cut at other places, or merged where pieces meet."""
    monkeypatch.setattr(user_data, "PIECE_STEPS", piece_steps)
    store = datasets.write(
        MINE, (episode(t, k) for k, t in enumerate([2, 4, 1])), make_task(), root=tmp_path, description="by hand"
    )
    assert store.lengths.tolist() == [2, 4, 1] and store.terminated.tolist() == [False, True, False]
    expected = [0, 1, 2, 100, 101, 102, 103, 104, 200, 201]
    np.testing.assert_array_equal(store.observations[:, 1, 2], expected)
    np.testing.assert_allclose(store.rewards[:, 0], [0, 0.1, 0, 0.1, 0.2, 0.3, 0])
    assert store.provenance["description"] == "by hand" and store.observations.dtype == np.float32
    assert datasets.load(MINE, tmp_path).digest == store.digest


def test_a_generator_is_read_in_pieces(make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches holding all episodes in memory before the first is written."""
    monkeypatch.setattr(user_data, "PIECE_STEPS", 4)
    written: list[int] = []

    def generate() -> Iterator[dict[str, Any]]:
        for number in range(4):
            written.append(len(list(tmp_path.rglob("rewards.npy"))))
            yield episode(4, number)

    datasets.write(MINE, generate(), make_task(), root=tmp_path)
    assert written == [0, 1, 1, 1]


def test_lists_and_tensors_and_whole_numbers_are_arrays_too(make_task, tmp_path: Path) -> None:
    """Catches refusing what anybody would take for numbers."""
    given = episode(2)
    mixed = {
        "observations": torch.from_numpy(given["observations"]),
        "actions": given["actions"].tolist(),
        "rewards": np.array([[1, 2], [3, 4]]),
        "terminated": np.True_,
        "state": None,
    }
    store = datasets.write(MINE, [mixed], make_task(), root=tmp_path)
    assert store.rewards.tolist() == [[1, 2], [3, 4]] and store.terminated.tolist() == [True]


def test_masks_states_and_choices_are_written(make_task, tmp_path: Path) -> None:
    """Catches an optional array left out, and choices stored as numbers."""
    mask = np.zeros((3, 2, 5), bool)
    mask[..., 1] = True
    given = episode(2, actions=np.ones((2, 2), np.uint8), action_mask=mask, state=np.ones((3, 4)))
    store = datasets.write(MINE, [given, given], make_task(discrete=True, state=True), root=tmp_path)
    assert store.actions.dtype == np.int64 and store.state is not None and store.action_mask is not None
    assert store.state.shape == (6, 4) and store.action_mask.sum() == 12


def test_absent_final_observations_are_said_and_kept_apart(make_task, tmp_path: Path) -> None:
    """Catches the last seen frame taken for the one after the last step."""
    given = episode(3)
    given["observations"] = given["observations"][:-1]
    with pytest.raises(UserError, match=r"episode 0: observations: expected 4 rows for 3 steps.*has_final_observation"):
        datasets.write(MINE, [given], make_task(), root=tmp_path)
    store = datasets.write(MINE, [given], make_task(), root=tmp_path, has_final_observation=False)
    assert not store.has_final_observation and store.observations[:, 0, 0].tolist() == [0, 1, 2, 2]


def changed(name: str, change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    given = episode(3)
    return given | {name: change(given[name])}


def with_entry(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[1] = value
    return array


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no rewards": ({name: episode(3)[name] for name in ("observations", "actions")}, "expected the entries obs"),
    "unknown entry": (episode(3, dones=np.zeros(3)), "expected the entries .* found .*dones"),
    "agents": (changed("observations", lambda a: a[:, :1]), r"observations: expected float32 \[4, 2, 3\]"),
    "features": (changed("observations", lambda a: a[..., :2]), r"expected float32 \[4, 2, 3\].*found .* \[4, 2, 2\]"),
    "team reward": (changed("rewards", lambda a: a[:, 0]), r"rewards: expected float32 \[3, 2\]"),
    "steps": (changed("actions", lambda a: a[:-1]), r"actions: expected float32 \[3, 2, 2\]"),
    "no steps": (episode(0), "offsets: expected .*at least one step"),
    "too long": (episode(7), r"expected at most 6 steps \(mpe/simple_spread\), found 7"),
    "not finite": (changed("rewards", lambda a: with_entry(a, np.nan)), "rewards: expected finite numbers, found nan"),
    "too large": (changed("rewards", lambda a: with_entry(a, 1e300)), "rewards: expected finite numbers, found inf"),
    "out of bounds": (changed("actions", lambda a: with_entry(a, 1.5)), "found .* at episode 1, step 1, agent_0"),
    "text": (changed("rewards", lambda a: a.astype(str)), "rewards: expected numbers, found <U"),
    "objects": (changed("rewards", lambda a: [[None, 1]] * 3), "rewards: expected numbers, found object"),
    "flag a step": (episode(3, terminated=np.zeros(3, bool)), r"terminated: expected one bool, found an array \[3\]"),
    "flag as number": (episode(3, terminated=1.0), "terminated: expected true or false, found float64"),
    "a number": (episode(3, rewards=1.0), "rewards|offsets"),
    "another array": (episode(3, state=np.zeros((4, 4))), "expected .* as in the first episode, found .*state"),
    "ragged observations": ({**episode(3), "observations": [[1.0], [1.0, 2.0]]}, "observations: expected an array"),
    "scalar observations": ({**episode(3), "observations": 1.0}, "observations: expected an array with a first axis"),
    "rewards that are None": ({**episode(3), "rewards": None}, "rewards: expected"),
    "no mapping": (None, "expected a mapping from names to arrays, found NoneType"),
    "mask of continuous actions": (
        {**episode(3), "action_mask": np.ones((4, 2, 2), bool)},
        "action_mask: expected none",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_episodes_that_do_not_fit_are_named_and_nothing_is_written(fault: str, make_task, tmp_path: Path) -> None:
    """Catches a traceback of NumPy's, a message that does not say which episode, and half a dataset."""
    broken, message = FAULTS[fault]
    with pytest.raises(UserError, match=rf"(?s)^{MINE}, episode 1: .*{message}"):
        datasets.write(MINE, [episode(3), broken], make_task(), root=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_numbers_for_choices_and_no_episodes_are_refused(make_task, tmp_path: Path) -> None:
    """Catches scores or one-hot rows taken for choices, and an empty dataset."""
    with pytest.raises(UserError, match="actions: expected integers, one choice an agent, found float64"):
        datasets.write(MINE, [episode(2)], make_task(discrete=True), root=tmp_path)
    with pytest.raises(UserError, match="expected at least one episode, found none"):
        datasets.write(MINE, [], make_task(), root=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_an_error_of_the_generator_leaves_nothing(make_task, tmp_path: Path) -> None:
    """Catches half a dataset where the user's own code fails."""

    def generate() -> Iterator[dict[str, Any]]:
        yield episode(3)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        datasets.write(MINE, generate(), make_task(), root=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
