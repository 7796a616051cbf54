"""Writes episode stores to disk: whole or not at all, piece by piece where they are large."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from marl_flow.datasets.catalog import refuse_dangling
from marl_flow.datasets.layout import ARRAYS, check_values
from marl_flow.datasets.store import FORMAT_VERSION, MANIFEST, EpisodeStore, content_digest, file_hash, open_store
from marl_flow.files import disk_errors, sync_folder, unfinished_writes, write_json
from marl_flow.interfaces import TaskSpec, UserError

PASSPORT = "passport.json"
"""What `verify` keeps beside the manifest."""
_HEADER_BYTES = 128  # every .npy header is padded to this, so that it can be rewritten once the shape is known


class AlreadyThere(UserError):
    """A dataset has the place another was to be written to, perhaps since a moment ago."""


class StoreWriter:
    """Writes one store in pieces; used as a context, at whose end the whole folder appears under its name.

    Pieces go straight to the files, so a dataset larger than memory needs only one piece in it. An error inside the
    context, a full disk included, leaves nothing behind; a killed process leaves a `.partial` neighbour at most.
    """

    def __init__(
        self,
        folder: Path,
        *,
        spec: TaskSpec,
        dataset_id: str,
        provenance: Mapping[str, Any],
        has_final_observation: bool = True,
    ) -> None:
        self.folder, self.spec, self.dataset_id = Path(folder), spec, dataset_id
        self.provenance, self.has_final_observation = provenance, has_final_observation
        self.rows: dict[str, int] = {}
        self.num_episodes = self.num_steps = 0
        self._dtypes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        refuse_dangling(self.folder)
        if self.folder.exists():
            raise AlreadyThere(
                f"{self.folder} already exists; use it as {self.dataset_id}, remove it, or build a native dataset "
                "again with --force"
            )
        with _disk_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{self.folder.name}.partial-"
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder.parent))
        return self

    def append(self, piece: EpisodeStore) -> None:
        """Adds the episodes of a store in memory of the same task and layout."""
        arrays = dict(piece.arrays())
        check_values(self.spec, arrays, first_episode=self.num_episodes)
        layout = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        self._dtypes = self._dtypes or layout
        if (
            piece.spec != self.spec
            or layout != self._dtypes
            or piece.has_final_observation != self.has_final_observation
        ):
            raise ValueError(f"expected a piece of {self.dataset_id} laid out as {self._dtypes}, got {piece!r}")
        arrays["offsets"] = piece.offsets[1 if self.num_episodes else 0 :] + self.num_steps
        with _disk_errors(self.folder):
            for name, array in arrays.items():
                if name not in self._files:
                    self._files[name] = (self._partial / f"{name}.npy").open("wb")
                    self._files[name].write(_header(array.dtype, (0, *array.shape[1:])))
                self._files[name].write(np.ascontiguousarray(array).data)
                self.rows[name] = self.rows.get(name, 0) + len(array)
        self.num_episodes += piece.num_episodes
        self.num_steps += piece.num_steps

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error_type is None:
                with _disk_errors(self.folder):
                    self._finish()
        finally:
            for file in self._files.values():
                file.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _finish(self) -> None:
        if not self.num_episodes:
            raise ValueError(f"{self.dataset_id}: nothing was appended")
        entries = {}
        for name, file in self._files.items():
            dtype, shape = self._dtypes[name][0], (self.rows[name], *self._dtypes[name][1])
            file.seek(0)
            file.write(_header(dtype, shape))
            file.flush()
            os.fsync(file.fileno())
            entries[name] = {
                "file": f"{name}.npy",
                "dtype": str(dtype),
                "shape": list(shape),
                "sha256": file_hash(self._partial / f"{name}.npy"),
            }
        manifest = {
            "format_version": FORMAT_VERSION,
            "dataset_id": self.dataset_id,
            "task": self.spec.to_json(),
            "episodes": self.num_episodes,
            "steps": self.num_steps,
            "has_final_observation": self.has_final_observation,
            "arrays": entries,
            "digest": content_digest(self.spec, self.has_final_observation, entries),
            "provenance": {"platform": platform_record(), **self.provenance},
        }
        write_json(self._partial / MANIFEST, manifest)
        self._partial.chmod(0o755)  # mkdtemp's 0700 would hide a shared data root from others
        self._partial.rename(self.folder)
        sync_folder(self.folder.parent)


def write_store(folder: Path, store: EpisodeStore) -> EpisodeStore:
    """Writes a store in memory to a new folder, all or nothing, and opens it; refuses to overwrite."""
    with StoreWriter(
        folder,
        spec=store.spec,
        dataset_id=store.dataset_id,
        provenance=store.provenance,
        has_final_observation=store.has_final_observation,
    ) as writer:
        writer.append(store)
    return open_store(folder)


def remove_store(folder: Path) -> None:
    """Deletes a store's folder; refuses one that holds anything a store does not."""
    refuse_foreign(folder)
    with _disk_errors(folder):
        shutil.rmtree(folder)


def replace_store(folder: Path, fresh: Path) -> None:
    """Puts the store in `fresh` at `folder`, whose former one is deleted last of all: no moment has neither on disk."""
    refuse_foreign(folder)
    former = folder.with_name(f".{folder.name}.former-{os.getpid()}")
    with _disk_errors(folder):
        folder.rename(former)
        try:
            fresh.rename(folder)
        except BaseException:
            if not folder.exists():
                former.rename(folder)
            raise
        sync_folder(folder.parent)
        shutil.rmtree(former)


def refuse_foreign(folder: Path) -> None:
    """Raises a UserError when a store's folder holds anything a store does not."""
    own = {MANIFEST, PASSPORT, *(f"{name}.npy" for name in ARRAYS)}
    own |= {path.name for path, name in unfinished_writes(folder) if name == PASSPORT}
    foreign = sorted({path.name for path in folder.iterdir()} - own)
    if foreign:
        raise UserError(
            f"expected a dataset's files only in {folder}, found {foreign[0]} too; remove the folder yourself"
        )


def platform_record() -> dict[str, str]:
    """What floating-point results depend on: processor features and library versions."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("marl_flow", "mujoco", "numpy", "torch")},
    }


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """A `.npy` 1.0 header of fixed length: it can be rewritten in place, and its bytes depend on no library version."""
    text = f"{{'descr': '{np.lib.format.dtype_to_descr(dtype)}', 'fortran_order': False, 'shape': {shape}, }}"
    body = text.encode().ljust(_HEADER_BYTES - 11) + b"\n"
    assert len(body) == _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns a failing disk (full, read-only, not ours) into one message, and a place just taken into another."""
    with disk_errors(folder):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not folder.exists():
                raise
            raise AlreadyThere(
                f"{folder} was built meanwhile by another process; use it as it is, or build with --force"
            ) from error
