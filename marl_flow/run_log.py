"""Files of a run that only grow: metrics, results and blocks of episodes as JSON lines; and TensorBoard files.

A line is one JSON object. A process killed while writing leaves at most one half line at the end, without a line end;
the next writer removes exactly that.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from marl_flow.config import from_json
from marl_flow.files import lock_open_file
from marl_flow.interfaces import EvaluationResult, UserError

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
RESULTS = "results.jsonl"
LATER_FIELDS = {"actions_per_plan": 1}
"""Fields of `EvaluationResult` that older files lack, and their value then."""
PER_EPISODE = ("agent_returns", "team_returns", "lengths", "won")
"""Fields of `EvaluationResult` with an entry per evaluation seed; `won` may be None."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every object in the file ([] when there is none yet), a half line at the end left out; other faults raise."""
    return [record for record, _ in _records(path)]


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each object, and the offset in bytes after its line."""
    end = 0
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        end += len(line) + 1
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_no_constant)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}")
        except ValueError as error:
            if number == len(lines):
                log.warning("%s, line %d: left out, it was cut short while being written", path, number)
                return
            raise UserError(
                f"{path}, line {number}: expected one JSON object, found {error}; remove the line"
            ) from error
        yield record, end


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}, which is not finite")


def open_lines(path: Path, keep: Callable[[Mapping[str, Any]], bool] = lambda record: True) -> LineWriter:
    """A writer that appends to the file, once no other process has it open.

    First removes everything from the first line that `keep` rejects, and a half line at the end.
    """
    writer = LineWriter(path)
    length = 0
    for record, end in _records(path):
        if not keep(record):
            break
        length = end
    if path.stat().st_size < length:  # a whole object whose line end was lost
        writer.write_bytes(b"\n")
    writer.cut(length)
    return writer


class LineWriter:
    """Appends whole lines to a file that is locked until `close`; a failed write leaves the file as it was."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        lock_open_file(self._file, wait=True)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.write_bytes(b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records))

    def write_bytes(self, data: bytes) -> None:
        before = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(before)
            raise

    def cut(self, length: int) -> None:
        if self._file.seek(0, os.SEEK_END) > length:
            self._file.truncate(length)

    def sync(self) -> None:
        """Returns when every line is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class MetricsLog:
    """`metrics.jsonl`, one object with its `update` per line, and the same numbers in TensorBoard files."""

    def __init__(self, folder: Path, *, after: int, tensorboard: bool) -> None:
        """Continues after update `after`: later lines, of updates that will be repeated, are removed."""
        self._lines = open_lines(folder / METRICS, keep=lambda record: record["update"] <= after)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._lines.write([{"update": update, **values}])
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, update)

    def sync(self) -> None:
        """Returns when every line is on disk."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()


def append_results(run_folder: Path, results: Sequence[EvaluationResult]) -> Path:
    """Path of `results.jsonl`, with one line per result added; on disk on return, all of them or none."""
    path = run_folder / RESULTS
    _append(path, map(asdict, results), f"{len(results)} results")
    return path


def _append(path: Path, records: Iterable[Mapping[str, Any]], description: str) -> None:
    try:
        lines = open_lines(path)
        try:
            lines.write(records)
            lines.sync()
        finally:
            lines.close()
    except OSError as error:
        raise UserError(
            f"could not add {description} to {path} ({error.strerror}); earlier lines are as they were; free some "
            "space or make the folder writable"
        ) from error


def read_results(run_folder: Path) -> list[EvaluationResult]:
    """Every result of a run, in the order they were added; [] for a run that was not evaluated yet.

    A line with missing, unknown or wrongly typed entries, or without one entry per evaluation seed, is a UserError.
    """
    path = run_folder / RESULTS
    results = []
    for number, record in enumerate(read_lines(path), 1):
        try:
            result = from_json(EvaluationResult, {**LATER_FIELDS, **record})
            counts = {name: len(values) for name in PER_EPISODE if (values := getattr(result, name)) is not None}
            if not result.seeds or set(counts.values()) != {len(result.seeds)}:
                raise UserError(f"expected one entry per evaluation seed ({len(result.seeds)}), found {counts}")
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        results.append(result)
    return results


class BlockLog:
    """Finished blocks of one unfinished evaluation: a file of its own in the run folder, one line per block.

    `key` is a digest of everything the episodes depend on, so that an evaluation finds its own blocks only.
    """

    def __init__(self, run_folder: Path, key: str) -> None:
        self.path = run_folder / f"unfinished_{key}.jsonl"

    def read(self) -> dict[int, dict[str, Any]]:
        """Number of each block -> its episodes as they were added; a half line is left out."""
        return {line["block"]: line["episodes"] for line in read_lines(self.path)}

    def add(self, number: int, episodes: Mapping[str, Any]) -> None:
        """Adds a block; on disk on return."""
        _append(self.path, [{"block": number, "episodes": episodes}], f"block {number}")

    def remove(self) -> None:
        """Deletes the file: the result is in the results file, or is not wanted."""
        self.path.unlink(missing_ok=True)
