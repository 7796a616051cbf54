"""HDF5 files opened with suspicion: only plain arrays inside the file itself, no larger than the file can hold.

A damaged file makes the library raise almost anything; here it becomes one message. Links out of the file, virtual and
external storage, and filters that would load a plug-in are refused before anything is read, and so is an array of which
parts were never written, which the library would fill with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets.formats.columns import Column
from marl_flow.interfaces import UserError

_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    SystemError,
)
_DEFLATE_RATIO = 1032  # the most that deflate can shrink: a larger claim is false
_CHUNK_BYTES = 1 << 30
_TEXT_BYTES = 1 << 20


def library() -> Any:
    """The h5py module."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("reading and writing HDF5 needs h5py; pip install h5py") from error
    return h5py


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """The file, open for reading."""
    h5py = library()
    if not path.is_file():
        raise UserError(f"expected an HDF5 file {path.name}, found {'a folder' if path.exists() else 'none'}")
    with _damage(path.name):
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        with _damage(path.name):
            file.close()


def names(group: Any) -> list[str]:
    """Names in a group."""
    with _damage(str(group.name)):
        return list(group)


def member(group: Any, name: str) -> Any | None:
    """What the group holds under a name (`a/b` for one in a subgroup): a group, an array, or None."""
    h5py = library()
    for part in name.split("/"):
        with _damage(name):
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if link is not None and not isinstance(link, h5py.HardLink):
                raise UserError(f"{name}: expected an array in the file itself, found a link")
            group = None if link is None else group[part]
    return group


def text_attribute(group: Any, name: str) -> str | None:
    """An attribute that holds text of fixed length, None where there is none of that name.

    Text of variable length lies in a heap, over whose damage the library (2.0.0) crashes or never returns.
    """
    with _damage(name):
        if name not in group.attrs:
            return None
        stored = group.attrs.get_id(name).get_type()
        text_type = library().h5t.TypeStringID
        if not isinstance(stored, text_type) or stored.is_variable_str() or stored.get_size() > _TEXT_BYTES:
            raise UserError(f"{name}: expected text of fixed length, at most {_TEXT_BYTES:,} bytes, found another type")
        value = group.attrs[name]
        if not isinstance(value, bytes):
            raise UserError(f"{name}: expected one text, found {type(value).__name__}")
        return value.decode()


def column(group: Any, name: str) -> Column | None:
    """The array of that name in a group, None where there is none. Its size is checked before it is believed."""
    h5py = library()
    array = member(group, name)
    if array is None:
        return None
    label = f"{group.name.rstrip('/')}/{name}".lstrip("/")
    if not isinstance(array, h5py.Dataset):
        raise UserError(f"{label}: expected an array, found a group")
    with _damage(label):
        shape, dtype = tuple(int(length) for length in array.shape or ()), array.dtype
        if dtype.kind not in "biuf" or dtype.hasobject:
            raise UserError(f"{label}: expected plain numbers, found {dtype}")
        if not shape or min(shape) < 1:
            raise UserError(f"{label}: expected rows of numbers, found shape {list(shape)}")
        _check_storage(h5py, array, label, shape, dtype)

    def fetch(start: int, stop: int) -> np.ndarray:
        with _damage(label):
            return array[start:stop]

    return Column(name=label, shape=shape, dtype=dtype, fetch=fetch)


def _check_storage(h5py: Any, dataset: Any, label: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises unless the file holds all of the array, in itself and readable without plug-ins."""
    plan = dataset.id.get_create_plist()
    claimed, stored, size = (
        math.prod(shape) * dtype.itemsize,
        dataset.id.get_storage_size(),
        dataset.file.id.get_filesize(),
    )
    layout = plan.get_layout()
    if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise UserError(f"{label}: expected an array in the file itself, found one kept in other files")
    if layout != h5py.h5d.CHUNKED:
        if stored != claimed or stored > size:
            raise UserError(f"{label}: expected {claimed:,} bytes for {dtype} {list(shape)}, found {stored:,} stored")
        return
    known = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
    filters = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if filters - known:
        raise UserError(
            f"{label}: expected gzip, lzf, shuffle or checksum filters, found number {min(filters - known)}"
        )
    chunk = plan.get_chunk()
    if math.prod(chunk) * dtype.itemsize > _CHUNK_BYTES or claimed > _DEFLATE_RATIO * size or stored > size:
        raise UserError(f"{label}: expected an array that a file of {size:,} bytes can hold, found {list(shape)}")
    wanted = math.prod(-(-length // width) for length, width in zip(shape, chunk, strict=True))
    present = dataset.id.get_num_chunks()
    if present != wanted:
        raise UserError(f"{label}: expected {wanted} stored chunks for {list(shape)}, found {present}")


@contextmanager
def _damage(label: str) -> Iterator[None]:
    """Turns what the library raises over a damaged file into one message."""
    try:
        yield
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(f"{label}: expected readable HDF5, found: {error!r}") from error
