"""Snapshots of behaviour policies: the training folder that keeps them, how they return, and the policy file.

A training exports its actor every few iterations. Which of these snapshots collect a dataset, and what fraction of its
episodes each, is chosen afterwards so that the mean return meets the published one (`EvaluatedSnapshots`). The policy
file is the one that datasets/behaviour.py reads.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from marl_flow.files import write_atomically
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)


class PolicyNetwork(nn.Module):
    """Outputs [..., A] of inputs [..., D]: linear layers, a tanh after every hidden one; as in datasets/behaviour.py.

    sizes: D, the hidden sizes, A. output_scale: what the first weights of the last layer are multiplied by.
    """

    def __init__(self, sizes: Sequence[int], output_scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        with torch.no_grad():
            self.layers[-1].get_parameter("weight").mul_(output_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)

    def float16_layers(self) -> dict[str, Tensor]:
        """Copies of the layers' weights as policy files hold them."""
        return {f"layers.{name}": value.half() for name, value in self.layers.state_dict().items()}


def policy_tensors(
    quality: str, snapshots: Sequence[Mapping[str, Tensor]], fractions: Sequence[float], **others: Tensor
) -> dict[str, Tensor]:
    """The policy file's tensors of one quality: its snapshots' weights and the fraction of the episodes each collects.

    Snapshots are tensors by the names `layers.<i>.weight`, `layers.<i>.bias` and any others of the file's; `others`
    have a leading dimension of one entry per snapshot already.
    """
    stacked = {
        name.replace("layers.", "layer"): torch.stack([snapshot[name] for snapshot in snapshots])
        for name in snapshots[0]
    }
    stacked |= {**others, "episodes_share": torch.tensor(fractions)}
    return {f"{quality}/{name}": value.contiguous() for name, value in stacked.items()}


def write_policies(name: Path, tensors: Mapping[str, Tensor], choices: Mapping[str, object]) -> str:
    """Writes `<name>.safetensors` and, beside it, `<name>.json` with the choices that led to it; returns these as text.

    Creates the folder."""
    text = json.dumps(choices, indent=1)
    name.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(name.with_name(f"{name.name}.safetensors"), save(dict(tensors)))
    write_atomically(name.with_name(f"{name.name}.json"), (text + "\n").encode())
    return text


class SnapshotFolder:
    """`actor_<iteration>.safetensors`, `record.json` (task, config, a row per snapshot), `checkpoint.safetensors`."""

    def __init__(self, folder: Path, task_id: str, config: Any) -> None:
        self.folder, self.task_id, self.config = folder, task_id, asdict(config)
        self.rows: list[dict[str, float]] = []

    def resume(self) -> dict[str, Tensor] | None:
        """The last checkpoint's tensors; None where no training was started. Only the number of iterations may differ
        from the settings that the training was started with."""
        checkpoint = self.folder / "checkpoint.safetensors"
        if not checkpoint.exists():
            return None
        record = read_record(self.folder)
        if record["task"] != self.task_id:
            raise UserError(
                f"{self.folder}: expected a training of {self.task_id}, found one of {record['task']}; choose another "
                "folder"
            )
        if changed := [k for k, v in self.config.items() if k != "iterations" and record["config"].get(k) != v]:
            raise UserError(
                f"{self.folder}: expected a training with the present settings, found other values of "
                f"{', '.join(changed)}; choose another folder"
            )
        self.rows = record["snapshots"]
        return load_file(checkpoint)

    def add(
        self, iteration: int, actor: Mapping[str, Tensor], measured: Mapping[str, float], state: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Writes a snapshot, its row and the state to resume from; returns the row.

        Rows of this iteration and later ones, from a training that was killed, are dropped."""
        row = {"iteration": iteration, **measured}
        self.rows = [*(earlier for earlier in self.rows if earlier["iteration"] < iteration), row]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(snapshot_file(self.folder, iteration), save(dict(actor)))
        record = {"task": self.task_id, "config": self.config, "snapshots": self.rows}
        write_atomically(self.folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())
        write_atomically(self.folder / "checkpoint.safetensors", save(dict(state)))  # last: the others may be ahead
        return row


def read_record(folder: Path) -> dict[str, Any]:
    """`record.json` of a training: task, config, snapshots (a row each)."""
    file = folder / "record.json"
    if not file.is_file():
        raise UserError(f"{folder}: expected the folder of a training, found no {file.name} in it; train first")
    record: dict[str, Any] = json.loads(file.read_text())
    if missing := {"task", "config", "snapshots"} - set(record):
        raise UserError(
            f"{file}: expected task, config and snapshots, found no {', '.join(sorted(missing))}; the folder was "
            "written by another version of marl_flow: train again in another folder"
        )
    return record


def snapshot_file(folder: Path, iteration: float) -> Path:
    return folder / f"actor_{int(iteration):05d}.safetensors"


Fractions = dict[int, float]
"""Chosen snapshots, by their row in the record, and the fraction of the episodes that each collects."""


class EvaluatedSnapshots:
    """One training's snapshots, and their mean returns over more episodes than training itself measured them by.

    evaluate: from a snapshot's tensors to what is measured of it, its mean "return" among them; called once for each
    snapshot that is looked at.
    """

    def __init__(self, folder: Path, evaluate: Callable[[dict[str, Tensor]], Mapping[str, float]]) -> None:
        self.folder, self.evaluate = folder, evaluate
        self.rows: list[dict[str, float]] = read_record(folder)["snapshots"]
        self.measured: dict[int, dict[str, float]] = {}

    def weights(self, index: int) -> dict[str, Tensor]:
        return load_file(snapshot_file(self.folder, self.rows[index]["iteration"]))

    def mean(self, index: int) -> float:
        if index not in self.measured:
            self.measured[index] = {**self.rows[index], **self.evaluate(self.weights(index))}
            log.info("%s %s", self.folder.name, self.measured[index])
        return self.measured[index]["return"]

    def choices(self, target: float, fractions: Fractions) -> dict[str, object]:
        """What is written beside the policy file about one quality."""
        actors = [{**self.measured[index], "share": round(part, 4)} for index, part in fractions.items()]
        return {"target": target, "actors": actors}

    def single_or_neighbours(self, target: float, shortfall: float) -> Fractions:
        """The best snapshot where its mean is at most `shortfall` below the target and not above it; else the first
        two consecutive ones with the target between them, in the fractions that bring their mean to it.

        The best and the neighbours are looked for by training's measurements and confirmed by the longer ones. Where
        no neighbours are confirmed, the first two that follow each other among those that were measured for it.
        """
        best = max(range(len(self.rows)), key=lambda index: self.rows[index]["return"])
        if target - shortfall <= self.mean(best) <= target:
            return {best: 1.0}
        candidates: list[int] = []
        for pair in itertools.pairwise(range(len(self.rows))):
            if _is_between(target, *(self.rows[index]["return"] for index in pair)):
                if _is_between(target, *map(self.mean, pair)):
                    return self._mixture(target, *pair)
                candidates += pair
        for pair in itertools.pairwise(candidates):
            if _is_between(target, *map(self.mean, pair)):
                return self._mixture(target, *pair)
        raise self._nothing_around(target)

    def around_first_pass(self, target: float, shortfall: float) -> Fractions:
        """The last snapshot below the target before training first passed it and the first one above it from there on,
        in the fractions that bring their mean to it; the better one alone where it is at most `shortfall` below."""
        count = len(self.rows)
        passed = next((index for index, row in enumerate(self.rows) if row["return"] >= target), count)
        early = next((index for index in reversed(range(passed)) if self.mean(index) < target), None)
        late = next((index for index in range(passed, count) if self.mean(index) > target), None)
        if late is None:
            late = max(range(count), key=lambda index: self.rows[index]["return"])
        if early is None or self.mean(late) < target - shortfall:
            raise self._nothing_around(target)
        if self.mean(late) <= target:
            return {late: 1.0}
        return self._mixture(target, early, late)

    def beginning(self, target: float) -> Fractions:
        """All snapshots up to the first that brings their mean to the target from below: equal fractions, but for the
        last one's."""
        deficit = 0.0  # how far the snapshots so far are below the target, summed
        for index in range(len(self.rows)):
            excess = self.mean(index) - target
            if 0 < deficit <= excess:
                weight = deficit / excess
                return {**dict.fromkeys(range(index), 1 / (index + weight)), index: weight / (index + weight)}
            deficit -= excess
        raise self._nothing_around(target)

    def _mixture(self, target: float, early: int, late: int) -> Fractions:
        first, second = self.mean(early), self.mean(late)
        fraction = (target - first) / (second - first)
        return {early: 1 - fraction, late: fraction}

    def _nothing_around(self, target: float) -> UserError:
        returns = [row["return"] for row in self.rows]
        advice = "train longer" if max(returns) < target else "take snapshots more often, or start from other weights"
        return UserError(
            f"{self.folder}: expected snapshots whose mean return can be brought to {target}, found none among returns "
            f"from {min(returns)} to {max(returns)}; {advice}"
        )


def _is_between(target: float, first: float, second: float) -> bool:
    return min(first, second) < target <= max(first, second)
