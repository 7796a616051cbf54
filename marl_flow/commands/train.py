"""From names to a run: a dataset, an algorithm and settings become a run folder."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import logging
import shlex
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
from marl_flow.datasets import catalog, native
from marl_flow.interfaces import Execution, UserError
from marl_flow.training import TrainConfig, TrainResult, check_machine
from marl_flow.training import train as run_training

log = logging.getLogger(__name__)

TRAIN_PREFIX = "train."
"""Marks a setting as one of training where the algorithm has one of the same name: `train.updates=3000`."""
OWN_FLAGS = ("seed", "device")
"""Fields of `TrainConfig` with a command-line flag of their own."""


HINTS = {
    "seed": "it has a flag: --seed {value}",
    "device": "it has a flag: --device {value}",
    "out": "it has a flag: --out {value}",
    "preset": "it has a flag: --preset {value}",
    "task": "it has a flag: --task {value}",
    "paper_settings": "it has a flag: --paper-settings {value}",
    "show_config": "it is a flag without a value: --show-config",
    "seeds": "a command trains one seed, named with --seed; run it once for each",
    "gpu": "name the device: --device cuda",
    "cuda": "name the device: --device cuda",
    "config": "configuration files are not implemented; write settings as key=value, or choose a --preset",
    "wandb": "logging to Weights & Biases is not implemented; a run's metrics are in its metrics.jsonl and tensorboard "
    "folder",
    "lr": "it is called learning_rate",
    "epochs": "training is counted in updates: updates=1000",
    "steps": "training is counted in updates: updates=1000",
    "num_steps": "training is counted in updates: updates=1000",
}
"""Settings that people write and that are none: what to write instead. `value` is what they gave."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to train: everything it is made of, by name and value, and the folder it is written into."""

    folder: Path
    dataset_id: str
    algorithm: str
    preset: str
    config: Any
    training: TrainConfig


def make_run(
    dataset: str,
    algorithm: str,
    *,
    folder: Path | None = None,
    preset: str | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    paper_settings: Execution | None = None,
) -> Run:
    """The run that names and `key=value` settings describe.

    Later values win: a preset (None: the algorithm's first), then the paper's configuration of the dataset in the
    execution `paper_settings` (None: none), then the settings. folder None: `default_folder`.
    """
    entry, presets = catalog.find(dataset), baselines.get(algorithm).presets
    name = preset or next(iter(presets))
    if name not in presets:
        raise UserError(f"{algorithm} has no preset {name!r}; {nearest(name, presets)}")
    config, training = presets[name], TrainConfig(seed=seed, device=device)
    if paper_settings is not None:
        if algorithm != "coflow":
            raise UserError(f"paper-settings: the paper configures coflow, not {algorithm}; leave the option out")
        identity = entry.dataset_id
        dataset_name = suite.published_name(identity.task_id, identity.quality)
        config = override(config, suite.paper_settings(dataset_name, paper_settings).coflow_settings)
    of_algorithm, of_training = _sorted_settings(settings, config)
    config, training = override(config, of_algorithm), override(training, of_training)
    dataset_id = str(entry.dataset_id)
    return Run(
        folder=folder or default_folder(dataset_id, algorithm, name, config, seed),
        dataset_id=dataset_id,
        algorithm=algorithm,
        preset=name,
        config=config,
        training=training,
    )


def _sorted_settings(settings: Sequence[str], config: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Settings `key=value` of the algorithm's config, and those of training."""
    names_of_algorithm = [field.name for field in dataclasses.fields(config)]
    names_of_training = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in OWN_FLAGS]
    of_algorithm: dict[str, str] = {}
    of_training: dict[str, str] = {}
    for setting in settings:  # first of all: what follows may be the rest of one of these, as in --seeds 0 1 2
        name, _, value = setting.partition("=")
        if name in HINTS and name not in (*names_of_algorithm, *names_of_training):
            hint = HINTS[name].format(value=shlex.quote(value) if value else name.upper())
            raise UserError(f"unknown setting {name!r}; {hint}")
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, has_prefix = key.removeprefix(TRAIN_PREFIX), key.startswith(TRAIN_PREFIX)
        if not equals:
            raise UserError(f"expected a setting as key=value, got {setting!r}")
        if name not in names_of_training and (has_prefix or name not in names_of_algorithm):
            raise UserError(
                f"unknown setting {key!r}; {nearest(name, {*names_of_algorithm, *names_of_training})}; "
                "--show-config explains each"
            )
        chosen = of_training if has_prefix or name not in names_of_algorithm else of_algorithm
        if name in chosen:
            raise UserError(f"{key} is given twice, as {chosen[name]} and as {value}; give it once")
        chosen[name] = value
    return of_algorithm, of_training


def default_folder(dataset_id: str, algorithm: str, preset: str, config: Any, seed: int) -> Path:
    """Where a run is written when no folder is named; of its settings only the conditioning is in the name."""
    parts = [algorithm.replace(":", "."), preset, getattr(config, "conditioning", None), f"seed{seed}"]
    return Path("runs") / dataset_id.replace("/", "_") / "-".join(part for part in parts if part)


def boolean_settings(words: Sequence[str]) -> set[str]:
    """Names of the settings that are true or false: of training, and of every algorithm that `words` name."""
    configs: list[type] = [TrainConfig]
    for word in words:
        with contextlib.suppress(UserError):  # not an algorithm; a wrong one is reported where it is looked up
            configs.append(type(next(iter(baselines.get(word).presets.values()))))
    return {name for config in configs for name, hint in typing.get_type_hints(config).items() if hint is bool}


def describe_settings(run: Run) -> str:
    """Every setting of the run: its name, its value and its meaning."""
    names_of_algorithm = {field.name for field in dataclasses.fields(run.config)}
    presets = ", ".join(baselines.get(run.algorithm).presets)
    lines = [f"{run.algorithm}, preset {run.preset} (presets: {presets})", *_described(run.config), "", "training"]
    names_of_training = [field.name for field in dataclasses.fields(TrainConfig)]
    for name, line in zip(names_of_training, _described(run.training, prefixed=names_of_algorithm), strict=True):
        if name not in OWN_FLAGS:
            lines.append(line)
    return "\n".join(lines)


def _described(config: Any, prefixed: Set[str] = frozenset()) -> list[str]:
    """A paragraph for each field; the names in `prefixed` are shown with TRAIN_PREFIX."""
    meanings, hints = field_meanings(type(config)), typing.get_type_hints(type(config))
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        name = f"{TRAIN_PREFIX}{field.name}" if field.name in prefixed else field.name
        first, *more = textwrap.wrap(f"{meanings.get(field.name, '')} ({_type_name(hints[field.name])})".strip(), 68)
        lines.append("\n".join([f"  {name + '=' + text:<38} {first}", *(f"{'':41}{line}" for line in more)]))
    return lines


def _type_name(hint: Any) -> str:
    """A type in the words of a help text."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(arguments[0])}, ..."
    if arguments:
        return " or ".join(_type_name(argument) for argument in arguments)
    name = str(hint.__name__)
    return "None" if hint is type(None) else {"bool": "true or false"}.get(name, name)


def field_meanings(config_class: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(tree, ast.ClassDef)
    meanings = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    meanings[field.target.id] = " ".join(text.split())
    return meanings


def train(run: Run, *, progress: bool = True) -> TrainResult:
    """Trains a run, with a progress bar; continues where it stopped when the folder holds the same run."""
    check_machine(run.training)  # before a dataset is built
    store = open_dataset(run.dataset_id)
    if difference := native.unlike_recipe(store):
        log.warning(
            "%s is not what its recipe makes: %s; results on it stay apart from those on the whole dataset (`marl-flow "
            "data build %s --force` builds that)",
            *(run.dataset_id, difference, run.dataset_id),
        )
    data = training_data(store)
    algorithm = baselines.get(run.algorithm)
    return run_training(run.folder, algorithm, run.config, run.training, data, preset=run.preset, progress=progress)


def describe_training(result: TrainResult) -> str:
    """One line about a finished training, for a terminal."""
    seconds, update = result.header.seconds["total"], result.header.update
    continued = "" if result.resumed_from is None else f", continued from update {result.resumed_from}"
    if result.resumed_from == update:
        continued = ", finished before: nothing was left to do"
    return f"{update:,} updates in {seconds:.0f} s{continued}; checkpoint {result.checkpoint}"
