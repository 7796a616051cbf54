"""Progress of long work on standard error: a bar on a terminal or in a notebook, elsewhere a plain line now and then.

A log without a terminal would keep every redraw of a bar; there a line is written every LINE_SECONDS and at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

LINE_SECONDS = 30.0
"""Seconds between two lines of a log."""


class Bar(Protocol):
    """What a progress bar does: tqdm's, as far as it is used here."""

    n: Any
    total: Any

    def update(self, n: int = 1) -> Any: ...
    def set_postfix(self, ordered_dict: Mapping[str, str], refresh: bool = False) -> Any: ...
    def close(self) -> Any: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any: ...


def progress_bar(title: str, unit: str, *, total: int | None = None, initial: int = 0, scale: bool = False) -> Bar:
    """A bar that begins at `initial`; unit: e.g. updates. scale: show counts as 1.5M."""
    if _in_notebook():
        from tqdm.auto import tqdm
    elif sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm
    else:
        return Lines(title, unit, total=total, initial=initial, scale=scale)
    unit = unit if scale else f" {unit}"
    return tqdm(total=total, initial=initial, desc=title, unit=unit, unit_scale=scale, dynamic_ncols=True)


class Lines:
    """A bar of plain lines: `bc native/...: 300/300 updates, 12 s, critic_loss 0.53`."""

    def __init__(self, title: str, unit: str, *, total: int | None, initial: int = 0, scale: bool = False) -> None:
        self.title, self.unit, self.total, self.n, self.scale = title, unit, total, initial, scale
        self._postfix = ""
        self._start = self._last = time.monotonic()
        self._written: int | None = None

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._write()

    def set_postfix(self, ordered_dict: Mapping[str, str], refresh: bool = False) -> None:
        self._postfix = "".join(f", {name} {value}" for name, value in ordered_dict.items())

    def close(self) -> None:
        """Writes the last line, unless it stands there already or nothing was done."""
        if self._written != self.n and self.n:
            self._write()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        self._last, self._written = time.monotonic(), self.n
        count = self._count(self.n) + ("" if self.total is None else f"/{self._count(self.total)}")
        text = f"{self.title}: {count} {self.unit}, {self._last - self._start:.0f} s{self._postfix}\n"
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()

    def _count(self, number: int) -> str:
        return f"{number / 1e6:.1f}M" if self.scale else str(number)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
