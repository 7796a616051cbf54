"""What a behaviour policy's training writes and resumes from, and which of its snapshots are chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from marl_flow.benchmarks.behaviour.snapshots import EvaluatedSnapshots, SnapshotFolder, read_record, snapshot_file
from marl_flow.interfaces import UserError


@dataclass(frozen=True)
class Config:
    iterations: int = 10
    rate: float = 0.5


def trained(folder: Path, *iterations: int) -> SnapshotFolder:
    """A training with snapshots at these iterations."""
    snapshots = SnapshotFolder(folder, "suite/task", Config())
    for iteration in iterations:
        values = torch.full((2,), float(iteration))
        snapshots.add(iteration, {"weight": values}, {"return": 1.5}, {"state": values})
    return snapshots


def test_a_training_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Catches a lost row, a checkpoint that is not the last one, and a longer training that is refused."""
    trained(tmp_path, 0, 5)
    again = SnapshotFolder(tmp_path, "suite/task", Config(iterations=20))
    state = again.resume()
    assert state is not None and state["state"].tolist() == [5.0, 5.0]
    assert [row["iteration"] for row in again.rows] == [0, 5]
    assert (
        snapshot_file(tmp_path, 5).is_file()
        and SnapshotFolder(tmp_path / "new", "suite/task", Config()).resume() is None
    )


def test_rows_that_are_written_again_replace_later_ones(tmp_path: Path) -> None:
    """Catches a snapshot that is in the record twice after a kill between record and checkpoint."""
    trained(tmp_path, 0, 5)
    again = SnapshotFolder(tmp_path, "suite/task", Config())
    again.resume()
    again.add(5, {"weight": torch.ones(1)}, {"return": 2.5}, {"state": torch.ones(1)})
    assert read_record(tmp_path)["snapshots"] == [{"iteration": 0, "return": 1.5}, {"iteration": 5, "return": 2.5}]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint or record that is overwritten in place."""
    snapshots = trained(tmp_path, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        snapshots.add(0, {"weight": torch.ones(1)}, {"return": 9.0}, {"state": torch.ones(1)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("task_id", "config", "message"),
    [
        (
            "suite/task",
            Config(rate=0.1),
            "expected a training with the present settings, found other values of rate; choose another folder",
        ),
        ("suite/other", Config(), "expected a training of suite/other, found one of suite/task; choose another folder"),
    ],
)
def test_another_training_is_refused(tmp_path: Path, task_id: str, config: Config, message: str) -> None:
    """Catches a training that resumes from another one's weights."""
    trained(tmp_path, 0)
    with pytest.raises(UserError, match=message):
        SnapshotFolder(tmp_path, task_id, config).resume()
    assert json.loads((tmp_path / "record.json").read_text())["task"] == "suite/task"


def test_a_folder_without_training_says_so(tmp_path: Path) -> None:
    """Catches a traceback where nothing was trained."""
    with pytest.raises(UserError, match=r"found no record\.json in it; train first"):
        read_record(tmp_path)


def evaluated(training: tuple[float, ...], exact: tuple[float, ...], folder: Path) -> EvaluatedSnapshots:
    """Snapshots with these returns by training's measurement, and by the longer one."""
    record = SnapshotFolder(folder, "suite/task", Config())
    for iteration, value in enumerate(training):
        record.add(iteration, {"index": torch.tensor(iteration)}, {"return": value}, {})
    return EvaluatedSnapshots(folder, lambda weights: {"return": exact[int(weights["index"])]})


def test_neighbours_around_a_target_are_found_by_what_they_return(tmp_path: Path) -> None:
    """Catches a choice by short measurements alone, fractions the wrong way round, and a target nothing reached."""
    snapshots = evaluated((10.0, 30.0, 10.0, 40.0), (10.0, 15.0, 12.0, 52.0), tmp_path / "a")
    assert snapshots.single_or_neighbours(20.0, 0.6) == {2: pytest.approx(0.8), 3: pytest.approx(0.2)}
    assert snapshots.single_or_neighbours(53.0, 1.6) == {3: 1.0}  # it returns 52, nearly enough
    exact = (10.0, 12.0, 99.0, 24.0, 28.0, 60.0)
    apart = evaluated((10.0, 30.0, 30.0, 30.0, 10.0, 40.0), exact, tmp_path / "b")
    expected = {1: pytest.approx(0.5), 3: pytest.approx(0.5)}  # 99 is not measured again
    assert apart.single_or_neighbours(18.0, 0.5) == expected
    with pytest.raises(
        UserError, match=r"brought to 60\.0, found none among returns from 10\.0 to 40\.0; train longer"
    ):
        snapshots.single_or_neighbours(60.0, 1.8)


def test_snapshots_around_the_first_pass_meet_the_target(tmp_path: Path) -> None:
    """Catches a pass that only the short measurement saw, fractions the wrong way round, and a best snapshot that is
    refused although it falls short by less than allowed."""
    snapshots = evaluated((1.0, 3.0, 6.0, 7.0), (1.0, 4.0, 3.0, 8.0), tmp_path)
    fractions = snapshots.around_first_pass(5.0, 0.25)
    assert fractions == {1: pytest.approx(0.75), 3: pytest.approx(0.25)}
    assert snapshots.choices(5.0, fractions)["actors"] == [
        {"iteration": 1, "return": 4.0, "share": 0.75},
        {"iteration": 3, "return": 8.0, "share": 0.25},
    ]
    assert snapshots.around_first_pass(8.2, 0.25) == {3: 1.0}
    with pytest.raises(UserError, match="train longer"):
        snapshots.around_first_pass(8.3, 0.25)


def test_a_beginning_meets_its_target(tmp_path: Path) -> None:
    """Catches fractions that do not sum to 1 or whose mean is another."""
    exact = (10.0, 0.0, 22.0, 26.0, 90.0)
    snapshots = evaluated(exact, exact, tmp_path)
    chosen = snapshots.beginning(20.0)  # 10 + 20 below, then 2 and 6 above, and 22 of 70
    assert list(chosen) == [0, 1, 2, 3, 4] and sum(chosen.values()) == pytest.approx(1.0)
    assert sum(fraction * exact[index] for index, fraction in chosen.items()) == pytest.approx(20.0)
    assert chosen[4] == pytest.approx(chosen[0] * 22 / 70)
    with pytest.raises(UserError, match="start from other weights"):
        snapshots.beginning(-10.0)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    """Catches a traceback from a folder that was written before the record's format changed."""
    (tmp_path / "record.json").write_text(json.dumps({"task": "suite/task", "config": {}, "kept": []}))
    with pytest.raises(UserError, match="found no snapshots; the folder was written by another version of marl_flow"):
        read_record(tmp_path)
