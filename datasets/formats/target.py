"""A path to export to: a temporary neighbour while it is written, under its own name once it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marl_flow.interfaces import UserError


@contextmanager
def new_path(target: Path) -> Iterator[Path]:
    """Yields a path, not there yet, that becomes `target` at the end; an error leaves nothing behind."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} already exists; remove it or choose another path to export to")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            yield partial / target.name
            if target.exists():
                raise UserError(f"{target} was made meanwhile by another process; remove it or choose another path")
            (partial / target.name).rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"expected to write {target}, found: {error.strerror or error}; free some space or choose another place"
        ) from error
