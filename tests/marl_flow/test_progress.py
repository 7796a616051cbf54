"""Progress on terminals and in logs."""

from __future__ import annotations

import sys

import pytest

from marl_flow import progress


def test_a_log_gets_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches logs that are redraws for the most part, a line an update, and a last line that is not there."""
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.progress_bar("bc on data", "updates", total=100, initial=10) as bar:
        for _ in range(90):
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and "\r" not in captured.err and 3 <= len(lines) <= 5
    assert lines[0].startswith("bc on data: 40/100 updates, ") and lines[0].endswith(" s, loss 0.5")
    assert lines[-1].startswith("bc on data: 100/100 updates, ")


def test_nothing_is_written_without_work_or_without_a_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a line for work that was there already, and a crash where standard error is closed."""
    progress.progress_bar("done", "updates", total=3).close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", None)
    with progress.progress_bar("closed", "updates", total=3) as bar:
        bar.update(3)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches plain lines where a bar could be drawn."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_bar("bc on data", "updates", total=3) as bar:
        bar.update(3)
    assert "\r" in capsys.readouterr().err
