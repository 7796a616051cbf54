"""Results folders, `benchmarks/results/<campaign>/<date>-<commit>/`: CSV files, a row a measurement, and about.json."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marl_flow.config import from_json
from marl_flow.interfaces import UserError
from marl_flow.run_folder import environment_info

RESULTS = Path("benchmarks/results")
CSV_FILE, ABOUT = "results.csv", "about.json"
PROTOCOL = ("training_seeds", "episodes", "updates", "protocol", "target_rule")
"""Columns of a report's results.csv whose values go into About.protocol."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Where the numbers of a results folder come from."""

    command: str
    commit: str
    date: str
    machine: str
    software: dict
    """Name of a program or library to its version; empty where that was not recorded."""
    protocol: dict
    """What a reader must know to compare the numbers: training seeds, episodes, checkpoint, target return, ..."""
    transcribed: str | None
    """Where the numbers were copied from, if the files they were measured into are gone; else None."""
    note: str


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; at least one."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"{path}: expected a CSV file of results, found none ({error.strerror})") from error
    if not rows:
        raise UserError(f"{path}: expected rows of results, found none")
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: expected as many cells in every row as in the header, found more or fewer")
    return rows


def read_about(folder: Path) -> About:
    """What a results folder says about itself."""
    path = folder / ABOUT
    try:
        return from_json(About, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected where the numbers come from, found {error}") from error


def add(
    root: Path,
    campaign: str,
    folder: Path,
    *,
    command: str,
    commit: str | None = None,
    date: str | None = None,
    machine: str | None = None,
    note: str = "",
) -> Path:
    """Copies the CSV files of a folder into a new one below benchmarks/results; returns that.

    commit: what was measured; None for this checkout's, which then must be clean. date: ISO; None for today. machine:
    None for what the column `model` of results.csv says."""
    if not re.fullmatch(r"[a-z0-9_]+", campaign):
        raise UserError(f"expected a campaign's name of a-z, 0-9 and _, got {campaign!r}")
    sources = {path: read_rows(path) for path in sorted(folder.glob("*.csv"))}
    if not sources:
        raise UserError(f"{folder}: expected the CSV files of a report, found none; make one with marl-flow report")
    rows = sources.get(folder / CSV_FILE, [])
    machine = machine or _values(rows, "model")
    if not machine:
        raise UserError(f"{folder}: no {CSV_FILE} with a column model says what machine it was; name it with --machine")
    software = environment_info()
    checkout = software.pop("commit")
    if commit is None:
        if checkout is None or checkout.endswith("-dirty"):
            raise UserError(
                f"expected a clean git checkout, found {checkout or 'none'}; name the measured commit with --commit"
            )
        commit = str(checkout)
    commit = commit[:7]
    try:
        date = str(datetime.date.today() if date is None else datetime.date.fromisoformat(date))
    except ValueError as error:
        raise UserError(f"expected --date as 2026-11-27, got {date!r}") from error
    about = About(
        command=command,
        commit=commit,
        date=date,
        machine=machine,
        software={name: str(software[name]) for name in ("python", "torch", "numpy")},
        protocol={name: value for name in PROTOCOL if (value := _values(rows, name))},
        transcribed=None,
        note=note,
    )
    target = root / RESULTS / campaign / f"{date}-{commit}"
    if target.exists():
        raise UserError(f"{target} already exists; remove it or name another --date")
    target.mkdir(parents=True)
    for source in sources:
        shutil.copyfile(source, target / source.name)
    (target / ABOUT).write_text(json.dumps(dataclasses.asdict(about), indent=1) + "\n", encoding="utf-8")
    return target


def _values(rows: Sequence[Mapping[str, str]], column: str) -> str:
    return "; ".join(sorted({row[column] for row in rows if row.get(column)}))
