"""The tables of the README and the docs, generated from committed result files.

    python -m marl_flow.benchmarks.tables            # rewrites every table; run it at the root of the repository
    python -m marl_flow.benchmarks.tables --check    # exit code 1, and the name of every table that differs
    python -m marl_flow.benchmarks.tables add mpe REPORT --command "marl-flow campaign mpe"

A page holds a table between the lines `<!-- table: NAME -->` and `<!-- /table -->`. TABLES says from which folder of
`benchmarks/results/` it comes and how a line looks. Such a folder, `<campaign>/<date>-<commit>/`, holds CSV files, one
row a measurement, and about.json (`About`). `add` makes one of a folder of CSV files, such as the report of `marl-flow
report` or `campaign`. The table `results` lists all such folders.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from marl_flow.benchmarks.tables.folders import add
from marl_flow.benchmarks.tables.pages import pages, update
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table differs")
    commands = parser.add_subparsers(dest="action")
    adding = commands.add_parser("add", help="copy the CSV files of a report into a new results folder")
    adding.add_argument("campaign", help="folder below benchmarks/results, e.g. mpe")
    adding.add_argument("folder", type=Path, help="folder of CSV files, such as a report")
    adding.add_argument("--command", required=True, help="what was run, as a reader would type it")
    adding.add_argument("--commit", help="what was measured; left out: this checkout's commit")
    adding.add_argument("--date", help="as 2026-11-27; left out: today")
    adding.add_argument("--machine", help="left out: what the column model of results.csv says")
    adding.add_argument("--note", default="", help="what else a reader must know")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pages(options.root)  # refuses another folder before anything is written
    if options.action == "add":
        target = add(
            options.root,
            options.campaign,
            options.folder,
            command=options.command,
            commit=options.commit,
            date=options.date,
            machine=options.machine,
            note=options.note,
        )
        log.info(
            "wrote %s; name it as a source in TABLES (benchmarks/tables/definitions.py), then write the tables", target
        )
        return 0
    differing = update(options.root, write=not options.check)
    for place in differing:
        log.info("%s %s", place, "differs from its results file" if options.check else "written")
    if options.check and differing:
        log.info("run `python -m marl_flow.benchmarks.tables` and look at what changed")
    return int(options.check and bool(differing))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"tables: {error}")
