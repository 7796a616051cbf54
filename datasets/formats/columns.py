"""One array of a published file as a column of rows, read in pieces; every value is checked as it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from marl_flow.datasets.layout import INTEGERS
from marl_flow.files import open_npy
from marl_flow.interfaces import UserError


@dataclass(frozen=True, kw_only=True)
class Column:
    """Rows of one array of the source, shape [rows, ...]; `fetch(start, stop)` reads rows start to stop (exclusive).

    The reading methods name the file and its row where a value is not what it should be.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[int, int], np.ndarray]

    @property
    def rows(self) -> int:
        return self.shape[0]

    def expect(self, *shape: int) -> Column:
        """The column itself, which must have this shape."""
        if self.shape != shape:
            raise UserError(f"{self.name}: expected shape {list(shape)}, found {list(self.shape)}")
        return self

    def squeezed(self) -> Column:
        """The column as [rows] where it is [rows, 1], else itself."""
        if self.shape[1:] != (1,):
            return self
        return replace(self, shape=self.shape[:1], fetch=lambda start, stop: self.fetch(start, stop)[:, 0])

    def floats(self, start: int, stop: int) -> np.ndarray:
        """Rows as finite float32. The file may hold float16, float32 or float64, which is rounded; bools; or integers,
        of which float32 must hold each exactly (all up to 2**24 are)."""
        if self.dtype.kind == "b":
            return self.flags(start, stop).astype(np.float32)
        is_integer = self.dtype.kind in "iu"
        if not is_integer and (self.dtype.kind != "f" or self.dtype.itemsize not in (2, 4, 8)):
            raise UserError(f"{self.name}: expected float16, float32, float64 or integers, found {self.dtype}")
        stored = self.fetch(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array(stored, dtype=np.float32)
            if is_integer:
                back = values.astype(np.uint64 if self.dtype.kind == "u" else np.int64)
                wrong = (np.abs(values) >= 2.0**63) | (back != stored)
                if wrong.any():
                    self.refuse(start, wrong, "integers that float32 holds exactly")
        if not np.isfinite(values).all():
            self.refuse(start, ~np.isfinite(values), "finite numbers (within float32)")
        return values

    def choices(self, start: int, stop: int, size: int) -> np.ndarray:
        """Rows as integers from 0 to size - 1, of the file's own width where torch has it."""
        if self.dtype.kind not in "iu":
            raise UserError(f"{self.name}: expected integers, one choice per agent, found {self.dtype}")
        values = np.array(self.fetch(start, stop))
        wrong = (values < 0) | (values >= size)
        if wrong.any():
            self.refuse(start, wrong, f"choices from 0 to {size - 1}")
        native = str(self.dtype) in INTEGERS and self.dtype.isnative
        return values if native else values.astype(np.int64)

    def flags(self, start: int, stop: int) -> np.ndarray:
        """Rows as bool; the file may hold bools or numbers that are all 0 or 1."""
        if self.dtype.kind not in "biuf":
            raise UserError(f"{self.name}: expected flags, found {self.dtype}")
        values = np.array(self.fetch(start, stop))
        if values.dtype == bool:
            values = values.view(np.uint8)  # a damaged file may hold other bytes than 0 and 1
        wrong = (values != 0) & (values != 1)
        if wrong.any():
            self.refuse(start, wrong, "flags, 0 or 1")
        return values.astype(bool)

    def refuse(self, start: int, wrong: np.ndarray, wanted: str) -> None:
        """Raises a UserError about the first wrong entry of rows that begin at `start`."""
        at = [int(index) for index in np.argwhere(wrong)[0]]
        row, *rest = at
        value = self.fetch(start + row, start + row + 1)[(0, *rest)]
        raise UserError(f"{self.name}: expected {wanted}, found {value} at row {start + row}, entry {rest}")


def npy_column(path: Path) -> Column:
    """The rows of the array in a `.npy` file, mapped read-only."""
    file = open_npy(path)
    if 0 in file.shape:
        raise UserError(f"{path.name}: expected rows of numbers, found shape {list(file.shape)}")
    array = file.map("r")
    return Column(
        name=path.name,
        shape=file.shape,
        dtype=file.dtype,
        fetch=lambda begin, end: array[begin:end].view(np.ndarray),
    )
