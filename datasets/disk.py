"""Writing to a disk that may be full, read-only, or cut off: room is asked for first, faults become one message."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marl_flow.interfaces import UserError

SPARE_BYTES = 64 << 20
"""Left free on the disk by whatever asks for room."""


class Busy(UserError):
    """Another process is at work on the same thing."""


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turns a disk that cannot be written into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected to write {place}, found: {error.strerror or error}; free some space or choose another place "
            "(MARL_FLOW_DATA sets the data root)"
        ) from error


def require_room(place: Path, needed_bytes: int, purpose: str) -> None:
    """Raises a UserError when the disk of an existing folder has no room for that many bytes."""
    free = shutil.disk_usage(place).free
    if needed_bytes + SPARE_BYTES > free:
        raise UserError(
            f"{purpose}: expected {needed_bytes + SPARE_BYTES:,} free bytes in {place}, found {free:,}; free some "
            "space or choose another place (MARL_FLOW_DATA sets the data root)"
        )


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """The file holds all of the record, on disk, or is as it was before."""
    temporary = path.with_name(f"{path.name}.writing-{os.getpid()}")  # two processes may write the same record
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The record in a file; None where there is no file. One that cannot be read is an error, never an absence."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected a readable record in {path}, found: {error}; delete the file") from error
    if not isinstance(record, dict):
        raise UserError(f"expected a record in {path}, found {type(record).__name__}; delete the file")
    return record


@contextmanager
def alone(path: Path, purpose: str) -> Iterator[None]:
    """Holds a lock file inside the block; the kernel releases it however the process ends."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise Busy(
                f"{purpose}: expected to be alone, found process {owner} at it; wait for it or stop it"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
