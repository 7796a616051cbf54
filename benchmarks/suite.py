"""The published tables that our results are compared with: reference returns, results, the paper's configurations.

Two CSV files in `published/`, transcribed from the publications, and the mean returns in `marl_flow.tasks`. A published
number keeps the scale its table used: in CoFlow's MPE table its own two columns are raw returns and every other column
is a normalised score.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

from marl_flow import tasks
from marl_flow.benchmarks.scores import normalized_score, raw_return
from marl_flow.config import nearest
from marl_flow.interfaces import Execution, UserError

Scale = Literal["raw", "normalized"]

SOURCES: Mapping[str, str] = MappingProxyType(
    {"coflow-page": "CoFlow (arXiv 2605.01457)", "madiff-paper": "MADiff (arXiv 2305.17330)"}
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Raw team returns that mean score 0 and score 100 on a task."""

    random: float
    expert: float


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One cell of a published table. `dataset` is suite/task/quality; mean and spread are on `scale`."""

    dataset: str
    method: str
    mean: float
    spread: float | None
    spread_kind: str
    scale: Scale
    source: str
    note: str

    def on_scale(self, scale: Scale) -> tuple[float, float | None] | None:
        """Mean and spread on a scale: as printed on its own, derived on the other, None where no reference exists."""
        if scale == self.scale:
            return self.mean, self.spread
        reference = references().get(self.dataset.rpartition("/")[0])
        if reference is None:
            return None
        convert = normalized_score if scale == "normalized" else raw_return
        mean = float(convert(self.mean, reference.random, reference.expert))
        if self.spread is None:
            return mean, None
        return mean, float(convert(self.mean + self.spread, reference.random, reference.expert)) - mean


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """One of the paper's configurations. `dataset` is suite/task/quality; `horizon` counts the current frame too."""

    dataset: str
    execution: Execution
    in_paper: bool
    history: int
    horizon: int
    returns_scale: float
    target_return: float
    """Return that the policy is conditioned on when it acts, as a multiple of `returns_scale`."""
    return_to_go: bool
    updates: int
    shared_inverse_dynamics: bool
    normalizer: Literal["cdf", "limits"]

    @property
    def target_rule(self) -> str:
        """The paper's target return in the words of `marl-flow eval --target`."""
        return f"constant:{self.target_return:g}*{self.returns_scale:g}"

    @property
    def coflow_settings(self) -> dict[str, str]:
        """The values this configuration gives to fields of CoFlow's config, as text for `config.override`."""
        return {
            "conditioning": self.execution,
            "history": str(self.history),
            "horizon": str(self.horizon - 1),
            "returns_scale": str(self.returns_scale),
            "return_to_go_update": str(self.return_to_go),
            "updates": str(self.updates),
            "inverse_per_agent": str(not self.shared_inverse_dynamics),
            "normalizer": self.normalizer,
        }


@cache
def dataset_means() -> Mapping[str, float]:
    """Published mean team return of each dataset suite/task/quality; the real game's maps stand under `smac`."""
    return MappingProxyType(
        {
            published_name(task_id, quality): mean
            for task_id, card in tasks.CARDS.items()
            for quality, mean in card.published_means.items()
        }
    )


@cache
def references() -> Mapping[str, Reference]:
    """Reference returns of every task that publishes both an expert and a random dataset (the MPE tasks)."""
    means = dataset_means()
    tasks = [name.removesuffix("/expert") for name in means if name.endswith("/expert")]
    return MappingProxyType(
        {
            task: Reference(random=means[f"{task}/random"], expert=means[f"{task}/expert"])
            for task in tasks
            if f"{task}/random" in means
        }
    )


@cache
def published() -> tuple[PublishedRow, ...]:
    """Every published cell, in the order of the file."""
    columns: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("suite", "task", "quality", "method"), _text),
        "mean": _number,
        "std": lambda text: _number(text) if text else None,
        "spread": _text,
        "scale": _one_of("raw", "normalized"),
        "source": _one_of(*SOURCES),
        "note": str,
    }
    return tuple(
        PublishedRow(
            dataset=_dataset(row),
            method=row["method"],
            mean=row["mean"],
            spread=row["std"],
            spread_kind=row["spread"],
            scale=row["scale"],
            source=row["source"],
            note=row["note"],
        )
        for row in _read("published_results.csv", columns)
    )


@cache
def all_paper_settings() -> tuple[PaperSettings, ...]:
    """The paper's 60 configurations, and those its code carries beyond them (`in_paper` False)."""
    columns: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("suite", "task", "quality"), _text),
        "execution": _one_of("centralized", "decentralized"),
        "in_paper": _flag,
        "n_agents": _count,
        "horizon": _count,
        "history_horizon": _count,
        "returns_scale": _number,
        "target_return": _number,
        "return_to_go": _flag,
        "max_episode_steps": _count,
        "max_episodes": _count,
        "discrete_actions": _flag,
        "train_steps": _count,
        "shared_inverse_dynamics": _flag,
        "normalizer": _one_of("cdf", "limits"),
        "eval_episodes": _count,
    }
    return tuple(
        PaperSettings(
            dataset=_dataset(row),
            execution=row["execution"],
            in_paper=row["in_paper"],
            history=row["history_horizon"],
            horizon=row["horizon"],
            returns_scale=row["returns_scale"],
            target_return=row["target_return"],
            return_to_go=row["return_to_go"],
            updates=row["train_steps"],
            shared_inverse_dynamics=row["shared_inverse_dynamics"],
            normalizer=row["normalizer"],
        )
        for row in _read("configurations.csv", columns)
    )


def published_name(task_id: str, quality: str) -> str:
    """The name of a dataset in these tables, suite/task/quality; the real game's maps are listed under `smac`."""
    suite, _, task = task_id.partition("/")
    return f"{suite.removesuffix('-sc2')}/{task}/{quality}"


def paper_settings(dataset: str, execution: Execution) -> PaperSettings:
    """The paper's configuration of a dataset suite/task/quality in one execution."""
    for row in all_paper_settings():
        if (row.dataset, row.execution) == (dataset, execution):
            return row
    known = sorted({row.dataset for row in all_paper_settings()})
    raise UserError(
        f"the paper has no configuration of {dataset!r} in {execution} execution; {nearest(dataset, known)}"
    )


def published_averages(suite: str, scale: Scale) -> dict[tuple[str, str], float]:
    """Mean over a suite's datasets on one scale, by (method, source), of methods that report every dataset of it."""
    wanted = {name for name in dataset_means() if name.startswith(f"{suite}/")}
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in published():
        value = row.on_scale(scale)
        if row.dataset in wanted and value is not None:
            means.setdefault((row.method, row.source), {})[row.dataset] = value[0]
    return {
        method: sum(by_dataset.values()) / len(by_dataset)
        for method, by_dataset in means.items()
        if set(by_dataset) == wanted
    }


def _dataset(row: Mapping[str, Any]) -> str:
    return f"{row['suite']}/{row['task']}/{row['quality']}"


def _read(name: str, columns: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    """Rows of a table of this package, every column parsed; a wrong header or cell names file and line."""
    with (files("marl_flow.benchmarks") / "published" / name).open(encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != list(columns):
            raise ValueError(f"{name}: expected the columns {list(columns)}, found {reader.fieldnames}")
        rows = []
        for row in reader:
            try:
                if None in row or None in row.values():
                    raise ValueError(f"expected {len(columns)} cells")
                rows.append({column: parse(row[column]) for column, parse in columns.items()})
            except ValueError as error:
                raise ValueError(f"{name}, line {reader.line_num}: {error}") from error
    return rows


def _text(cell: str) -> str:
    if not cell or cell != cell.strip():
        raise ValueError(f"expected text without outer spaces, found {cell!r}")
    return cell


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {cell!r}")
    return value


def _count(cell: str) -> int:
    if not cell.isdecimal():
        raise ValueError(f"expected a whole number from 0 up, found {cell!r}")
    return int(cell)


def _flag(cell: str) -> bool:
    if cell not in ("True", "False"):
        raise ValueError(f"expected True or False, found {cell!r}")
    return cell == "True"


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(cell: str) -> str:
        if cell not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {cell!r}")
        return cell

    return parse
