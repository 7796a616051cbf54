"""Result files to table rows: pure reading, no model, dataset or environment.

A result line is one `EvaluationResult`. Lines that differ in nothing but the training seed make one row; results on
different data (by id or content), origins, configs, budgets, targets, protocols or evaluation seeds never share one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow import run_log
from marl_flow.benchmarks import scores, suite
from marl_flow.interfaces import EvaluationResult, UserError
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
class Row:
    """One method on one dataset in one way of acting, over all its training seeds."""

    first: EvaluationResult
    training_seeds: tuple[int, ...]
    returns: np.ndarray
    """Raw team returns [S, K]: training seeds x evaluation episodes."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean return."""
    machines: tuple[tuple[str, str], ...]
    """(device, model) of every result, each once."""
    latency_ms: tuple[float, float] | None
    """Median over training seeds of p50 and of p95; None where machines differ, whose times do not mix."""
    folders: tuple[Path, ...]
    won: np.ndarray | None = None
    """Won episodes [S, K], 0 or 1; None where the task cannot be won or a result does not say."""
    win_interval: tuple[float, float] | None = None
    """95 % interval of the win rate: Wilson's with one training seed, bootstrap with several."""

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
        _, kind, task, quality = name.split("/")
        return suite.published_name(f"{kind}/{task}", quality.rpartition("-v")[0])

    @property
    def reference(self) -> suite.Reference | None:
        return suite.references().get(self.first.task_id)

    def score(self, value: float) -> float | None:
        """Normalised score of a raw return on this task; None where no reference returns are published."""
        reference = self.reference
        return None if reference is None else float(scores.normalized_score(value, reference.random, reference.expert))


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Every folder at or below the given ones that holds a results file, sorted, each once."""
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; name run folders, or a folder that holds some")
        inside = {file.parent.resolve() for file in path.rglob(run_log.RESULTS)}
        if not inside:
            raise UserError(f"no {run_log.RESULTS} in or below {path}; evaluate a run first: marl-flow eval {path}")
        found |= inside
    return sorted(found)


def read_results(path: Path) -> list[EvaluationResult]:
    """The results of one file. A final line cut short by a kill is left out with a warning; any other fault raises."""
    results = []
    for number, record in enumerate(run_log.read_lines(path), 1):
        try:
            result = run_log.result_of(record)
            episodes = len(result.seeds)
            each = ("agent_returns", "team_returns", "lengths", *(("won",) if result.won is not None else ()))
            counts = {name: len(getattr(result, name)) for name in each}
            if episodes == 0 or set(counts.values()) != {episodes}:
                raise UserError(f"expected one entry per evaluation seed ({episodes}), found {counts}")
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        results.append(result)
    return results


def rows(folders: Iterable[Path]) -> list[Row]:
    """Rows of all results in the folders, in reading order of the table."""
    groups: dict[tuple[Any, ...], dict[int, tuple[EvaluationResult, Path]]] = {}
    for folder in folders:
        for result in read_results(folder / run_log.RESULTS):
            key = tuple(getattr(result, name) for name in SAME_ROW)
            group = groups.setdefault(key, {})
            former = group.get(result.training_seed)
            if former is not None and former[0].team_returns != result.team_returns:
                log.warning(
                    "%s: %s on %s, training seed %d, was evaluated before with other returns (%s); the later counts",
                    *(folder, result.algorithm, result.dataset_id, result.training_seed, former[1]),
                )
            group[result.training_seed] = (result, folder)
    return sorted((_row(group) for group in groups.values()), key=_order)


def _row(group: Mapping[int, tuple[EvaluationResult, Path]]) -> Row:
    results = [group[seed][0] for seed in sorted(group)]
    first = results[0]
    returns = np.array([result.team_returns for result in results], dtype=np.float64)
    # not the digest: data built elsewhere differ in their last bits, which should leave the draws alone; nor what came
    # later than the first tables, which should keep their intervals
    unnamed = ("seeds", "dataset_digest", "opponent", "actions_per_plan")
    names = [getattr(first, name) for name in SAME_ROW if name not in unnamed]
    machines = tuple(sorted({(result.device, result.model) for result in results}))
    times = np.array([(result.latency_ms_p50, result.latency_ms_p95) for result in results])
    p50, p95 = np.median(times, axis=0).tolist()
    generator = np.random.default_rng(derive_seed(0, "interval", *map(str, names)))
    interval = scores.bootstrap_interval(returns, generator)
    known = [result.won for result in results if result.won is not None]
    won = np.array(known, dtype=np.float64) if len(known) == len(results) else None
    chances = None
    if won is not None:
        if len(won) == 1:
            chances = scores.wilson_interval(int(won.sum()), won.size)
        else:
            chances = scores.bootstrap_interval(won, generator)
    return Row(
        first=first,
        training_seeds=tuple(sorted(group)),
        returns=returns,
        interval=interval,
        won=won,
        win_interval=chances,
        machines=machines,
        latency_ms=(p50, p95) if len(machines) == 1 else None,
        folders=tuple(sorted({folder for _, folder in group.values()})),
    )


def _order(row: Row) -> tuple[Any, ...]:
    first = row.first
    steps = first.num_sampling_steps or 0
    return (
        *(
            first.dataset_id,
            first.dataset_digest,
            first.algorithm == "random",
            first.algorithm,
            first.preset,
            first.config_digest,
        ),
        *(first.execution, first.gate_scale, first.target_rule, first.protocol, first.update),
        *(first.actions_per_plan, steps, first.seeds),
    )


def beats(row: Row, others: Sequence[Row], algorithm: str = "bc") -> float | None:
    """Probability that the row beats `algorithm` on the same data and evaluation seed; None without such a row."""
    same = ("dataset_id", "dataset_digest", "seeds")
    rivals = [
        other
        for other in others
        if other.first.algorithm == algorithm
        and all(getattr(other.first, name) == getattr(row.first, name) for name in same)
    ]
    if len(rivals) != 1 or rivals[0] is row:
        return None
    return scores.probability_of_improvement(row.returns, rivals[0].returns)


def data_title(row: Row, among: Sequence[Row]) -> str:
    """The dataset's id, and a short digest where there are rows from other data of that id."""
    return ", ".join([row.first.dataset_id, *_data_mark(row, among)])


def by_data(all_rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Title of each dataset -> its rows, in the table's order. Data of different content never share a title."""
    found: dict[str, list[Row]] = {}
    for row in all_rows:
        found.setdefault(data_title(row, all_rows), []).append(row)
    return found


def _data_mark(row: Row, among: Sequence[Row]) -> list[str]:
    name, digest = row.first.dataset_id, row.first.dataset_digest
    digests = {other.first.dataset_digest for other in among if other.first.dataset_id == name}
    return [f"data {digest[:8]}"] if digests - {digest} else []


def label(row: Row, among: Sequence[Row]) -> str:
    """`algorithm (preset)`, and whatever sets it apart from others of that name on its dataset and execution."""
    first = row.first
    marks = {
        "config_digest": f"config {first.config_digest[:6]}",
        "update": f"{first.update} updates",
        "actions_per_plan": f"m={first.actions_per_plan}",
        "gate_scale": f"gates x {first.gate_scale:g}",
        "target_rule": f"target {first.target_rule}",
        "protocol": first.protocol,
        "seeds": f"{len(first.seeds)} episodes",
    }
    same = ("dataset_id", "dataset_digest", "algorithm", "preset", "execution")
    namesakes = [r.first for r in among if all(getattr(r.first, name) == getattr(first, name) for name in same)]
    extra = [mark for name, mark in marks.items() if any(getattr(o, name) != getattr(first, name) for o in namesakes)]
    name = f"{first.algorithm} ({first.preset})" if first.preset else first.algorithm
    return ", ".join([name, *_data_mark(row, among), *extra])
