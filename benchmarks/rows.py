"""Rows of a table from the results of runs.

Results that differ in nothing but the training seed make one row; results on different data (by id or content),
origins, configs, budgets, targets, protocols or evaluation seeds never share one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.benchmarks import scores, suite
from marl_flow.results import ResultRow
from marl_flow.run_folder import MAY_CHANGE
from marl_flow.seeding import derive_seed

log = logging.getLogger(__name__)

SAME_ROW = (
    "dataset_id",
    "dataset_digest",
    "task_id",
    "opponent",
    "algorithm",
    "preset",
    "config_digest",
    "execution",
    "num_sampling_steps",
    "actions_per_plan",
    "gate_scale",
    "target_rule",
    "protocol",
    "update",
    "seeds",
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One method on one dataset in one way of acting, over all its training seeds."""

    first: ResultRow
    training_seeds: tuple[int, ...]
    returns: np.ndarray
    """Raw team returns [S, K]: training seeds x evaluation episodes."""
    interval: scores.Interval | None
    """95 % interval of the mean return (`scores.mean_interval`)."""
    machines: tuple[tuple[str, str], ...]
    """(device, model) of every result, each once."""
    latency_ms: tuple[float, float] | None
    """Median over training seeds of p50 and of p95; None where machines differ, whose times do not mix."""
    folders: tuple[Path, ...]
    won: np.ndarray | None = None
    """Won episodes [S, K], 0 or 1; None where the task cannot be won or a result does not say."""
    win_interval: scores.Interval | None = None
    """95 % interval of the win rate (`scores.win_interval`)."""

    @property
    def win_rate(self) -> float | None:
        """Share of won episodes, in [0, 1]; None for tasks that cannot be won."""
        return None if self.won is None else float(self.won.mean())

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def dataset(self) -> str:
        """suite/task/quality as published tables call it: the dataset's name without origin and version."""
        name = self.first.dataset_id
        if name.count("/") != 3:
            return name
        _, suite_name, task, quality = name.split("/")
        return suite.published_name(f"{suite_name}/{task}", quality.rpartition("-v")[0])

    @property
    def reference(self) -> suite.Reference | None:
        return suite.references().get(self.first.task_id)

    def score(self, value: float) -> float | None:
        """Normalised score of a raw return on this task; None where no reference returns are published."""
        reference = self.reference
        return None if reference is None else float(scores.normalized_score(value, reference.random, reference.expert))


def table_rows(results: Iterable[ResultRow]) -> list[TableRow]:
    """Rows of all results, in the order of the table. Of results of one run, the later counts."""
    groups: dict[tuple[Any, ...], dict[int, ResultRow]] = {}
    for result in results:
        group = groups.setdefault(tuple(getattr(result, name) for name in SAME_ROW), {})
        former = group.get(result.training_seed)
        if former is not None and former.team_returns != result.team_returns:
            log.warning(
                "%s: %s on %s, training seed %d, was evaluated before with other returns (%s); the later result counts",
                *(result.run_folder, result.algorithm, result.dataset_id, result.training_seed, former.run_folder),
            )
        group[result.training_seed] = result
    return sorted((_row(group) for group in groups.values()), key=_order)


def _row(group: Mapping[int, ResultRow]) -> TableRow:
    """The row of results with the same settings, by training seed."""
    results = [group[seed] for seed in sorted(group)]
    first = results[0]
    returns = np.array([result.team_returns for result in results], dtype=np.float64)
    machines = tuple(sorted({(result.device, result.model) for result in results}))
    times = np.array([(result.latency_ms_p50, result.latency_ms_p95) for result in results])
    p50, p95 = np.median(times, axis=0).tolist()
    # The same draws for every row: the same returns have the same interval, wherever and as whatever they are reported.
    interval = scores.mean_interval(returns, np.random.default_rng(derive_seed(0, "interval")))
    wins = [result.won for result in results if result.won is not None]
    won = np.array(wins, dtype=np.float64) if len(wins) == len(results) else None
    return TableRow(
        first=first,
        training_seeds=tuple(sorted(group)),
        returns=returns,
        interval=interval,
        won=won,
        win_interval=None if won is None else scores.win_interval(won),
        machines=machines,
        latency_ms=(p50, p95) if len(machines) == 1 else None,
        folders=tuple(sorted({result.run_folder for result in results})),
    )


def _order(row: TableRow) -> tuple[Any, ...]:
    first = row.first
    steps = first.num_sampling_steps or 0
    return (
        *(
            first.dataset_id,
            first.dataset_digest,
            first.algorithm == "random",
            first.algorithm,
            first.preset,
            _sortable(first.settings or {}),
            first.config_digest,
        ),
        *(first.execution, first.gate_scale, first.target_rule, first.protocol, first.update),
        *(first.actions_per_plan, steps, first.seeds),
    )


def _sortable(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Settings in an order that puts numbers by size, so that variants of a method stand as one would list them."""
    return tuple(
        (name, 0, value, "") if isinstance(value, int | float) else (name, 1, 0, str(value))
        for name, value in sorted(settings.items())
    )


def beats(row: TableRow, rows: Sequence[TableRow], algorithm: str = "bc") -> float | None:
    """Probability that a row beats `algorithm` on the same data and evaluation seed; None unless `rows` hold exactly
    one row of that algorithm, and another than this one."""
    same = ("dataset_id", "dataset_digest", "seeds")
    rivals = [
        other
        for other in rows
        if other.first.algorithm == algorithm
        and all(getattr(other.first, name) == getattr(row.first, name) for name in same)
    ]
    if len(rivals) != 1 or rivals[0] is row:
        return None
    return scores.probability_of_improvement(row.returns, rivals[0].returns)


def data_title(row: TableRow, rows: Sequence[TableRow]) -> str:
    """The dataset's id, and a short digest where `rows` hold data of other content under that id."""
    return ", ".join([row.first.dataset_id, *_data_digest(row, rows)])


def by_data(rows: Sequence[TableRow]) -> dict[str, list[TableRow]]:
    """Title of each dataset -> its rows, in the table's order. Data of different content never share a title."""
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(data_title(row, rows), []).append(row)
    return groups


def _data_digest(row: TableRow, rows: Sequence[TableRow]) -> list[str]:
    """The short digest of a row's data, where `rows` hold others of the same id; else nothing."""
    name, digest = row.first.dataset_id, row.first.dataset_digest
    digests = {other.first.dataset_digest for other in rows if other.first.dataset_id == name}
    return [f"data {digest[:8]}"] if digests - {digest} else []


def settings_of(row: TableRow) -> dict[str, Any]:
    """Every setting that a row was trained with, as `settings.width` or `training.amp`; {} where none is recorded.

    What no weight depends on (MAY_CHANGE) is left out but for the number of updates, and so are training seed and
    device, which have columns of their own.
    """
    values = {f"settings.{name}": value for name, value in (row.first.settings or {}).items()}
    for name, value in (row.first.training or {}).items():
        if name == "updates" or f"training.{name}" not in {*MAY_CHANGE, "training.seed", "training.device"}:
            values[f"training.{name}"] = value
    return values


def differing_settings(rows: Sequence[TableRow]) -> list[str]:
    """Names of the settings that have several values among the rows that have the setting at all."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in settings_of(row).items():
            values.setdefault(name, set()).add(setting_text(value))
    return [name for name, texts in values.items() if len(texts) > 1]


def setting_text(value: Any) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(setting_text, value))
    return str(value)


def differences(row: TableRow, rivals: Sequence[TableRow], *, without: Collection[str] = ()) -> list[str]:
    """What sets a row apart from others, as short texts such as `width=64`. Settings have their names; a digest stands
    only where the settings are not recorded. without: fields of results that are shown elsewhere."""
    first = row.first
    texts = {
        "update": f"{first.update} updates",
        "actions_per_plan": f"m={first.actions_per_plan}",
        "gate_scale": f"gates x {first.gate_scale:g}",
        "target_rule": f"target {first.target_rule}",
        "protocol": first.protocol,
        "seeds": _episodes_text(row, rivals),
    }
    shown = []
    others = [rival for rival in rivals if rival.first.config_digest != first.config_digest]
    if others:
        values = settings_of(row)
        lengths_differ = any(rival.first.update != first.update for rival in others)
        names = [
            name
            for name in differing_settings([row, *others])
            if name in values
            and not name.startswith("training.updates")
            and not (lengths_differ and name == "settings.updates")
        ]
        shown = [f"{name.partition('.')[2]}={setting_text(values[name])}" for name in names]
        if (not names and not lengths_differ) or any(not settings_of(rival) for rival in (row, *others)):
            shown.append(f"config {first.config_digest[:6]}")
    shown += [
        text
        for name, text in texts.items()
        if name not in without and any(getattr(rival.first, name) != getattr(first, name) for rival in rivals)
    ]
    return shown


def _episodes_text(row: TableRow, rivals: Sequence[TableRow]) -> str:
    """`20 episodes`, and the first one's seed where a rival played as many other ones."""
    seeds = row.first.seeds
    as_many = any(len(rival.first.seeds) == len(seeds) and rival.first.seeds != seeds for rival in rivals)
    return f"{len(seeds)} episodes" + (f" from seed {seeds[0]}" if as_many else "")


def label(row: TableRow, rows: Sequence[TableRow]) -> str:
    """`algorithm (preset)`, and whatever sets it apart from others of that name on its dataset and execution."""
    first = row.first
    same = ("dataset_id", "dataset_digest", "algorithm", "preset", "execution")
    namesakes = [r for r in rows if all(getattr(r.first, name) == getattr(first, name) for name in same)]
    name = f"{first.algorithm} ({first.preset})" if first.preset else first.algorithm
    return ", ".join([name, *_data_digest(row, rows), *differences(row, namesakes)])
