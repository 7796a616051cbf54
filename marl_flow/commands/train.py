"""Names to runs: a dataset, an algorithm and settings become a run folder. The command line and quickstart share it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl_flow import baselines
from marl_flow.benchmarks import suite
from marl_flow.commands.data import open_dataset, training_data
from marl_flow.config import nearest, override
from marl_flow.datasets import catalog
from marl_flow.interfaces import Execution, UserError
from marl_flow.training import TrainConfig, TrainResult
from marl_flow.training import train as run_training

TRAIN_PREFIX = "train."
"""Puts a setting to training where the algorithm has one of the same name: `train.updates=3000` trains on."""
OWN_FLAGS = ("seed", "device")
"""Fields of `TrainConfig` with a flag of their own."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run is made of, by name and value."""

    dataset_id: str
    algorithm: str
    preset: str
    config: Any
    training: TrainConfig


def plan(
    dataset: str,
    algorithm: str,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    cell: Execution | None = None,
) -> Plan:
    """The run that names and `key=value` settings describe.

    A preset (None: the algorithm's first), over it the paper's configuration of the dataset in the execution `cell`
    (None: none), over that the settings.
    """
    entry, kind = catalog.find(dataset), baselines.get(algorithm)
    name = preset or next(iter(kind.presets))
    if name not in kind.presets:
        raise UserError(f"{algorithm} has no preset {name!r}; {nearest(name, kind.presets)}")
    config, training = kind.presets[name], TrainConfig(seed=seed, device=device)
    if cell is not None:
        if algorithm != "coflow":
            raise UserError(f"cell: the paper's configurations are of coflow, not of {algorithm}; leave it out")
        identity = entry.dataset_id
        config = override(
            config, suite.cell(suite.published_name(identity.task_id, identity.quality), cell).coflow_settings
        )
    ours, shared = _sorted_settings(settings, config)
    return Plan(
        dataset_id=str(entry.dataset_id),
        algorithm=algorithm,
        preset=name,
        config=override(config, ours),
        training=override(training, shared),
    )


def _sorted_settings(settings: Sequence[str], config: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Settings `key=value` of the algorithm's config, and those of training."""
    own = [field.name for field in dataclasses.fields(config)]
    shared = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in OWN_FLAGS]
    ours: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, forced = key.removeprefix(TRAIN_PREFIX), key.startswith(TRAIN_PREFIX)
        if not equals:
            raise UserError(f"expected a setting as key=value, got {setting!r}")
        if name not in shared and (forced or name not in own):
            raise UserError(f"unknown setting {key!r}; {nearest(name, {*own, *shared})}; --show-config explains each")
        chosen = theirs if forced or name not in own else ours
        if name in chosen:
            raise UserError(f"{key} is given twice, as {chosen[name]} and as {value}")
        chosen[name] = value
    return ours, theirs


def default_folder(plan: Plan) -> Path:
    """Where a run goes unless told otherwise; settings other than the conditioning are not in the name."""
    parts = [plan.algorithm, plan.preset, getattr(plan.config, "conditioning", None), f"seed{plan.training.seed}"]
    return Path("runs") / plan.dataset_id.replace("/", "_") / "-".join(part for part in parts if part)


def describe_settings(plan: Plan) -> str:
    """Every setting of the plan: its name, its value, and its meaning."""
    own = {field.name for field in dataclasses.fields(plan.config)}
    lines = [f"{plan.algorithm}, preset {plan.preset} (there are: {', '.join(baselines.get(plan.algorithm).presets)})"]
    lines += _described(plan.config)
    lines += ["", "training"]
    training = {f.name: getattr(plan.training, f.name) for f in dataclasses.fields(TrainConfig)}
    for name, line in zip(training, _described(plan.training, clash=own), strict=True):
        if name not in OWN_FLAGS:
            lines.append(line)
    return "\n".join(lines)


def _described(config: Any, clash: Set[str] = frozenset()) -> list[str]:
    meanings, hints = field_meanings(type(config)), typing.get_type_hints(type(config))
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        name = f"{TRAIN_PREFIX}{field.name}" if field.name in clash else field.name
        first, *more = textwrap.wrap(f"{meanings.get(field.name, '')} ({_kind(hints[field.name])})".strip(), 68)
        lines.append("\n".join([f"  {name + '=' + text:<38} {first}", *(f"{'':41}{line}" for line in more)]))
    return lines


def _kind(hint: Any) -> str:
    """A type as a reader of help knows it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return f"{_kind(arguments[0])}, ..."
    if arguments:
        return " or ".join(_kind(argument) for argument in arguments)
    return "None" if hint is type(None) else {"bool": "true or false"}.get(hint.__name__, hint.__name__)


def field_meanings(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, as one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    meanings = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    meanings[field.target.id] = " ".join(text.split())
    return meanings


def train(plan: Plan, folder: Path) -> TrainResult:
    """Trains the plan into a run folder, with a progress bar; continues a folder that holds the same run."""
    data = training_data(open_dataset(plan.dataset_id))
    kind = baselines.get(plan.algorithm)
    return run_training(folder, kind, plan.config, plan.training, data, preset=plan.preset, progress=True)


def train_piece(piece: tuple[Plan, Path]) -> TrainResult:
    """`train` of one argument, for a pool of processes."""
    return train(*piece)


def describe_training(result: TrainResult) -> str:
    """What a training run came to, for a terminal."""
    seconds, update = result.header.seconds["total"], result.header.update
    begun = "" if result.resumed_from is None else f", continued from update {result.resumed_from}"
    if result.resumed_from == update:
        begun = ", finished before: nothing was left to do"
    return f"{update:,} updates in {seconds:.0f} s{begun}; checkpoint {result.checkpoint}"
