"""One published file onto this disk, whole and verified or not at all: found there, or downloaded.

Under the downloads folder lie

    <name>.zip             a file as published, under its name in `sources.FILES`: only ever whole and verified
    <name>.zip.json        its sha256, its size and where it came from; stays when the file is deleted
    <name>.zip.part        a download under way, and <name>.zip.part.json; the same command goes on from there
    unpacked/<name>/       what the file holds (obtain.py)

What a user put there by hand, under those names, is taken, verified as far as can be, and never deleted.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from marl_flow.config import from_json
from marl_flow.datasets.remote import sources
from marl_flow.datasets.remote.archive import SUFFIXES, check_archive, suffix_of, unpack
from marl_flow.datasets.remote.download import AddressFailed, Patience, Progress, discard, download
from marl_flow.datasets.remote.sources import RemoteFile
from marl_flow.datasets.store import file_hash
from marl_flow.files import disk_errors, lock_file, read_json, write_json
from marl_flow.interfaces import UserError

__all__ = ["BY_HAND", "fetch", "unpack"]

log = logging.getLogger(__name__)

BY_HAND = "put there by hand"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is recorded of a file; origin: the address it came from, BY_HAND, or None once it was deleted here."""

    sha256: str
    bytes: int
    origin: str | None


class _WrongFile(Exception):
    """These bytes are not the published file; the message says what was expected and found."""


def fetch(
    file: RemoteFile, downloads: Path, progress: Progress | None = None, *, patience: Patience | None = None
) -> Path:
    """The published file, whole and verified: found on this disk, or downloaded from the first address that gives it.

    Verified by its published size and sha256; where no hash is published, by the one recorded when the file was first
    seen. Without addresses, or when none works, a UserError says why and what to do by hand.
    """
    with hold(file, downloads):
        return fetch_held(file, downloads, progress, patience or Patience())


def hold(file: RemoteFile, downloads: Path) -> AbstractContextManager[None]:
    """Keeps other processes from fetching or unpacking this file inside the block."""
    return lock_file(downloads / f".{file.name}.lock", f"fetching {file.name}")


def fetch_held(file: RemoteFile, downloads: Path, progress: Progress | None, patience: Patience) -> Path:
    """`fetch`, inside `hold`."""
    path = archive_place(file, downloads)
    if path.exists():
        try:
            digest, seen = _verified_hash(file, path, path), seen_before(path)
        except _WrongFile as error:
            raise UserError(
                f"{path}: {error}; to have the published file, delete this one and fetch again; if it is right, unpack "
                f"it yourself to {unpacked_place(file, downloads)}"
            ) from error
        if seen is None or seen.origin is None:
            remember(path, Seen(sha256=digest, bytes=path.stat().st_size, origin=BY_HAND))
        return path
    if not file.urls:
        raise UserError(_instructions(file, downloads))
    failures = []
    for url in file.addresses:
        log.info("%s (%s): asking %s", file.name, file.size, url)
        try:
            _download(file, url, path, progress, patience)
        except AddressFailed as error:
            failures.append(f"{url} {error}")
        else:
            return path
    raise UserError(
        f"{file.name}: expected to download {file.size}, found no address that gives it: {'; '.join(failures)}. The "
        "same command goes on with what has come. Behind a proxy, set https_proxy; to use a mirror of Hugging Face, "
        f"set {sources.MIRROR_SETTINGS[0]}; or download the file yourself and put it at {path}"
    )


def _download(file: RemoteFile, url: str, path: Path, progress: Progress | None, patience: Patience) -> None:
    """Puts the file at `path`, verified. One put together from several connections that comes out wrong is downloaded
    anew, once."""
    part, expected = path.with_name(f"{path.name}.part"), _expected_hash(file, path)
    for may_repeat in (True, False):
        in_one_go = download(
            url, part, size_bytes=file.size_bytes, has_hash=expected is not None, patience=patience, progress=progress
        )
        try:
            digest = _verified_hash(file, part, path)
            break
        except _WrongFile as error:
            discard(part)
            if in_one_go or not may_repeat:
                raise AddressFailed(str(error)) from error
            log.warning("%s: %s; downloading it anew", url, error)
    remember(path, Seen(sha256=digest, bytes=part.stat().st_size, origin=url))
    with disk_errors(path):
        part.rename(path)
    discard(part)


def _verified_hash(file: RemoteFile, place: Path, path: Path) -> str:
    """sha256 of the bytes at `place`, which are or will be `path`, once they have proved to be the published file."""
    size, recorded = place.stat().st_size, _expected_hash(file, path)
    if file.size_bytes not in (None, size):
        raise _WrongFile(f"expected {file.size_bytes:,} bytes, found {size:,}")
    digest = file_hash(place)
    if file.sha256 not in (None, digest):
        raise _WrongFile(f"expected sha256 {file.sha256}, found {digest}: damaged, or not the published file")
    if recorded not in (None, digest):
        raise _WrongFile(
            f"expected sha256 {recorded} as when it was first fetched, found {digest}: damaged, or published anew "
            f"(then delete {record_of(path)})"
        )
    if recorded is None:  # nothing to compare with: at least it must be an archive
        try:
            check_archive(place, path.name)
        except UserError as error:
            raise _WrongFile(str(error)) from error
    return digest


def _expected_hash(file: RemoteFile, path: Path) -> str | None:
    seen = seen_before(path)
    return file.sha256 or (None if seen is None else seen.sha256)


def seen_before(path: Path) -> Seen | None:
    """What is recorded of the file that belongs at `path`; None when it was never here."""
    record = read_json(record_of(path))
    return None if record is None else from_json(Seen, record)


def remember(path: Path, seen: Seen) -> None:
    """Records a verified file, and with origin None that it was deleted again."""
    with disk_errors(path):
        write_json(record_of(path), asdict(seen))


def record_of(path: Path) -> Path:
    """Where the hash, size and origin of a fetched file are written down."""
    return path.with_name(f"{path.name}.json")


def archive_place(file: RemoteFile, downloads: Path) -> Path:
    """Where the file is, or will be: under its name, with whichever ending it has."""
    for suffix in SUFFIXES:
        if (found := downloads / f"{file.name}{suffix}").exists():
            return found
    return downloads / f"{file.name}{suffix_of(file.urls[0]) if file.urls else SUFFIXES[0]}"


def unpacked_place(file: RemoteFile, downloads: Path) -> Path:
    """Where the file's content is, or will be."""
    return downloads / "unpacked" / file.name


def _instructions(file: RemoteFile, downloads: Path) -> str:
    return (
        f"{file.name}: expected it in {downloads}, found nothing, and no program can download it. {file.manual} Put "
        f"the archive at {downloads / file.name}.zip (or {', '.join(SUFFIXES[1:])}), or its content into the folder "
        f"{unpacked_place(file, downloads)}, and give the same command again"
    )
