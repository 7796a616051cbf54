"""Results folders to Markdown tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from marl_flow.benchmarks import report
from marl_flow.benchmarks.tables.definitions import TABLES, Table
from marl_flow.benchmarks.tables.folders import ABOUT, RESULTS, read_about, read_rows
from marl_flow.config import nearest
from marl_flow.interfaces import UserError

INDEX = "results"
"""Name of the table of all results folders."""
METHODS = {"bc": "BC", "coflow": "CoFlow", "ma_td3_bc": "MA-TD3+BC"}
"""Names in tables of algorithms; others keep their own."""


class Number(float):
    """A number of a file. Without a format it reads as in the file; beside float's formats it has `.1p`, 100 times it,
    and `si`, with M for millions."""

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __format__(self, spec: str) -> str:
        if spec == "si":
            return f"{self / 1e6:.3g} M" if self >= 1e6 else f"{self:,.0f}" if self >= 1000 else f"{self:g}"
        if spec.endswith("p"):
            return f"{100 * float(self):{spec[:-1]}f}"
        return super().__format__(spec) if spec else self.text


class Empty(str):
    """An empty cell, a dash in every format."""

    def __format__(self, spec: str) -> str:
        return "-"


Value = Number | Empty | str


def value_of(text: str) -> Value:
    """A cell of a file as what it holds."""
    if not text:
        return Empty(text)
    try:
        return Number(text)
    except ValueError:
        return text


def readable(row: Mapping[str, str]) -> dict[str, Value]:
    """A row as values, with its dataset, algorithm and execution as tables call them, and, where they can be told,
    short_dataset (a dataset without its suite), method (an algorithm, with C or D where it plans) and k_text."""
    values = {name: value_of(text) for name, text in row.items()}
    if "dataset" in row:
        inside = re.sub(r"^native/|-v\d+$", "", row["dataset"])
        values |= {"dataset": inside, "short_dataset": inside.partition("/")[2].removeprefix("simple_")}
    if "algorithm" in row:
        letter, k = row["execution"][:1].upper(), row["k"]
        algorithm = METHODS.get(row["algorithm"], row["algorithm"])
        values |= {"algorithm": algorithm, "execution": letter}
        values |= {"method": f"{algorithm}-{letter}" if k else algorithm, "k_text": f" k={k}" if k else ""}
    return values


def rendered(name: str, root: Path, page: Path) -> str:
    """Markdown of a table and the line that says where it comes from, with links as from `page`."""
    if name == INDEX:
        return _index(root, page)
    if name not in TABLES:
        raise UserError(f"unknown table {name!r}; {nearest(name, [*TABLES, INDEX])}")
    table = TABLES[name]
    folder = root / RESULTS / table.source
    path = folder / table.file
    rows = read_rows(path)
    unknown = [column for column in table.where if column not in rows[0]]
    if unknown:
        raise UserError(f"{path}: table {name} expects the columns {unknown}, found {list(rows[0])}")
    rows = [row for row in rows if all(row[column] in values for column, values in table.where.items())]
    try:
        header, body = (_grid if table.across else _lines)(table, [readable(row) for row in rows])
    except KeyError as error:
        raise UserError(f"{path}: table {name} expects the column {error}, found {list(rows[0])}") from error
    except ValueError as error:
        raise UserError(f"{path}: cannot be shown as table {name}: {error}") from error
    if not body:
        raise UserError(f"{path}: expected rows for table {name}, found none where {dict(table.where)}")
    about, link = read_about(folder), _link(folder, page)
    origin = f"From [{table.file}]({link}/{table.file}) ([about]({link}/{ABOUT})): `{about.command}`, "
    if about.transcribed:
        origin += f"{about.date}, transcribed from {about.transcribed}; the files it was measured into are gone."
    else:
        origin += f"commit `{about.commit}`, {about.date}."
    return f"{report.table(header, body, range(table.left, len(header)))}\n\n{origin}"


def _index(root: Path, page: Path) -> str:
    """Markdown of every results folder, the newest of a campaign first."""
    body = []
    for campaign in sorted(path for path in (root / RESULTS).iterdir() if path.is_dir()):
        for folder in sorted(campaign.iterdir(), reverse=True):
            about = read_about(folder)
            if folder.name != f"{about.date}-{about.commit}":
                raise UserError(f"{folder}: expected the name {about.date}-{about.commit}, from its {ABOUT}; rename it")
            link = f"[{campaign.name}/{folder.name}]({_link(folder, page)}/{ABOUT})"
            origin = "transcribed" if about.transcribed else "measured"
            body.append([link, f"`{about.command}`", about.machine, origin])
    return report.table(["Folder", "Command", "Machine", "Origin"], body)


def _link(folder: Path, page: Path) -> str:
    return os.path.relpath(folder, page.parent).replace(os.sep, "/")


Body = tuple[list[str], list[list[str]]]
"""Header and lines of cells."""


def _lines(table: Table, rows: Sequence[Mapping[str, Value]]) -> Body:
    header = [title for title, _ in table.columns]
    return header, [[template.format(**row) for _, template in table.columns] for row in rows]


def _grid(table: Table, rows: Sequence[Mapping[str, Value]]) -> Body:
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = tuple(template.format(**row) for _, template in table.columns)
        title = table.across.format(**row)
        if title in cells.setdefault(line, {}):
            raise ValueError(f"two rows for {' '.join(line)}, {title}")
        cells[line][title] = table.cell.format(**row)
    titles = list(dict.fromkeys(title for filled in cells.values() for title in filled))
    absent = [f"{' '.join(line)}, {title}" for line, filled in cells.items() for title in titles if title not in filled]
    if absent:
        raise ValueError(f"no row for {absent[0]}")
    header = [*(title for title, _ in table.columns), *titles]
    return header, [[*line, *(filled[title] for title in titles)] for line, filled in cells.items()]
