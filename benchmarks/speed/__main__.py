"""Measures what the suite promises about its speed and prints one table.

python -m marl_flow.benchmarks.speed [mpe] [mamujoco] [smac] [windows] [training] [--out FOLDER]

With --out the rows are also written into FOLDER/results.csv; `python -m marl_flow.benchmarks.tables add` publishes it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from marl_flow.benchmarks.report import csv_text
from marl_flow.config import nearest
from marl_flow.interfaces import UserError

SECTIONS = ("mpe", "mamujoco", "smac", "windows", "training")
"""Modules beside this one; each is imported when it is measured, since not everybody has every simulator."""


def main(arguments: Sequence[str]) -> int:
    """Measures the sections named (none: all) and prints their rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--out", type=Path, help="folder for results.csv")
    options = parser.parse_args(arguments)
    for name in options.sections:
        if name not in SECTIONS:
            raise UserError(f"unknown section {name!r}; {nearest(name, SECTIONS)}")
    rows = []
    for name in options.sections or SECTIONS:
        print(name, flush=True)
        for row in importlib.import_module(f"marl_flow.benchmarks.speed.{name}").rows():
            print(f"  {row}", flush=True)
            rows.append(asdict(row))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.csv").write_text(csv_text(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"bench: {error}")
