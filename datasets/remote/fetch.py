"""Published datasets onto this disk, whole and verified or not at all, and unpacked for the importer.

Under the downloads folder lie

    <name>.zip             a file as published, under its name in `sources.FILES`
    <name>.zip.json        its `FileRecord`; stays when the file is deleted
    <name>.zip.part        a download under way; the same command continues it
    unpacked/<name>/       what the file holds

What a user put there by hand, under those names, is taken, verified as far as can be, and never deleted.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from marl_flow.config import from_json
from marl_flow.datasets import catalog
from marl_flow.datasets.remote import sources
from marl_flow.datasets.remote.archive import SUFFIXES, check_archive, suffix_of, unpack
from marl_flow.datasets.remote.download import DownloadError, Progress, RetryPolicy, download, size_of
from marl_flow.datasets.remote.sources import Layout, RemoteFile
from marl_flow.datasets.store import file_hash
from marl_flow.files import InUse, disk_errors, lock_file, read_json, write_json
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

Step = Literal["nothing", "unpack", "download", "by_hand"]
STEPS: tuple[Step, ...] = ("nothing", "unpack", "download", "by_hand")
"""What is left to do, least first: the content is here, the file is here, it can be downloaded, a person has to."""
BY_HAND = "put there by hand"

_MARKER = ".marl_flow.json"  # in folders that were unpacked here, so may be deleted again
_DEEPEST = 6  # levels below an unpacked folder in which a dataset is looked for
_MARKS: Mapping[Layout, str] = {"omar": "seed_*_data", "madiff": "obs.npy", "vault": "metadata.json"}
"""What lies in the folder of one quality, by layout."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file that was verified here. origin: the address it came from, BY_HAND, or None once it was deleted again."""

    sha256: str
    bytes: int
    origin: str | None


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

    archive: None where only the content is here. provenance: what a store imported from it should record.
    """

    dataset_id: str
    file: RemoteFile
    source: Path
    unpacked: Path
    archive: Path | None
    provenance: Mapping[str, Any]


class _WrongFile(Exception):
    """These bytes are not the published file; the message says what was expected and found."""


def plan(dataset_id: str, *, root: Path | None = None, source: str | None = None) -> Plan:
    """Which published file to take a dataset from, and what is left to do; touches nothing.

    `source` names one of `sources.files_of`. Without it: the one that is here already, else the one whose download has
    started, else the first that can be downloaded, else the first.
    """
    downloads = catalog.downloads_root(root)
    files = sources.files_of(dataset_id)
    if source is not None and source not in [file.name for file in files]:
        names = ", ".join(file.name for file in files)
        raise UserError(f"expected a source of {dataset_id} ({names}), got {source!r}")
    name = str(catalog.find(dataset_id).dataset_id)
    plans = [_plan(name, file, downloads) for file in files if source in (None, file.name)]
    return min(plans, key=lambda plan: (STEPS.index(plan.step), not plan.bytes_here))


def _plan(dataset_id: str, file: RemoteFile, downloads: Path) -> Plan:
    archive, unpacked = archive_path(file, downloads), unpacked_path(file, downloads)
    step: Step = "download" if file.url else "by_hand"
    if unpacked.exists():
        step = "nothing"
    elif archive.exists():
        step = "unpack"
    bytes_here = size_of(_part_path(archive))
    return Plan(dataset_id=dataset_id, file=file, step=step, archive=archive, unpacked=unpacked, bytes_here=bytes_here)


@contextmanager
def fetch_dataset(
    dataset_id: str,
    *,
    root: Path | None = None,
    source: str | None = None,
    progress: Callable[[str], Progress] | None = None,
    retry: RetryPolicy | None = None,
) -> Iterator[Fetched]:
    """Carries out `plan`: the dataset's published files, downloaded where needed and unpacked, inside the block.

    The block is where to import them, `formats.import_dataset(fetched.file.layout, fetched.source, ...)`: meanwhile no
    other process touches them. `clean_up` comes after it, once for all datasets of one file. `progress` makes a
    progress callback from a title, for each stage that may take long.
    """
    chosen = plan(dataset_id, root=root, source=source)
    file, unpacked, downloads = chosen.file, chosen.unpacked, catalog.downloads_root(root)
    show = progress or (lambda title: lambda done, total: None)
    with lock(file, downloads):
        if not unpacked.exists():
            archive = fetch_file(file, downloads, show(f"downloading {file.name}"), retry)
            fresh = unpacked.with_name(f".{unpacked.name}.fresh")
            with disk_errors(fresh):
                shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
            unpack(archive, fresh, progress=show(f"unpacking {archive.name}"))
            record = read_record(archive)
            assert record is not None, "fetching a file records it"
            with disk_errors(unpacked):
                write_json(fresh / _MARKER, asdict(record))
                fresh.rename(unpacked)
        yield Fetched(
            dataset_id=chosen.dataset_id,
            file=file,
            source=_folder_of(chosen.dataset_id, file.layout, unpacked),
            unpacked=unpacked,
            archive=chosen.archive if chosen.archive.exists() else None,
            provenance={
                "made_by": "marl_flow.datasets.remote.fetch",
                "published_file": {"name": file.name, **(read_json(unpacked / _MARKER) or {"origin": BY_HAND})},
                "licence": file.licence,
                "citation": file.citation,
            },
        )


def clean_up(fetched: Iterable[Fetched], *, keep_archive: bool = False) -> None:
    """Deletes what was unpacked, and unless they are to be kept the archives; nothing that was put there by hand.

    What another process is using is left for that one to clean up.
    """
    for dataset in fetched:
        archive, unpacked = dataset.archive, dataset.unpacked
        with suppress(InUse), lock(dataset.file, unpacked.parents[1]), disk_errors(unpacked):
            if (unpacked / _MARKER).exists():
                shutil.rmtree(unpacked)
            record = None if archive is None else read_record(archive)
            if record is not None and archive is not None and not keep_archive and record.origin != BY_HAND:
                archive.unlink(missing_ok=True)
                _write_record(archive, replace(record, origin=None))


def lock(file: RemoteFile, downloads: Path) -> AbstractContextManager[None]:
    """Keeps other processes from fetching or unpacking this file inside the block."""
    return lock_file(downloads / f".{file.name}.lock", f"fetching {file.name}")


def fetch_file(
    file: RemoteFile, downloads: Path, progress: Progress | None = None, retry: RetryPolicy | None = None
) -> Path:
    """The published file, whole and verified: found on this disk, or downloaded. Call it inside `lock`.

    Verified by its published size and sha256; where no hash is published, by the one recorded when the file was first
    here. Where it has no address, or that does not work, a UserError says why and what to do by hand.
    """
    path = archive_path(file, downloads)
    if path.exists():
        try:
            digest, record = _verified_hash(file, path, path), read_record(path)
        except _WrongFile as error:
            raise UserError(
                f"{path}: {error}; to have the published file, delete this one and fetch again; if it is right, unpack "
                f"it yourself to {unpacked_path(file, downloads)}"
            ) from error
        if record is None or record.origin is None:
            _write_record(path, FileRecord(sha256=digest, bytes=path.stat().st_size, origin=BY_HAND))
        return path
    if file.address is None:
        raise UserError(
            f"{file.name}: expected it in {downloads}, found nothing, and no program can download it. {file.manual} "
            f"Put the archive at {downloads / file.name}.zip (or {', '.join(SUFFIXES[1:])}), or its content into the "
            f"folder {unpacked_path(file, downloads)}, and give the same command again"
        )
    log.info("%s (%s): downloading %s", file.name, file.size, file.address)
    try:
        _download(file, file.address, path, progress, retry or RetryPolicy())
    except DownloadError as error:
        raise UserError(
            f"{file.name}: could not download {file.size} from {file.address}: {error}. The same command continues "
            "with what has come. Behind a proxy, set https_proxy; to use a mirror of Hugging Face, set "
            f"{sources.MIRROR_SETTINGS[0]}; or download the file yourself and put it at {path}"
        ) from error
    return path


def _download(file: RemoteFile, url: str, path: Path, progress: Progress | None, retry: RetryPolicy) -> None:
    """Puts the file at `path`, verified. One that several connections brought and that is wrong is downloaded again,
    once."""
    part, has_hash = _part_path(path), _expected_hash(file, path) is not None
    for may_repeat in (True, False):
        in_one_go = download(url, part, size_bytes=file.size_bytes, has_hash=has_hash, retry=retry, progress=progress)
        try:
            digest = _verified_hash(file, part, path)
            break
        except _WrongFile as error:
            part.unlink()
            if in_one_go or not may_repeat:
                raise DownloadError(f"gave another file: {error}") from error
            log.warning("%s: %s; downloading it again", url, error)
    _write_record(path, FileRecord(sha256=digest, bytes=part.stat().st_size, origin=url))
    with disk_errors(path):
        part.rename(path)


def _verified_hash(file: RemoteFile, downloaded: Path, path: Path) -> str:
    """sha256 of the file `downloaded`, which is or will be `path`; raises unless it is the published file."""
    size, expected = downloaded.stat().st_size, _expected_hash(file, path)
    if file.size_bytes not in (None, size):
        raise _WrongFile(f"expected {file.size_bytes:,} bytes, found {size:,}")
    digest = file_hash(downloaded)
    if file.sha256 not in (None, digest):
        raise _WrongFile(f"expected sha256 {file.sha256}, found {digest}: damaged, or not the published file")
    if expected not in (None, digest):
        raise _WrongFile(
            f"expected sha256 {expected} as when it was first fetched, found {digest}: damaged, or published again "
            f"with changes (then delete {_record_path(path)})"
        )
    if expected is None:  # nothing to compare with: at least it must be an archive
        try:
            check_archive(downloaded, path.name)
        except UserError as error:
            raise _WrongFile(str(error)) from error
    return digest


def _expected_hash(file: RemoteFile, path: Path) -> str | None:
    record = read_record(path)
    return file.sha256 or (None if record is None else record.sha256)


def read_record(path: Path) -> FileRecord | None:
    """What is recorded of the file that belongs at `path`; None when it was never here."""
    record = read_json(_record_path(path))
    return None if record is None else from_json(FileRecord, record)


def _write_record(path: Path, record: FileRecord) -> None:
    with disk_errors(path):
        write_json(_record_path(path), asdict(record))


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _part_path(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.part")


def archive_path(file: RemoteFile, downloads: Path) -> Path:
    """Where the file is, or will be: under its name, with whichever suffix it has."""
    paths = [downloads / f"{file.name}{suffix}" for suffix in SUFFIXES]
    published = downloads / f"{file.name}{suffix_of(file.url or '') or SUFFIXES[0]}"
    return next((path for path in paths if path.exists()), published)


def unpacked_path(file: RemoteFile, downloads: Path) -> Path:
    """Where the file's content is, or will be."""
    return downloads / "unpacked" / file.name


def _folder_of(dataset_id: str, layout: Layout, unpacked: Path) -> Path:
    """The one folder below `unpacked` that holds this dataset: named after its quality, marked as its layout has it."""
    identity = catalog.parse(dataset_id)
    marked = [folder for folder in _folders(unpacked) if next(folder.glob(_MARKS[layout]), None) is not None]
    matches = [folder for folder in marked if _plain(folder.name) == _plain(identity.quality)]
    if len(matches) > 1:
        matches = [f for f in matches if _plain(identity.task) in map(_plain, f.relative_to(unpacked).parts)]
    if len(matches) != 1:
        names = ", ".join(str(folder.relative_to(unpacked)) for folder in marked[:10]) or "none"
        raise UserError(
            f"expected one folder of {dataset_id} below {unpacked}, named {identity.task}/{identity.quality} (in any "
            f"case) and with {_MARKS[layout]} in it, found {len(matches)} (folders with {_MARKS[layout]}: {names}); "
            f"rename the right one, or delete {unpacked} to unpack again"
        )
    return matches[0]


def _folders(top: Path) -> Iterator[Path]:
    """Folders below `top` in order of name, down to a few levels."""
    for folder, names, _ in os.walk(top):
        names.sort()
        if len(Path(folder).relative_to(top).parts) >= _DEEPEST:
            names.clear()
        yield from (Path(folder) / name for name in names)


def _plain(name: str) -> str:
    """A folder's name as ids are written: Medium_Replay is medium-replay, 3m.vlt is 3m."""
    return name.lower().removesuffix(".vlt").replace("_", "-")
