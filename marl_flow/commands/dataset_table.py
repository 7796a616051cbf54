"""The table of `marl-flow data list`: every dataset there is, where it comes from, and what of it is on this disk."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from marl_flow.config import nearest
from marl_flow.datasets import catalog, native
from marl_flow.datasets.remote import fetch
from marl_flow.datasets.store import open_store
from marl_flow.interfaces import UserError

WIDTH = 140
"""No line is longer, but for a name or path that cannot be broken."""

_HOW = {
    "native": "built here",
    "omar": "published by OMAR",
    "ogmarl": "published by OG-MARL",
    "user": "of your own",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dataset: state is here, partial (fewer episodes than its recipe), damaged or not here; note says more.

    megabytes: on this disk, of a damaged one too. mean: team return of what is here. None where there is nothing.
    """

    dataset_id: catalog.DatasetId
    comes_from: str
    state: Literal["here", "partial", "damaged", "not here"]
    note: str
    episodes: int | None
    megabytes: float | None
    mean: float | None
    published: float | None


def table(*, origin: str | None = None, suite: str | None = None, root: Path | None = None) -> str:
    """All datasets, grouped by suite and origin; only those of one origin or suite where that is given."""
    shown = rows(origin=origin, suite=suite, root=root)
    names = max([len("dataset"), *(len(str(row.dataset_id)) for row in shown)])
    lines = [_line(names, "dataset", "comes from", "state", ("episodes", "MB", "mean", "published", "diff"))]
    for (group_suite, group_origin), group in groupby(shown, lambda row: (row.dataset_id.suite, row.dataset_id.origin)):
        lines += [f"{group_suite}, {_HOW[group_origin]}", *_rendered(group, names)]
    if not shown:
        lines += ["  none"]
    data_root = catalog.data_root(root)
    advice = (
        f"in {data_root}; build one with `marl-flow data build DATASET`, download one with `marl-flow data fetch "
        "DATASET`, bring your own with `marl-flow data import`"
    )
    return "\n".join([*lines, *_wrapped(advice, "")])


def rows(*, origin: str | None = None, suite: str | None = None, root: Path | None = None) -> list[Row]:
    """The table as values, by suite, then origin, then as the catalogue has them."""
    names = [catalog.parse(name) for name in (*catalog.CATALOG, *catalog.user_datasets(root))]
    suites = list(dict.fromkeys(name.suite for name in names))
    for title, asked, known in (("origin", origin, list(catalog.ORIGINS)), ("suite", suite, suites)):
        if asked is not None and asked not in known:
            raise UserError(f"unknown {title} {asked!r}; {nearest(asked, known)}")
    chosen = [name for name in names if origin in (None, name.origin) and suite in (None, name.suite)]
    chosen.sort(key=lambda name: (suites.index(name.suite), catalog.ORIGINS.index(name.origin)))
    return [_row(name, root) for name in chosen]


def _row(name: catalog.DatasetId, root: Path | None) -> Row:
    folder, entry = catalog.folder_of(str(name), root), catalog.find(str(name))
    state: Literal["here", "partial", "damaged", "not here"] = "not here"
    note, episodes, mean = "", None, None
    if folder.exists():
        try:
            store = open_store(folder, verify=False, dataset_id=str(name))
        except UserError as error:
            state, note = "damaged", str(error)
        else:
            recipe = native.RECIPES.get(str(name))
            state = "partial" if recipe is not None and store.num_episodes < recipe.episodes else "here"
            note = native.unlike_recipe(store)
            if recipe is None and store.spec.opponent is not None:
                note = f"against {store.spec.opponent}"
            episodes, mean = store.num_episodes, float(store.team_returns().mean())
    return Row(
        dataset_id=name,
        comes_from=_comes_from(name, root, is_here=folder.exists()),
        state=state,
        note=note,
        episodes=episodes,
        megabytes=_bytes_in(folder) / 1e6 if folder.exists() else None,
        mean=mean,
        published=entry.published_mean,
    )


def _comes_from(name: catalog.DatasetId, root: Path | None, *, is_here: bool) -> str:
    """How the dataset gets, or got, here, in a few words."""
    if name.origin == "native":
        return "built here"
    if name.origin == "user":
        return "user"
    plan = fetch.plan(str(name), root=root)
    if plan.step in ("nothing", "unpack") and not is_here:
        return "fetched, to import"
    if not plan.file.url:
        return "download by hand"
    return f"download {plan.file.size}" + (", started" if plan.bytes_here and not is_here else "")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _rendered(group: Iterable[Row], names: int) -> Iterator[str]:
    for row in group:
        difference = None if row.mean is None or row.published is None else row.mean - row.published
        numbers = (
            *(_number(row.episodes, ","), _number(row.megabytes, ",.1f")),
            *(_number(row.mean, ".1f"), _number(row.published, ".1f"), _number(difference, "+.1f")),
        )
        yield _line(names, str(row.dataset_id), row.comes_from, row.state, numbers)
        yield from _wrapped(row.note, "      ")


def _line(names: int, name: str, comes_from: str, state: str, numbers: Iterable[str]) -> str:
    return f"  {name:<{names}} {comes_from:<22} {state:<8} " + " ".join(
        f"{number:>{width}}" for number, width in zip(numbers, (9, 8, 9, 9, 8), strict=True)
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
