"""Tasks in processes of their own: no process outlives the program that started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import time
from marl_flow.commands.workers import as_done
list(as_done(time.sleep, [120, 120], 2))
"""


def children_of(process: int) -> set[int]:
    """Processes that a process started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_no_worker_outlives_a_killed_program() -> None:
    """Catches trainings that go on for hours after their main program was killed."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM]) as program:
        deadline = time.monotonic() + 60
        while len(workers := children_of(program.pid)) < 3:  # two workers, and the tracker of shared resources
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.2)
        time.sleep(6)  # the workers have imported what they need and are at work
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive := [worker for worker in workers if is_alive(worker)]:
        assert time.monotonic() < deadline, f"{alive} go on without the program"
        time.sleep(0.2)
