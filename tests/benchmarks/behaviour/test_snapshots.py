"""What a behaviour policy's training keeps, and what it goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from marl_flow.benchmarks.behaviour.snapshots import KeptActors, actor_file, read_record
from marl_flow.interfaces import UserError


@dataclass(frozen=True)
class Config:
    iterations: int = 10
    rate: float = 0.5


def kept(folder: Path, *iterations: int) -> KeptActors:
    """A training that kept actors at these iterations."""
    actors = KeptActors(folder, "suite/task", Config())
    for iteration in iterations:
        values = torch.full((2,), float(iteration))
        actors.keep(iteration, {"weight": values}, {"return": 1.5}, {"state": values})
    return actors


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Catches a lost row, a checkpoint that is not the last one, and a longer training that is refused."""
    kept(tmp_path, 0, 5)
    again = KeptActors(tmp_path, "suite/task", Config(iterations=20))
    state = again.resume()
    assert state is not None and state["state"].tolist() == [5.0, 5.0]
    assert [row["iteration"] for row in again.rows] == [0, 5]
    assert actor_file(tmp_path, 5).is_file() and KeptActors(tmp_path / "new", "suite/task", Config()).resume() is None


def test_rows_that_are_kept_again_replace_later_ones(tmp_path: Path) -> None:
    """Catches an actor that stands twice in the record after a kill between record and checkpoint."""
    kept(tmp_path, 0, 5)
    again = KeptActors(tmp_path, "suite/task", Config())
    again.resume()
    again.keep(5, {"weight": torch.ones(1)}, {"return": 2.5}, {"state": torch.ones(1)})
    assert read_record(tmp_path)["kept"] == [{"iteration": 0, "return": 1.5}, {"iteration": 5, "return": 2.5}]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint or record that is overwritten in place."""
    actors = kept(tmp_path, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        actors.keep(0, {"weight": torch.ones(1)}, {"return": 9.0}, {"state": torch.ones(1)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("task_id", "config", "message"),
    [
        ("suite/task", Config(rate=0.1), r"begun with other settings \(rate\); expected the same, or another folder"),
        ("suite/other", Config(), "is the training of suite/task; expected another folder"),
    ],
)
def test_another_training_is_refused(tmp_path: Path, task_id: str, config: Config, message: str) -> None:
    """Catches a training that goes on from another one's weights."""
    kept(tmp_path, 0)
    with pytest.raises(UserError, match=message):
        KeptActors(tmp_path, task_id, config).resume()
    assert json.loads((tmp_path / "record.json").read_text())["task"] == "suite/task"


def test_a_folder_without_training_says_so(tmp_path: Path) -> None:
    """Catches a traceback where nothing was trained."""
    with pytest.raises(UserError, match=r"it has no record\.json; train first"):
        read_record(tmp_path)
