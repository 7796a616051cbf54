"""Measures what the suite promises about its speed and prints one table.

python -m marl_flow.benchmarks.speed [mpe] [mamujoco] [smac] [windows] [training] [--out FOLDER]

With --out the rows are also written into FOLDER/results.csv; `python -m marl_flow.benchmarks.tables add` publishes it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from marl_flow.benchmarks.report import csv_text
from marl_flow.benchmarks.speed import mpe, windows
from marl_flow.config import nearest
from marl_flow.interfaces import UserError

Row = Mapping[str, Any]
"""name, value, unit, target (None: none was set). In seconds and per cent less is better, in all else more."""

TRAINED = (("coflow", "compact", 60), ("bc", "default", 1000), ("ma_td3_bc", "default", 1000))
"""Algorithm, preset and updates of the training section."""


def mpe_rows() -> list[Row]:
    """Environment steps per CPU-second of a large batch, per second of one environment."""
    rows: list[Row] = []
    for one in mpe.rows():
        prey = "" if one["opponent"] == "none" else f", {one['opponent']} prey"
        single = one["num_envs"] == 1
        value, unit = (one["steps_per_second"], "steps/s") if single else (one["steps_per_cpu_second"], "steps/CPU-s")
        name = f"{one['task']}{prey}, {one['num_envs']:,} at once"
        rows.append({"name": name, "value": value, "unit": unit, "target": one["target"]})
    return rows


def mamujoco_rows() -> Iterator[Row]:
    """Environment steps per second, and as ratios to the libraries' measured beside them."""
    from marl_flow.benchmarks.speed import mamujoco

    yield from mamujoco.rows()


def smac_rows() -> Iterator[Row]:
    """Environment steps per CPU-second of random play, as ratios to SMAClite's where it is, and memory."""
    from marl_flow.benchmarks.speed import smac

    yield from smac.rows()
    if not smac.has_lite():
        print("  " + smac.LITE_HINT, flush=True)


def training_rows() -> list[Row]:
    """Share of training time spent outside networks and optimisers: drawing batches, logging, checkpoints."""
    from marl_flow import baselines, envs, training
    from marl_flow.commands.data import training_data
    from marl_flow.datasets import native

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        store = native.build("mpe/simple_spread/random", Path(place) / "data", envs.make, episodes=2000)
        for name, preset, updates in TRAINED:
            kind = baselines.get(name)
            config = training.TrainConfig(updates=updates, tensorboard=True)
            folder = Path(place) / name
            result = training.train(folder, kind, kind.presets[preset], config, training_data(store), preset=preset)
            seconds = result.header.seconds
            outside = 100.0 * (1.0 - seconds["update"] / seconds["total"])
            rows.append(
                {"name": f"{name} ({preset}), time outside updates", "value": outside, "unit": "%", "target": 5}
            )
            speed = updates / seconds["total"]
            rows.append({"name": f"{name} ({preset}), speed", "value": speed, "unit": "updates/s", "target": None})
    return rows


SECTIONS: Mapping[str, Callable[[], Iterable[Row]]] = MappingProxyType(
    {
        "mpe": mpe_rows,
        "mamujoco": mamujoco_rows,
        "smac": smac_rows,
        "windows": windows.rows,
        "training": training_rows,
    }
)


def line(row: Row) -> str:
    """A measurement beside its target."""
    value, target, unit = row["value"], row["target"], row["unit"]
    verdict, goal = "", ""
    if target is not None:
        less = unit in ("s", "%")
        verdict = "met" if (value <= target if less else value >= target) else "MISSED"
        goal = f"{'<=' if less else '>='} {target:,.6g}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    return f"{row['name']:<58}{number:>14} {unit:<14}{goal:>14}  {verdict}"


def main(arguments: Sequence[str]) -> int:
    """Runs the sections named (none: all) and prints their rows as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="none: all")
    parser.add_argument("--out", type=Path, help="folder for results.csv")
    options = parser.parse_args(arguments)
    for name in options.sections:
        if name not in SECTIONS:
            raise UserError(f"unknown section {name!r}; {nearest(name, SECTIONS)}")
    rows = []
    for name in options.sections or SECTIONS:
        print(name, flush=True)
        for row in SECTIONS[name]():
            print("  " + line(row), flush=True)
            rows.append(row)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.csv").write_text(csv_text(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"bench: {error}")
