"""One array of a published file as a column of rows, read in pieces; every value is checked as it is read."""

from __future__ import annotations

import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marl_flow.datasets.layout import INTEGERS
from marl_flow.interfaces import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADER_ERRORS = (OSError, ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError)


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

    def floats(self, start: int, stop: int) -> np.ndarray:
        """Rows as finite float32; the file may hold 32 or 64 bits."""
        if self.dtype.kind != "f" or self.dtype.itemsize not in (4, 8):
            raise UserError(f"{self.name}: expected float32 or float64, found {self.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array(self.fetch(start, stop), dtype=np.float32)
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
    """The array in a `.npy` file, mapped read-only. Neither pickled objects nor headers that lie about sizes pass."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"format version {version}")
            shape, fortran, dtype = _HEADERS[version](file)
            start, size = file.tell(), path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path.name}: expected a file, found none") from None
    except (*_HEADER_ERRORS, tokenize.TokenError) as error:
        raise UserError(f"{path.name}: expected a readable .npy file, found: {error!r}") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise UserError(f"{path.name}: expected plain numbers, found {dtype}; pickled objects are never read")
    if not shape or any(isinstance(length, bool) or length < 1 for length in shape):
        raise UserError(f"{path.name}: expected rows of numbers, found shape {list(shape)}")
    count = 1
    for length in shape:
        count *= length  # Python integers: a header cannot make them overflow
    if size != start + count * dtype.itemsize:
        raise UserError(
            f"{path.name}: expected {start + count * dtype.itemsize:,} bytes for {dtype} {list(shape)}, "
            f"found {size:,}; the file was cut or written to"
        )
    array = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C")
    return Column(name=path.name, shape=shape, dtype=dtype, fetch=lambda begin, end: array[begin:end].view(np.ndarray))
