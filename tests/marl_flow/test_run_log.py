"""Files that only grow: half lines, dropped lines, results on disk or not at all."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from marl_flow.interfaces import EvaluationResult, UserError
from marl_flow.run_log import BlockLog, MetricsLog, append_results, open_lines, read_lines, read_results

WHOLE = b'{"update": 1, "loss": 0.5}\n{"update": 2, "loss": 0.25}\n'


def result(**changes: Any) -> EvaluationResult:
    plain = {
        "task_id": "test/tiny",
        "opponent": None,
        "dataset_id": "test/tiny/random-v1",
        "dataset_digest": "d" * 64,
        "algorithm": "bc",
        "preset": "default",
        "config_digest": "0123456789abcdef",
        "training_seed": 0,
        "update": 10,
        "protocol": "last checkpoint",
        "execution": "decentralized",
        "num_sampling_steps": None,
        "target_return": None,
        "target_rule": "none",
        "seeds": (2**62, 12),
        "agent_returns": ((0.1, 1 / 3), (1e-300, -2.0)),
        "team_returns": (0.2, -1.0),
        "lengths": (3, 4),
        "won": (True, False),
        "network_passes": 1,
        "latency_ms_p50": 0.5,
        "latency_ms_p95": 0.75,
        "device": "cpu",
        "model": "a machine",
    }
    return EvaluationResult(**{**plain, **changes})


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b"", b""),
        (b'{"update": 3, "lo', b""),
        (b'{"update": 3, "name": "\xc3', b""),  # cut inside a character
        (b'{"update": 3}', b'{"update": 3}\n'),  # only the line end is missing
    ],
)
def test_the_next_writer_takes_away_exactly_the_half_line(tmp_path: Path, tail: bytes, kept: bytes) -> None:
    """Catches a half line glued to the next one, and whole lines lost with it."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(WHOLE + tail)
    assert len(read_lines(path)) == 2 + bool(kept)
    writer = open_lines(path)
    writer.write([{"update": 4}])
    writer.close()
    assert path.read_bytes() == WHOLE + kept + b'{"update": 4}\n'


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"loss": NaN}', b'{"half": '])
def test_damage_before_the_last_line_raises(tmp_path: Path, line: bytes) -> None:
    """Catches silently skipping lines that no kill can explain."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(line + b"\n" + WHOLE)
    with pytest.raises(UserError, match=r"lines\.jsonl, line 1: expected one JSON object"):
        read_lines(path)


def test_continuing_drops_metrics_behind_the_checkpoint(tmp_path: Path) -> None:
    """Catches duplicate metrics after a resume, in the file and in TensorBoard."""
    for after, updates in ((0, (10, 20, 30)), (20, (25,))):
        metrics = MetricsLog(tmp_path, after=after, tensorboard=True)
        for update in updates:
            metrics.write(update, {"loss": 1.0 / update})
        metrics.sync()
        metrics.close()
    assert [line["update"] for line in read_lines(tmp_path / "metrics.jsonl")] == [10, 20, 25]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [10, 20, 25]


def test_numbers_that_are_not_finite_never_reach_a_file(tmp_path: Path) -> None:
    """Catches NaN in a file, which is not JSON."""
    writer = open_lines(tmp_path / "lines.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        writer.write([{"loss": 1.0}, {"loss": float("nan")}])
    writer.close()
    assert (tmp_path / "lines.jsonl").read_bytes() == b""


def test_results_come_back_as_they_went(tmp_path: Path) -> None:
    """Catches rounding, lists in place of tuples and a missing optional entry."""
    other = {"won": None, "num_sampling_steps": 3, "target_return": 512.25, "target_rule": "q", "gate_scale": 0.5}
    results = [result(), result(**other, actions_per_plan=4, network_passes=0.75)]
    append_results(tmp_path, results[:1])
    append_results(tmp_path, results[1:])
    assert read_results(tmp_path) == results
    assert read_results(tmp_path / "nowhere") == []


def test_older_results_are_of_one_action_a_plan(tmp_path: Path) -> None:
    """Catches result files of before plans were reused that can no longer be read."""
    record = dataclasses.asdict(result())
    del record["actions_per_plan"]
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert read_results(tmp_path) == [result()]


def test_blocks_come_back_and_go(tmp_path: Path) -> None:
    """Catches a half line that stops everything or is taken for a block, blocks under another key, and leftovers."""
    log, other = BlockLog(tmp_path, "a"), BlockLog(tmp_path, "b")
    blocks = {number: {"agent_returns": [[0.1, 1 / 3]], "lengths": [number], "won": None} for number in range(3)}
    for number, block in blocks.items():
        log.add(number, block)
    assert log.read() == blocks and other.read() == {}
    log.path.write_bytes(log.path.read_bytes()[:-20])
    assert log.read() == {0: blocks[0], 1: blocks[1]}
    log.add(2, blocks[2])
    assert log.read() == blocks
    log.remove()
    assert list(tmp_path.iterdir()) == []
    other.remove()  # nothing there: nothing to do


@pytest.mark.parametrize("change", [{"update": "10"}, {"extra": 1}, {"lengths": [1.5]}, {"won": None, "seeds": None}])
def test_results_are_read_strictly(tmp_path: Path, change: dict[str, Any]) -> None:
    """Catches a result of another version taken for one of ours."""
    record = json.loads(json.dumps(dataclasses.asdict(result()))) | change
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 1"):
        read_results(tmp_path)


def test_results_that_do_not_fit_on_the_disk_leave_the_file_as_it_was(tmp_path: Path) -> None:
    """Catches half a batch of results, left by a real write error."""
    append_results(tmp_path, [result()])
    before = (tmp_path / "results.jsonl").read_bytes()
    pid = os.fork()
    if pid == 0:  # a process of its own, because the limit holds for every file it writes
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, len(before) + 100))
            append_results(tmp_path, [result(), result()])
        except UserError as error:
            code = 0 if "could not add 2 results" in str(error) and "File too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_writers_take_turns(tmp_path: Path) -> None:
    """Catches two evaluations of one run cutting each other's lines as if they were half-written."""
    writer = open_lines(tmp_path / "lines.jsonl")
    with (tmp_path / "lines.jsonl").open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writer.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
