"""One safetensors file per checkpoint: everything training continues from, and the JSON that says what it is.

    algorithm/...   the algorithm's complete state      normalizer/...   its normalisers
    generator/...   states of the named generators      metadata         `Header` as JSON, and a digest of the tensors

A checkpoint is written under a temporary name and renamed, so that a file with its final name is always complete.
Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from marl_flow import seeding
from marl_flow.algorithm import Algorithm, reference
from marl_flow.config import from_json, to_json
from marl_flow.files import write_atomically
from marl_flow.interfaces import TaskSpec, UserError
from marl_flow.normalize import Normalizers
from marl_flow.run_folder import CHECKPOINT_NAME, CHECKPOINTS, CONFIG, RunRecord, checkpoint_path

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
ASIDE = ".damaged"
"""Added to the name of a damaged file, which is then neither read nor pruned."""


class DamagedCheckpoint(UserError):
    """The file was cut short or changed: no version could read it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says of itself. `seconds` is the time spent so far, by use."""

    run: RunRecord
    update: int
    seconds: dict


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A header and flat tensors on the CPU."""

    header: Header
    algorithm: Mapping[str, Tensor]
    normalizers: Mapping[str, Tensor]
    generators: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under the name it has in the file, as a copy in memory of its own."""
        parts = {"algorithm": self.algorithm, "normalizer": self.normalizers, "generator": self.generators}
        return {
            f"{part}/{name}": value.detach().to("cpu", copy=True).contiguous()
            for part, values in parts.items()
            for name, value in values.items()
        }


# Writing


def save(run_folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Path of the written checkpoint; afterwards only it and the newest others, `keep` in all, are left."""
    path = checkpoint_path(run_folder, checkpoint.header.update)
    tensors = checkpoint.tensors()
    record = {"format_version": FORMAT_VERSION, "digest": _digest(tensors), "header": asdict(checkpoint.header)}
    data = to_bytes(tensors, metadata={"marl_flow": json.dumps(record, allow_nan=False)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        existing = _paths(run_folder)
        last = f"the last good checkpoint is {existing[-1]}" if existing else "there is no earlier checkpoint"
        raise UserError(
            f"could not write {path} ({error.strerror}): need {len(data) / 1e6:.1f} MB, found {_free(run_folder)}; "
            f"free some space or choose another --out; {last}"
        ) from error
    others = [other for other in _paths(run_folder) if other != path]
    for old in others[: max(0, len(others) - keep + 1)]:
        old.unlink()
    return path


def set_aside_after(run_folder: Path, update: int) -> None:
    """Renames damaged checkpoints of later updates, so that those of the continued run take their place."""
    for path in _paths(run_folder):
        if _update(path) > update:
            aside = path.with_name(path.name + ASIDE)
            path.replace(aside)
            log.warning("%s is later than update %d, from which training continues; kept as %s", path, update, aside)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError as error:
        return f"an unknown amount free ({error.strerror})"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of all tensors."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        result.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


# Reading


def _paths(run_folder: Path) -> list[Path]:
    """Checkpoints by rising update. Half-written files do not carry such a name."""
    folder = run_folder / CHECKPOINTS
    try:
        paths = [path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder of checkpoints, found {error.strerror}; make it readable, or choose another "
            "--out"
        ) from error
    return sorted(paths, key=lambda path: (_update(path), path.name))


def _update(path: Path) -> int:
    match = CHECKPOINT_NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def latest(run_folder: Path) -> Path | None:
    """The newest checkpoint whose header and length are whole; None in a run that has written none.

    Only damaged files are passed over. Where one cannot be read for another reason (its permissions, its version), or
    where all are damaged, it raises: training must not start again over them.
    """
    damaged: list[DamagedCheckpoint] = []
    for path in reversed(_paths(run_folder)):
        try:
            read_header(path)
        except DamagedCheckpoint as error:
            damaged.append(error)
        else:
            for fault in damaged:
                log.warning("passing over a damaged checkpoint in favour of %s: %s", path.name, fault)
            return path
    if damaged:
        raise UserError(
            f"{run_folder / CHECKPOINTS}: expected a checkpoint that can be read, found {len(damaged)} and all damaged "
            f"({'; '.join(map(str, damaged))}); restore one, delete them to train from the start, or choose "
            "another --out"
        )
    return None


def read_header(path: Path) -> Header:
    """What the file says of itself, without reading its tensors."""
    with _open(path) as file:
        return _header(path, file.metadata())[0]


def load(path: Path) -> Checkpoint:
    """The whole file, checked against its digest."""
    with _open(path) as file:
        header, digest = _header(path, file.metadata())
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    if _digest(tensors) != digest:
        raise DamagedCheckpoint(
            f"{path} is damaged: expected tensors with digest {digest[:16]}, found {_digest(tensors)[:16]}; delete it "
            "and continue from an earlier checkpoint"
        )
    parts: dict[str, dict[str, Tensor]] = {"algorithm": {}, "normalizer": {}, "generator": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    return Checkpoint(
        header=header, algorithm=parts["algorithm"], normalizers=parts["normalizer"], generators=parts["generator"]
    )


def _open(path: Path) -> Any:
    try:
        path.open("rb").close()  # `safe_open` calls every failure to open a missing file
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"expected a checkpoint at {path}, found no such file") from error
    except OSError as error:
        raise UserError(
            f"{path}: expected a checkpoint that can be read, found {error.strerror or error}; make it readable, "
            "or choose another --out"
        ) from error
    except SafetensorError as error:
        raise DamagedCheckpoint(
            f"{path} cannot be read: expected a whole safetensors file, found {error}; it was cut short or is not a "
            "checkpoint; delete it and continue from an earlier one"
        ) from error


def _header(path: Path, metadata: Mapping[str, str] | None) -> tuple[Header, str]:
    if not metadata or "marl_flow" not in metadata:
        raise UserError(f"{path} is not a checkpoint of marl_flow: expected its header, found {sorted(metadata or {})}")
    try:
        record = json.loads(metadata["marl_flow"])
        version = record["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{path} is damaged: expected a header in JSON, found {type(error).__name__} ({error}); delete it and "
            "continue from an earlier checkpoint"
        ) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected checkpoint format {FORMAT_VERSION}, found {version}; read it with the version of "
            "marl_flow that wrote it, or train again into another --out"
        )
    try:
        header = record["header"]
        return from_json(Header, {**header, "run": from_json(RunRecord, header["run"])}), record["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected the header of a checkpoint, found {type(error).__name__} ({error}); read it with the "
            "version of marl_flow that wrote it, or train again into another --out"
        ) from error


def load_algorithm(
    path: Path, find: Callable[[str], type[Algorithm]], *, device: torch.device
) -> tuple[Algorithm, Header]:
    """The trained algorithm of a checkpoint file, or of a run folder's newest, and what the file says of itself.

    `find` maps a name to its class (`baselines.get`).
    """
    file = latest(path) if path.is_dir() else path
    if file is None:
        raise UserError(f"{path} holds no checkpoint that can be read; train first, or name a checkpoint file")
    loaded = load(file)
    return restore(loaded, find(loaded.header.run.algorithm), file, device=device), loaded.header


def require_reloadable(algorithm: type[Algorithm], config: Any) -> None:
    """Raises unless a run of this config can be read again: what `restore` will do, before any work is done."""
    expected = type(next(iter(algorithm.presets.values())))
    try:
        same = type(config) is expected and from_json(expected, to_json(config)) == config
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{algorithm.name}: expected a {expected.__name__} whose fields are numbers, text, true or false, None or "
            f"tuples of them, so that the run can be read again, found {config!r}; "
            "marl_flow.checks.check_algorithm says more"
        )


def restore(loaded: Checkpoint, algorithm: type[Algorithm], file: Path, *, device: torch.device) -> Algorithm:
    """An instance that holds the checkpoint's state; `file` is named in errors."""
    run = loaded.header.run
    if reference(algorithm) != run.algorithm:
        raise UserError(f"{file}: expected a checkpoint of {algorithm.name}, found one of {run.algorithm}")
    try:
        config = from_json(type(next(iter(algorithm.presets.values()))), run.config)
        instance = algorithm.build(
            config,
            TaskSpec.from_json(run.task),
            Normalizers.from_state_dict(loaded.normalizers),
            device=device,
            generator=seeding.generator(run.training["seed"], "weights"),
        )
        instance.load_state_dict(loaded.algorithm)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not fit this version of {algorithm.name}: {error}; read it with the version that wrote it "
            f"({CONFIG} of its run names the commit), or train again"
        ) from error
    return instance
