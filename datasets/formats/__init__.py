"""Published dataset layouts: `import_dataset` reads and `export_dataset` writes them. Readers load on demand.

    omar      `.npy` per agent and seed (MPE)                      in
    madiff    `.npy` with path lengths (MA-MuJoCo, SMAC)           in, out
    vault     OG-MARL's flashbax vaults                            in       needs tensorstore
    d4rl      flat HDF5, one agent or (ours) several               in, out
    minari    one HDF5 group per episode, one agent or several     in, out  out needs minari

What comes in is checked value by value and written as an `EpisodeStore`, whole or not at all; memory holds one piece
of it. Bad input is a UserError that names the file, what was expected and what was found.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl_flow.config import nearest
from marl_flow.files import user_path
from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    from marl_flow.datasets.formats.record import Record
    from marl_flow.datasets.formats.robot import SharedRobot
    from marl_flow.datasets.store import EpisodeStore
    from marl_flow.interfaces import TaskSpec

LAYOUTS = ("omar", "madiff", "vault", "d4rl", "minari")
EXPORTS = ("madiff", "d4rl", "minari")
CARRY_SPEC = ("d4rl", "minari")
"""Layouts whose files can say which task they are of; for the others the caller must."""


def import_dataset(
    layout: str,
    source: Path,
    folder: Path,
    *,
    dataset_id: str,
    spec: TaskSpec | None,
    provenance: Mapping[str, Any],
    implied_task_id: str | None = None,
    shared: SharedRobot | None = None,
) -> EpisodeStore:
    """Reads the published files in `source` and writes them as a store to `folder`, all or nothing.

    `spec` says which task they are of; None is for d4rl and minari, whose files say or imply it: what is implied has
    the name `implied_task_id` (None: the layout's and the file's). shared: how agents share the robot whose own data
    d4rl and minari files may hold; those become the agents'. To `provenance` are added `layout`, `files` (size and
    sha256 of each file read) and what else the layout tells, such as `strata`.
    """
    _known(layout, LAYOUTS)
    from marl_flow.datasets.store import open_store
    from marl_flow.datasets.writer import AlreadyThere, StoreWriter

    source, folder = user_path(source), user_path(folder)
    if spec is None and layout not in CARRY_SPEC:
        raise UserError(
            f"expected the task of the {layout} data in {source} (its files do not name it), found none; "
            "pass one of `marl_flow.datasets.specs.known_spec`"
        )
    if folder.exists():
        raise AlreadyThere(f"{folder} already exists; use it as {dataset_id}, or remove it")
    try:
        dividing = (shared,) if shared and layout in CARRY_SPEC else ()
        with _module(layout).open_source(source, spec, *dividing) as opened:
            if spec is None and implied_task_id is not None and "exported_from" not in opened.provenance:
                opened = replace(opened, spec=replace(opened.spec, task_id=implied_task_id))
            record = {"layout": layout, "files": _file_records(opened.files, source), **opened.provenance}
            taken = sorted(record.keys() & provenance.keys())
            if taken:
                raise ValueError(f"provenance: the entries {taken} belong to the importer")
            _write(StoreWriter, opened, folder, dataset_id, {**provenance, **record})
    except AlreadyThere:
        raise
    except UserError as error:
        raise UserError(
            f"cannot import {source} as {layout} data: {error}; compare the files with the published ones, choose the "
            f"task they are of, or choose their layout ({', '.join(LAYOUTS)})"
        ) from error
    return open_store(folder, verify=False, dataset_id=dataset_id)


def record_in(layout: str, source: Path) -> Record | None:
    """What files that we exported say of themselves, the task and the dataset they come from; None for others'."""
    _known(layout, LAYOUTS)
    return _module(layout).record_in(user_path(source)) if layout in EXPORTS else None


def export_dataset(layout: str, store: EpisodeStore, target: Path) -> None:
    """Writes the store in a published layout to `target`, a file (d4rl) or folder, all or nothing.

    Reading it back with `import_dataset` gives the same arrays and task. Refuses to overwrite.
    """
    _known(layout, EXPORTS)
    from marl_flow.datasets.formats.target import new_path

    target = user_path(target)
    with new_path(target) as path:
        _module(layout).write(store, path, target)


def _write(writer_type: Any, opened: Any, folder: Path, dataset_id: str, provenance: Mapping[str, Any]) -> None:
    from marl_flow.datasets.formats.episodes import pieces

    with writer_type(
        folder,
        spec=opened.spec,
        dataset_id=dataset_id,
        provenance=provenance,
        has_final_observation=opened.has_final_observation,
    ) as writer:
        for piece in pieces(opened, dataset_id):
            writer.append(piece)


def _file_records(files: Sequence[Path], source: Path) -> list[dict[str, Any]]:
    """Name below the source, bytes and sha256 of each file."""
    from marl_flow.datasets.store import file_hash

    root = source if source.is_dir() else source.parent
    try:
        return [
            {"name": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in files
        ]
    except OSError as error:
        raise UserError(f"expected readable files, found: {error}") from error


def _known(layout: str, layouts: tuple[str, ...]) -> None:
    if layout not in layouts:
        raise UserError(f"unknown layout {layout!r}: expected one of {', '.join(layouts)}; {nearest(layout, layouts)}")


def _module(layout: str) -> Any:
    return importlib.import_module(f"marl_flow.datasets.formats.{layout}")
