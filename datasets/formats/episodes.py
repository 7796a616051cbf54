"""From rows of a published file to episodes: where they are cut, and the pieces of a store they become.

Every reader opens its layout as a `Source` of one or more `Part`s, whose rows hold whole episodes end to end:

    row                   0   1   2 | 3   4 | (5  6)       a tail without an end is no episode: it is left out, as in
    end                           *       *                the published loaders, and said so in log and provenance
    episode               0   0   0 | 1   1
    Rows.steps            r0  r1  r2| r3  r4               observations, actions, ...: [sum T, ...]
    Rows.finals                   f0|     f1               what the last steps led to: [K, ...], where it is known
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.layout import FRAME_ARRAYS
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec, UserError

PIECE_ROWS = 50_000
"""Rows read at once, or one episode where that is longer: what bounds the memory of reading and writing."""

NEXT_TOLERANCE = 1e-6
"""By which a stored next observation may differ from the next row, relative to 1 or its size: rounding to float32."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring episodes of a part: their numbers, their rows, and their offsets [k + 1] from the first row on."""

    episodes: slice
    rows: slice
    offsets: np.ndarray

    @property
    def last_rows(self) -> np.ndarray:
        """Last step of each episode, from the run's first row on, [k]."""
        return self.offsets[1:] - 1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Arrays of a run by their name in a store: steps [sum T, ...] and final frames [k, ...]."""

    steps: Mapping[str, np.ndarray]
    finals: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Episodes that lie end to end in the source. lengths [K] int64; terminated [K] bool; `read` reads some of them."""

    lengths: np.ndarray
    terminated: np.ndarray
    read: Callable[[Run], Rows]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published dataset, opened and checked in structure; its values are checked while they are read."""

    spec: TaskSpec
    has_final_observation: bool
    parts: Sequence[Part]
    files: Sequence[Path]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def runs(lengths: np.ndarray) -> Iterator[Run]:
    """Runs of at most PIECE_ROWS rows (or one episode), in order, over episodes of these lengths [K]."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    first = 0
    while first < len(lengths):
        fitting = int(np.searchsorted(offsets, offsets[first] + PIECE_ROWS, side="right")) - 1
        last = max(first + 1, fitting)
        rows = slice(int(offsets[first]), int(offsets[last]))
        yield Run(episodes=slice(first, last), rows=rows, offsets=offsets[first : last + 1] - offsets[first])
        first = last


def pieces(source: Source, dataset_id: str) -> Iterator[EpisodeStore]:
    """Stores in memory that hold the source's episodes, in order."""
    for part in source.parts:
        for run in runs(part.lengths):
            rows = part.read(run)
            arrays: dict[str, Any] = {
                name: frames(array, run.offsets, rows.finals.get(name)) if name in FRAME_ARRAYS else array
                for name, array in rows.steps.items()
            }
            yield EpisodeStore(
                spec=source.spec,
                dataset_id=dataset_id,
                offsets=run.offsets,
                terminated=part.terminated[run.episodes],
                has_final_observation=source.has_final_observation,
                **arrays,
            )


def frames(steps: np.ndarray, offsets: np.ndarray, finals: np.ndarray | None) -> np.ndarray:
    """Frames [sum(T + 1), ...] from steps [sum T, ...] and final frames [k, ...]; None repeats each last step."""
    lengths = np.diff(offsets)
    result = np.empty((len(steps) + len(lengths), *steps.shape[1:]), dtype=steps.dtype)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    result[np.arange(len(steps)) + episode] = steps
    result[offsets[1:] + np.arange(len(lengths))] = steps[offsets[1:] - 1] if finals is None else finals
    return result


def cut(ends: np.ndarray, rows: int, max_steps: int) -> tuple[np.ndarray, int]:
    """Lengths [K] of episodes that end where a row is flagged or the limit is reached, and the rows left over.

    ends: the flagged rows, ascending.
    """
    lengths = []
    for stretch in np.diff(ends, prepend=-1):  # rows up to and including each flagged one
        lengths += [max_steps] * int((stretch - 1) // max_steps) + [int((stretch - 1) % max_steps) + 1]
    whole, left = divmod(rows - (int(ends[-1]) + 1 if len(ends) else 0), max_steps)
    return np.array(lengths + [max_steps] * whole, dtype=np.int64), left


def check_lengths(lengths: np.ndarray, spec: TaskSpec, where: str) -> None:
    """Raises unless every episode has at least one step and none exceeds the task's limit."""
    wrong = np.flatnonzero((lengths < 1) | (lengths > spec.max_steps))
    if wrong.size:
        raise UserError(
            f"{where}: expected episodes of 1 to {spec.max_steps} steps ({spec.task_id}), "
            f"found {lengths[wrong[0]]} in episode {wrong[0]}"
        )


def report_tail(left: int, kept: int, where: str) -> None:
    """Says that rows after the last episode's end are left out; raises where nothing else is there."""
    if not kept:
        raise UserError(f"{where}: expected at least one episode that ends, found {left} rows without an end")
    if left:
        logger.warning("%s: the last %d rows have no end and are left out; %d episodes are kept", where, left, kept)


def flagged(columns: Sequence[Column], rows: int, where: str) -> np.ndarray:
    """Rows [E] that all agents flag; raises where only some do. Columns are [rows] or [rows, N]; read in pieces."""
    found = []
    for start in range(0, rows, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, rows)
        flags = np.concatenate([column.flags(start, stop).reshape(stop - start, -1) for column in columns], axis=1)
        some = flags.any(axis=1)
        torn = some & ~flags.all(axis=1)
        if torn.any():
            row = start + int(np.argmax(torn))
            raise UserError(f"{where}: expected the same flag for every agent, found {flags[row - start]} at row {row}")
        found.append(start + np.flatnonzero(some))
    return np.concatenate(found)


def final_rows(current: np.ndarray, following: np.ndarray, run: Run, where: str) -> np.ndarray:
    """Final frames [k, ...] out of the stored next frames [sum T, ...]; all others must be the next row's `current`.

    That they are proves that the rows are in order and the episodes cut where they should be.
    """
    inside = np.ones(len(current), dtype=bool)
    inside[run.last_rows] = False
    rows = np.flatnonzero(inside)
    found, expected = following[rows], current[rows + 1]
    if not np.array_equal(found, expected):
        with np.errstate(over="ignore", invalid="ignore"):
            far = np.abs(np.subtract(found, expected, dtype=np.float64))
            wrong = far > NEXT_TOLERANCE * np.maximum(1.0, np.abs(expected))
        if wrong.any():
            row = run.rows.start + int(rows[np.argwhere(wrong)[0, 0]])
            raise UserError(
                f"{where}: expected row {row} to lead to what row {row + 1} of the same episode shows, found another; "
                "the rows are out of order, or the task's step limit is not the data's"
            )
    return following[run.last_rows]
