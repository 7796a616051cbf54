"""Published datasets made ready to import: which file to take, fetch and unpack it, which folder the importer reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from marl_flow.datasets import catalog
from marl_flow.datasets.remote import sources
from marl_flow.datasets.remote.archive import unpack
from marl_flow.datasets.remote.download import Patience, Progress
from marl_flow.datasets.remote.fetch import (
    BY_HAND,
    archive_place,
    fetch_held,
    hold,
    remember,
    seen_before,
    unpacked_place,
)
from marl_flow.datasets.remote.sources import Layout, RemoteFile
from marl_flow.files import InUse, disk_errors, read_json, write_json
from marl_flow.interfaces import UserError

Step = Literal["nothing", "unpack", "download", "by_hand"]
STEPS: tuple[Step, ...] = ("nothing", "unpack", "download", "by_hand")
"""What is left to do, least first: the content is there, the file is there, it can be downloaded, a person has to."""

_MARKER = ".marl_flow.json"  # in folders that were unpacked here, so may be deleted again
_DEEPEST = 6  # levels below an unpacked folder in which a dataset is looked for
_MARKS: Mapping[Layout, str] = {"omar": "seed_*_data", "madiff": "obs.npy", "vault": "metadata.json"}
"""What lies in the folder of one quality, by layout."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `fetch_dataset` will do.

    archive, unpacked: where the file and its content are or will be. bytes_here: of an unfinished download.
    """

    dataset_id: str
    file: RemoteFile
    step: Step
    archive: Path
    unpacked: Path
    bytes_here: int


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A dataset ready for the importer of `file.layout`: `source` is the folder to read.

    archive: None where only the content is there. provenance: what a store imported from it should record.
    """

    dataset_id: str
    file: RemoteFile
    source: Path
    unpacked: Path
    archive: Path | None
    provenance: Mapping[str, Any]


def plan(dataset_id: str, *, root: Path | None = None, source: str | None = None) -> Plan:
    """Which published file to take a dataset from, and what is left to do; touches nothing.

    `source` names one of `sources.files_of`. Without it: the one that is here already, else the one whose download has
    begun, else the first that can be downloaded, else the first.
    """
    downloads = catalog.downloads_root(root)
    files = sources.files_of(dataset_id)
    if source is not None:
        files = tuple(file for file in files if file.name == source)
        if not files:
            names = ", ".join(file.name for file in sources.files_of(dataset_id))
            raise UserError(f"expected a source of {dataset_id} ({names}), got {source!r}")
    plans = [_plan(str(catalog.find(dataset_id).dataset_id), file, downloads) for file in files]
    return min(plans, key=lambda one: (STEPS.index(one.step), not one.bytes_here))


def _plan(dataset_id: str, file: RemoteFile, downloads: Path) -> Plan:
    archive, unpacked = archive_place(file, downloads), unpacked_place(file, downloads)
    part = archive.with_name(f"{archive.name}.part")
    step: Step = "download" if file.urls else "by_hand"
    if unpacked.exists():
        step = "nothing"
    elif archive.exists():
        step = "unpack"
    return Plan(
        dataset_id=dataset_id,
        file=file,
        step=step,
        archive=archive,
        unpacked=unpacked,
        bytes_here=part.stat().st_size if part.exists() else 0,
    )


@contextmanager
def fetch_dataset(
    dataset_id: str,
    *,
    root: Path | None = None,
    source: str | None = None,
    progress: Callable[[str], Progress] | None = None,
    patience: Patience | None = None,
) -> Iterator[Fetched]:
    """Carries out `plan`: the dataset's published files, downloaded where needed and unpacked, inside the block.

    The block is where to import them, `exchange.import_dataset(fetched.file.layout, fetched.source, ...)`: meanwhile no
    other process touches them. `clean_up` comes after it, once for all datasets of one file. `progress` makes a
    progress callback from a title, for each stage that may take long.
    """
    chosen = plan(dataset_id, root=root, source=source)
    file, unpacked, downloads = chosen.file, chosen.unpacked, catalog.downloads_root(root)
    show = progress or (lambda title: lambda done, total: None)
    with hold(file, downloads):
        if not unpacked.exists():
            archive = fetch_held(file, downloads, show(f"downloading {file.name}"), patience or Patience())
            fresh = unpacked.with_name(f".{unpacked.name}.fresh")
            with disk_errors(fresh):
                shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
            unpack(archive, fresh, progress=show(f"unpacking {archive.name}"))
            seen = seen_before(archive)
            assert seen is not None, "fetching records what it found"
            with disk_errors(unpacked):
                write_json(fresh / _MARKER, asdict(seen))
                fresh.rename(unpacked)
        record = read_json(unpacked / _MARKER) or {"origin": BY_HAND}
        yield Fetched(
            dataset_id=chosen.dataset_id,
            file=file,
            source=_folder_of(chosen.dataset_id, file.layout, unpacked),
            unpacked=unpacked,
            archive=chosen.archive if chosen.archive.exists() else None,
            provenance={
                "made_by": "marl_flow.datasets.remote.dataset",
                "published_file": {"name": file.name, **record},
                "licence": file.licence,
                "citation": file.citation,
            },
        )


def clean_up(fetched: Iterable[Fetched], *, keep_archive: bool = False) -> None:
    """Deletes what was unpacked, and unless they are to be kept the archives; nothing that was put there by hand.

    What another process is using is left for that one to clean up.
    """
    for one in fetched:
        with suppress(InUse), hold(one.file, one.unpacked.parents[1]), disk_errors(one.unpacked):
            if (one.unpacked / _MARKER).exists():
                shutil.rmtree(one.unpacked)
            seen = None if one.archive is None else seen_before(one.archive)
            if seen is not None and one.archive is not None and not keep_archive and seen.origin != BY_HAND:
                one.archive.unlink(missing_ok=True)
                remember(one.archive, replace(seen, origin=None))


def _folder_of(dataset_id: str, layout: Layout, unpacked: Path) -> Path:
    """The one folder below `unpacked` that holds this dataset: named after its quality, marked as its layout has it."""
    identity = catalog.parse(dataset_id)
    marked = [folder for folder in _folders(unpacked) if next(folder.glob(_MARKS[layout]), None) is not None]
    found = [folder for folder in marked if _plain(folder.name) == _plain(identity.quality)]
    if len(found) > 1:
        found = [f for f in found if _plain(identity.task) in map(_plain, f.relative_to(unpacked).parts)]
    if len(found) != 1:
        there = ", ".join(str(folder.relative_to(unpacked)) for folder in marked[:10]) or "none"
        raise UserError(
            f"expected one folder of {dataset_id} below {unpacked}, named {identity.task}/{identity.quality} (in any "
            f"case) and with {_MARKS[layout]} in it, found {len(found)}; with that there are: {there}; rename the one "
            f"that is meant, or delete {unpacked} to begin anew"
        )
    return found[0]


def _folders(top: Path) -> Iterator[Path]:
    """Folders below `top` in order of name, down to a few levels."""
    for place, names, _ in os.walk(top):
        names.sort()
        if len(Path(place).relative_to(top).parts) >= _DEEPEST:
            names.clear()
        yield from (Path(place) / name for name in names)


def _plain(name: str) -> str:
    """A folder's name as ids are written: Medium_Replay is medium-replay, 3m.vlt is 3m."""
    return name.lower().removesuffix(".vlt").replace("_", "-")
