"""What the sections of the speed table share: its rows, and how something is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

REPEATS = 5
"""Rounds whose median counts."""

Run = Callable[[], int]
"""Plays something and returns how many environment steps that were."""


@dataclass(frozen=True)
class Row:
    """One measurement and its target; in seconds and per cent less is better, in all other units more."""

    name: str
    value: float
    unit: str
    target: float | None = None

    def __str__(self) -> str:
        goal, verdict = "", ""
        if self.target is not None:
            less = self.unit in ("s", "%")
            goal = f"{'<=' if less else '>='} {self.target:,.6g}"
            verdict = "met" if (self.value <= self.target if less else self.value >= self.target) else "MISSED"
        number = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:,.3g}"
        return f"{self.name:<70}{number:>14} {self.unit:<14}{goal:>14}  {verdict}"


def steps_per_second(runs: Mapping[str, Run]) -> tuple[dict[str, float], dict[str, float]]:
    """Steps per second and per CPU-second of each run: medians of REPEATS rounds after one that warms up.

    A round takes all runs in turn, so that what else the machine does is in all of a ratio's numbers.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):
        for name, run in runs.items():
            cpu_start, start = time.process_time(), time.perf_counter()
            steps = run()
            wall[name].append(steps / (time.perf_counter() - start))
            cpu[name].append(steps / (time.process_time() - cpu_start))
    by_wall, by_cpu = ({name: median(values[1:]) for name, values in times.items()} for times in (wall, cpu))
    return by_wall, by_cpu


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of REPEATS runs after one that warms the caches: other processes only ever add time."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
