"""A place to export to: a temporary neighbour while it is written, the asked-for name once it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marl_flow.interfaces import UserError


@contextmanager
def new_place(target: Path) -> Iterator[Path]:
    """Yields a path, not there yet, that becomes `target` at the end; an error leaves nothing behind."""
    if target.exists() or target.is_symlink():
        raise UserError(
            f"expected a free place to export to, found {target} already there; remove it or choose another"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            yield partial / target.name
            if target.exists():
                raise UserError(f"expected a free place, found {target} made meanwhile; remove it or choose another")
            (partial / target.name).rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"expected to write {target}, found: {error.strerror or error}; free some space or choose another place"
        ) from error
