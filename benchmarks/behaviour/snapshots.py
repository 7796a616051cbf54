"""The folder of a behaviour policy's training: actors kept on the way, what they returned, and where it can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from marl_flow.files import write_atomically
from marl_flow.interfaces import UserError


class KeptActors:
    """`actor_<iteration>.safetensors`, `record.json` (task, config, a row per actor) and `checkpoint.safetensors`."""

    def __init__(self, folder: Path, task_id: str, config: Any) -> None:
        self.folder, self.task_id, self.config = folder, task_id, asdict(config)
        self.rows: list[dict[str, float]] = []

    def resume(self) -> dict[str, Tensor] | None:
        """The last checkpoint's tensors, None where nothing was begun. Settings other than the length must be its."""
        checkpoint = self.folder / "checkpoint.safetensors"
        if not checkpoint.exists():
            return None
        former = read_record(self.folder)
        if former["task"] != self.task_id:
            raise UserError(f"{self.folder} is the training of {former['task']}; expected another folder")
        changed = [k for k, v in self.config.items() if k != "iterations" and former["config"].get(k) != v]
        if changed:
            raise UserError(
                f"{self.folder} was begun with other settings ({', '.join(changed)}); expected the same, or another "
                "folder"
            )
        self.rows = former["kept"]
        return load_file(checkpoint)

    def keep(
        self, iteration: int, actor: Mapping[str, Tensor], measured: Mapping[str, float], state: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Writes an actor, its row and where training is; returns the row. Later rows of a former training go."""
        row = {"iteration": iteration, **measured}
        self.rows = [*(former for former in self.rows if former["iteration"] < iteration), row]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(actor_file(self.folder, iteration), save(dict(actor)))
        record = {"task": self.task_id, "config": self.config, "kept": self.rows}
        write_atomically(self.folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())
        write_atomically(self.folder / "checkpoint.safetensors", save(dict(state)))  # last: the others may be ahead
        return row


def read_record(folder: Path) -> dict[str, Any]:
    """`record.json` of a training."""
    file = folder / "record.json"
    if not file.is_file():
        raise UserError(f"{folder}: expected the folder of a training, it has no {file.name}; train first")
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def write_policies(name: Path, tensors: Mapping[str, Tensor], choices: Mapping[str, object]) -> str:
    """Writes `<name>.safetensors` and, beside it, the choices it came of; these as text."""
    text = json.dumps(choices, indent=1)
    write_atomically(name.with_name(f"{name.name}.safetensors"), save(dict(tensors)))
    write_atomically(name.with_name(f"{name.name}.json"), (text + "\n").encode())
    return text


def actor_file(folder: Path, iteration: float) -> Path:
    return folder / f"actor_{int(iteration):05d}.safetensors"
