"""A run folder: which process uses it, and which run it holds.

config.json     what the run is and what made it        metrics.jsonl, results.jsonl, tensorboard/   run_log.py
lock            held by the process that trains         checkpoints/                                 checkpoint.py
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from marl_flow.config import from_json
from marl_flow.files import lock_file, unfinished_writes, write_atomically
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

CONFIG = "config.json"
RETURN_PERCENTILES = "return_percentiles"
"""Key of the return quantiles in config.json, beside `run`: they say nothing of which run it is."""
LOCK = "lock"
CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"update_(\d{8,})\.safetensors")
MAY_CHANGE = frozenset(
    f"training.{name}" for name in ("updates", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
)
"""What may differ when a run is continued, because no weight depends on it."""


def checkpoint_path(run_folder: Path, update: int) -> Path:
    """The file of the checkpoint after that many updates."""
    return run_folder / CHECKPOINTS / f"update_{update:08d}.safetensors"


TRAIN_LONGER = (
    ". To train this run longer, leave `updates` as it was (the learning rate is spread over it) and add "
    "train.updates=NUMBER"
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run is: enough to repeat it. Dictionaries hold the JSON forms of the dataclasses they are named after."""

    algorithm: str
    preset: str
    config: dict
    config_digest: str
    task: dict
    dataset_id: str
    dataset_digest: str
    training: dict


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes the run folder this process's own inside the block; the kernel releases it however the process ends."""
    with lock_file(folder / LOCK, f"training into {folder}", "choose another --out"):
        yield


def read_config(run_folder: Path, run: RunRecord) -> dict[str, Any] | None:
    """The content of config.json, which must describe the same run; None in a folder that holds no run yet."""
    path = run_folder / CONFIG
    if path.exists():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            stored = from_json(RunRecord, record["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: expected the record of a run, found {error}; choose another --out") from error
        require_same_run(stored, run, run_folder)
        return record
    leftovers = [name for name in (CHECKPOINTS, "metrics.jsonl", "results.jsonl") if (run_folder / name).exists()]
    if leftovers:
        raise UserError(
            f"{run_folder} holds {', '.join(leftovers)} but no {CONFIG}, so nothing says which run they are of; "
            "restore it, or choose another --out"
        )
    return None


def write_config(run_folder: Path, run: RunRecord, return_percentiles: Callable[[], Sequence[float]]) -> None:
    """Makes config.json say what the folder holds: this run, with its latest length, and what made its first update.

    return_percentiles: called where the file has none yet, for the quantiles 0, 0.01, ..., 1 of the discounted returns
    of the data's episodes. They let a return-conditioned run act without its dataset.
    """
    stored = read_config(run_folder, run)
    record = {"run": json.loads(json.dumps(asdict(run))), "made_with": environment_info()}
    if stored is not None:
        record = stored | {"run": record["run"]}
    if RETURN_PERCENTILES not in record:
        record[RETURN_PERCENTILES] = list(return_percentiles())
    if record != stored:
        write_atomically(run_folder / CONFIG, (json.dumps(record, indent=2) + "\n").encode())


def stored_percentiles(run_folder: Path) -> list[float] | None:
    """The 101 return quantiles in config.json; None where the file is absent or was written before they were kept."""
    path = run_folder / CONFIG
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8")).get(RETURN_PERCENTILES)
        if values is not None and (len(values) != 101 or not all(isinstance(value, float) for value in values)):
            raise ValueError(f"{RETURN_PERCENTILES} that are not 101 numbers")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: expected the record of a run, found {error}; restore the file") from error
    return values


def warn_of_other_threads(run_folder: Path, run: RunRecord) -> None:
    """Warns when this process computes on another number of threads than the one that started the run."""
    stored = (read_config(run_folder, run) or {}).get("made_with")
    before, now = stored.get("threads") if isinstance(stored, Mapping) else None, torch.get_num_threads()
    if before not in (None, now):
        log.warning(
            "%s was started on %s threads and continues on %d: sums are rounded in another order, so the last bits "
            "will differ from those of a run that never stopped; to keep them, set OMP_NUM_THREADS=%s",
            *(run_folder, before, now, before),
        )


def require_same_run(stored: RunRecord, requested: RunRecord, source: Path) -> None:
    """Raises, naming each field that differs with both values, unless both are one run (see `MAY_CHANGE`)."""
    before, after = _comparable(stored), _comparable(requested)
    names = [name for name in {**before, **after} if before.get(name, "nothing") != after.get(name, "nothing")]
    if names:
        differences = [
            f"{name}: {before.get(name, 'nothing')} there, {after.get(name, 'nothing')} requested" for name in names
        ]
        raise UserError(
            f"{source} belongs to another run ({stored.config_digest}; requested: {requested.config_digest}): "
            f"{'; '.join(differences)}; choose another --out, or the same settings"
            + (TRAIN_LONGER if names == ["config.updates"] else "")
        )


def _comparable(run: RunRecord) -> dict[str, Any]:
    """Flat entries that must agree. Of the device only its type counts; the digest follows from the rest."""
    flat = {name: value for name, value in _flat(asdict(run)).items() if name not in MAY_CHANGE | {"config_digest"}}
    return flat | {"training.device": str(flat.get("training.device")).partition(":")[0]}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def environment_info() -> dict[str, Any]:
    """Versions and threads, and the commit when the package runs from a git checkout."""
    package = Path(__file__).resolve().parent
    commit = None
    if (package.parent / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def remove_unfinished(run_folder: Path) -> None:
    """Deletes what a killed training left half-written: files of exactly the names it writes under."""
    for path, name in unfinished_writes(run_folder):
        if name == CONFIG:
            path.unlink()
    for path, name in unfinished_writes(run_folder / CHECKPOINTS):
        if CHECKPOINT_NAME.fullmatch(name):
            path.unlink()
