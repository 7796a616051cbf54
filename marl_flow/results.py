"""Results of evaluated runs as rows: every field of each evaluation, beside the settings of the run it is of.

    from marl_flow import results

    rows = results.load("runs")
    for row in rows.filter(algorithm="coflow", num_sampling_steps=1):
        print(row.dataset_id, row.training_seed, row.team_return_mean, row.score)
    frame = rows.to_pandas()

Reads files alone: no model, dataset or environment. The report is made from the same rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from marl_flow import run_log
from marl_flow.benchmarks import scores, suite
from marl_flow.config import nearest
from marl_flow.files import user_path
from marl_flow.interfaces import EvaluationResult, UserError
from marl_flow.run_folder import CONFIG, checkpoint_path

if TYPE_CHECKING:
    import pandas

DERIVED = ("team_return_mean", "score", "win_rate")
"""Numbers of a row that follow from its fields; columns of `Results.to_pandas` too."""


@dataclass(frozen=True, kw_only=True)
class ResultRow(EvaluationResult):
    """One evaluation of one run: the fields of `EvaluationResult`, and where it comes from.

    settings and training: the algorithm's settings and those of training, by name; environment: the versions, commit
    and threads that the run was begun with. All three are None where the folder has no config.json of this run.
    checkpoint: the file that was evaluated; None where it is no longer there.
    """

    run_folder: Path
    checkpoint: Path | None
    settings: Mapping[str, Any] | None = dataclasses.field(hash=False)
    training: Mapping[str, Any] | None = dataclasses.field(hash=False)
    environment: Mapping[str, Any] | None = dataclasses.field(hash=False)

    def __repr__(self) -> str:
        steps = "" if self.num_sampling_steps is None else f", k={self.num_sampling_steps}"
        return (
            f"<{self.algorithm} ({self.preset}, seed {self.training_seed}) on {self.dataset_id}, {self.execution}"
            f"{steps}: return {self.team_return_mean:.1f} over {len(self.seeds)} episodes>"
        )

    @property
    def team_return_mean(self) -> float:
        """Mean team return over the evaluation episodes, raw; `team_returns` holds each of them."""
        return sum(self.team_returns) / len(self.team_returns)

    @property
    def score(self) -> float | None:
        """Normalised score of the mean return: 0 is random, 100 the expert data; None where a task publishes none."""
        reference = suite.references().get(self.task_id)
        if reference is None:
            return None
        return float(scores.normalized_score(self.team_return_mean, reference.random, reference.expert))

    @property
    def win_rate(self) -> float | None:
        """Share of won episodes, in [0, 1]; None for tasks that cannot be won."""
        return None if self.won is None else sum(self.won) / len(self.won)


class Results(list[ResultRow]):
    """Rows in the order of folders and, within one, of evaluation."""

    def filter(self, **values: Any) -> Results:
        """The rows whose fields equal all given values, e.g. `filter(algorithm="bc", training_seed=0)`."""
        names = (*_names(ResultRow), *DERIVED)
        for name in values:
            if name not in names:
                raise UserError(f"unknown field {name!r} of a result; {nearest(name, names)}")
        return Results(row for row in self if all(getattr(row, name) == value for name, value in values.items()))

    @overload
    def __getitem__(self, index: SupportsIndex) -> ResultRow: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: SupportsIndex | slice) -> ResultRow | Results:
        found = super().__getitem__(index)
        return Results(found) if isinstance(found, list) else found

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a row per result and a column per field, as `settings.width` where it is one of a mapping.

        Fields of every episode stay tuples: `frame.explode(["seeds", "team_returns", "lengths"])` makes a row of each.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame([_flat(row) for row in self])


def load(paths: str | Path | Iterable[str | Path]) -> Results:
    """Every result of the runs at or below the given folders: run folders, or folders that hold some.

    A run that was evaluated again has a row for each time. A UserError names the file and line of a damaged result.
    """
    return Results(row for folder in run_folders(paths) for row in _read(folder))


def run_folders(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every folder at or below the given ones that holds a results file, linked ones too, sorted, each once."""
    folders: set[Path] = set()
    for path in map(user_path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; name run folders, or a folder that holds some")
        inside = set(_with_results(path))
        if not inside:
            raise UserError(f"no {run_log.RESULTS} in or below {path}; evaluate a run first: marl-flow eval {path}")
        folders |= inside
    return sorted(folders)


def _with_results(path: Path) -> Iterator[Path]:
    """Every folder at or below `path` that holds a results file, resolved. Links to folders are followed; each folder
    is entered once, so that links in a circle come to an end."""
    entered = set()
    for name, subfolders, files in os.walk(path, followlinks=True):
        folder = Path(name).resolve()
        if folder in entered:
            subfolders.clear()
            continue
        entered.add(folder)
        if run_log.RESULTS in files:
            yield folder


def _read(folder: Path) -> list[ResultRow]:
    record = _run_record(folder)
    rows = []
    for result in run_log.read_results(folder):
        run, made_with = record.get("run", {}), record.get("made_with")
        known = run.get("config_digest") == result.config_digest
        checkpoint = checkpoint_path(folder, result.update)
        rows.append(
            ResultRow(
                **{name: getattr(result, name) for name in _names(EvaluationResult)},
                run_folder=folder,
                checkpoint=checkpoint if checkpoint.is_file() else None,
                settings=run.get("config") if known else None,
                training=run.get("training") if known else None,
                environment=made_with if known else None,
            )
        )
    return rows


def _run_record(folder: Path) -> dict[str, Any]:
    """The content of config.json; {} where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("run"), dict):
            raise ValueError("no object `run`")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected the record of a run, found {error}; restore the file") from error
    return record


def _names(record: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def _flat(row: ResultRow) -> dict[str, Any]:
    """The fields of a row, those of mappings one by one, and the derived numbers."""
    flat: dict[str, Any] = {}
    for name in _names(ResultRow):
        value = getattr(row, name)
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        elif name not in ("settings", "training", "environment"):
            flat[name] = value
    return flat | {name: getattr(row, name) for name in DERIVED}
