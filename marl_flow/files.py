"""Files: written whole or not at all, locked, read back with clear errors; and disks that are full or read-only."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

SPARE_BYTES = 64 << 20
"""Left free on the disk by whatever checks for room."""
ANOTHER_PLACE = "choose another place (MARL_FLOW_DATA sets the data root)"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_UNFINISHED = re.compile(r"(?P<name>.+)\.writing-[0-9a-f]{8}")


def user_path(path: str | Path) -> Path:
    """A path that a user wrote: `~` at its beginning is the home directory, also where no shell has replaced it."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: expected the home directory that ~ stands for, found none; set HOME, or write the whole path"
        ) from error


class InUse(UserError):
    """Another process holds the lock."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that gets the name `path` at the end of the block: on disk and whole, or as it was before.

    It is written beside `path`, under a name of its own that nobody can guess.
    """
    temporary = path.with_name(f"{path.name}.writing-{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = os.fdopen(os.open(temporary, flags, 0o666), "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """The file holds all of `data`, on disk, or is as it was before."""
    with atomic_file(path) as file:
        file.write(data)


def unfinished_writes(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that killed processes left in a folder while writing atomically, each with the name it was to get."""
    for path in folder.glob("*.writing-*"):
        if match := _UNFINISHED.fullmatch(path.name):
            yield path, match["name"]


def sync_folder(folder: Path) -> None:
    """Returns when the names of a folder's files are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically."""
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file. A file that cannot be read is a UserError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object, found: {error}; delete the file") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(record).__name__}; delete the file")
    return record


@contextmanager
def disk_errors(path: Path, remedy: str = ANOTHER_PLACE) -> Iterator[None]:
    """Turns a disk that cannot be written into a UserError that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected to write {path}, found: {error.strerror or error}; free some space or {remedy}"
        ) from error


def require_room(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises a UserError when the disk of an existing folder has no room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise UserError(
            f"{purpose}: expected {needed_bytes + SPARE_BYTES:,} free bytes in {folder}, found {free:,}; free some "
            f"space or {ANOTHER_PLACE}"
        )


@contextmanager
def lock_file(path: Path, purpose: str, remedy: str = ANOTHER_PLACE) -> Iterator[None]:
    """Holds a lock file, made with its folder where absent, inside the block; the kernel releases it however the
    process ends. A lock that another process holds is an `InUse` error, which names `purpose` and that process."""
    with disk_errors(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        with disk_errors(path, remedy):
            locked = lock_open_file(file, wait=False)
        if not locked:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InUse(
                f"{purpose}: expected nobody else at it, found it in use by process {owner}; wait for it, stop it, or "
                f"{remedy}"
            )
        with disk_errors(path, remedy):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def lock_open_file(file: IO[Any], *, wait: bool) -> bool:
    """Locks an open file until it is closed; False where another process holds it and `wait` is false.

    A file system without locks (some network disks) leaves a warning, and the file counts as locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "%s: its file system has no locks (%s), so nothing keeps two processes from writing here at once; make "
            "sure that only one does",
            file.name,
            error.strerror,
        )
    return True


@dataclass(frozen=True, kw_only=True)
class NpyFile:
    """The checked header of a `.npy` file: what it says is in it, and from which byte on."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    def map(self, mode: str) -> np.ndarray:
        """The array, memory-mapped ("r" read-only, "c" copy-on-write)."""
        order = "F" if self.fortran_order else "C"
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape, order)  # type: ignore[call-overload]


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NPY_ERRORS = (OSError, ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError)


def open_npy(path: Path) -> NpyFile:
    """The header of a `.npy` file of plain numbers whose size is what it says; else a UserError that names the file."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _NPY_HEADERS:
                raise ValueError(f"format version {version}")
            shape, fortran_order, dtype = _NPY_HEADERS[version](file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"{path.name}: expected a file, found none") from None
    except (*_NPY_ERRORS, tokenize.TokenError) as error:
        raise UserError(f"{path.name}: expected a readable .npy file, found: {error!r}") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise UserError(f"{path.name}: expected plain numbers, found {dtype}; pickled objects are never read")
    if not shape or any(isinstance(length, bool) or length < 0 for length in shape):
        raise UserError(f"{path.name}: expected rows of numbers, found shape {list(shape)}")
    expected = offset + dtype.itemsize * math.prod(shape)
    if size != expected:
        raise UserError(
            f"{path.name}: expected {expected:,} bytes for {dtype} {list(shape)}, found {size:,}; the file was cut or "
            "written to"
        )
    return NpyFile(path=path, dtype=dtype, shape=shape, fortran_order=fortran_order, offset=offset)
