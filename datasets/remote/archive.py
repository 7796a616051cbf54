"""Unpacks downloaded archives as if a stranger had made them: nothing outside the folder, no links, no bombs.

An archive appears under its target's name when it is whole, or not at all.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Self

from marl_flow.files import disk_errors, require_room
from marl_flow.interfaces import UserError

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all, or None where that is not known)."""

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
_LARGEST_HEADER_BYTES = 1 << 20
_READ_WHOLE = (b"x", b"X", b"g", tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # into memory, by `tarfile`
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, OverflowError, RuntimeError, struct.error),  # what their readers raise on garbage
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may hold before it is taken for a trap.

    entries: files and folders. total_bytes: unpacked size. ratio: unpacked size over the archive's own; it counts only
    above free_bytes, because small archives of zeros are harmless.
    """

    entries: int = 200_000
    total_bytes: int = 200 << 30
    ratio: float = 200.0
    free_bytes: int = 64 << 20

    def bytes_for(self, archive: Path) -> int:
        """How many bytes this archive may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, int(self.ratio * archive.stat().st_size)))


@dataclass(frozen=True)
class _Member:
    """One entry of an archive: `size` is what it declares, `fault` why it must not be unpacked, `open` its content."""

    name: str
    is_folder: bool
    size: int
    fault: str | None
    open: Callable[[], IO[bytes]]


def suffix_of(name: str) -> str:
    """Which of `SUFFIXES` a file's name ends with; empty when none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def check_archive(path: Path, name: str) -> None:
    """Raises a UserError unless a file starts, and a zip file also ends, as an archive of that name does.

    Finds a web page saved under an archive's name and a zip file cut short, without unpacking anything.
    """
    with _damage_of(name), _opened(path, name) as (members, _):
        next(members, None)


def unpack(archive: Path, target: Path, *, limits: Limits | None = None, progress: Progress | None = None) -> Path:
    """Unpacks a .zip or .tar(.gz, .xz) archive into the new folder `target`, and returns that.

    Refused are absolute paths, `..`, links, devices, encrypted and sparse files, names that some file system cannot
    hold, two entries for one path (also when only case or Unicode form differs: on some disks that is one file), and
    more entries, bytes or compression than `limits` allow. Permissions and owners are not taken over. Everything goes
    to a hidden neighbour that is renamed at the end; a failure deletes it, a killed process's is deleted by the next.
    """
    if target.exists():
        raise UserError(f"expected a free place to unpack {archive.name} to, found {target}; use it or remove it")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.unpacking-"
        for leftover in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            with _damage_of(archive.name), _opened(archive, archive.name) as (members, total):
                if total is not None:
                    require_room(fresh, total, f"unpacking {archive.name}")
                _fill(fresh, archive, members, limits or Limits(), lambda done: progress and progress(done, total))
            fresh.chmod(0o755)  # mkdtemp's 0700 would hide a shared data root from others
            fresh.rename(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return target


def _fill(
    folder: Path, archive: Path, members: Iterator[_Member], limits: Limits, report: Callable[[int], object]
) -> None:
    """Writes an archive's members under an empty folder."""
    names, allowed = _Names(), limits.bytes_for(archive)
    entries = declared = written = 0
    for member in members:
        entries, declared = entries + 1, declared + member.size
        if entries > limits.entries:
            raise _refusal(archive, f"at most {limits.entries:,} entries", "more")
        if declared > allowed:
            raise _refusal(archive, f"at most {allowed:,} bytes in it", f"at least {declared:,}")
        parts, name_fault = names.claim(member.name, is_folder=member.is_folder)
        if fault := member.fault or name_fault:
            raise _refusal(archive, "plain files and folders under relative paths", f"{member.name!r}, {fault}")
        place = folder.joinpath(*parts)
        if member.is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        end = written + member.size
        with member.open() as source, place.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                if written > end:
                    break
                file.write(chunk)
                report(written)
            file.flush()
            os.fsync(file.fileno())
        if written != end:
            raise _refusal(archive, f"{member.size:,} bytes in {member.name!r}", "another number")
    if not entries:
        raise _refusal(archive, "files", "none")


@dataclass
class _Names:
    """The paths of an archive so far, so that no two of them are one path on any file system."""

    taken: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = field(default_factory=dict)

    def claim(self, name: str, *, is_folder: bool) -> tuple[tuple[str, ...], str | None]:
        """The parts of an entry's path, and what is wrong with them if anything is."""
        parts = tuple(name.removesuffix("/").split("/"))
        if parts[0] == ".":  # as `tar c .` writes them
            parts = parts[1:]
        fault = _name_fault(name, parts) if parts or not is_folder else None
        for depth in range(1, len(parts) + 1):
            fault = fault or self._take(parts[:depth], is_folder or depth < len(parts))
        return parts, fault

    def _take(self, parts: tuple[str, ...], is_folder: bool) -> str | None:
        key = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        before = self.taken.setdefault(key, (parts, is_folder))
        first_time = before[0] is parts
        return None if first_time or (before == (parts, True) and is_folder) else f"{'/'.join(before[0])!r} once more"


def _name_fault(name: str, parts: tuple[str, ...]) -> str | None:
    """What is wrong with an entry's name on its own."""
    if not parts or name.startswith("/") or {"", ".", ".."} & set(parts):
        return "an absolute or climbing path"
    if "\\" in name or (len(parts[0]) > 1 and parts[0][1] == ":"):
        return "a path of another system"
    if not name.isprintable():
        return "unprintable characters"
    if len(name.encode()) > _LONGEST_PATH_BYTES or max(len(part.encode()) for part in parts) > _LONGEST_NAME_BYTES:
        return "too long a name"
    return None


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Iterator[_Member], int | None]]:
    """The members of an archive in its order, and their size in all where the archive says so up front."""
    suffix = suffix_of(name)
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive), sum(info.file_size for info in archive.infolist())
    elif suffix:
        with tarfile.open(path, tarinfo=_StrictTarInfo) as archive:
            yield _tar_members(archive), None
    else:
        raise UserError(f"expected an archive ({', '.join(SUFFIXES)}), found {name}; unpack it yourself")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # zero where the archive was made without Unix attributes
        fault = None
        if info.flag_bits & 1:
            fault = "encrypted"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "a link or device"
        elif "\0" in info.orig_filename:
            fault = "unprintable characters"
        size = 0 if info.is_dir() else info.file_size
        yield _Member(info.filename, info.is_dir(), size, fault, partial(archive.open, info))


class _StrictTarInfo(tarfile.TarInfo):
    """Headers of a tar archive; a broken or missing one is an error, where `tarfile` takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the block of zeros that ends an archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size > _LARGEST_HEADER_BYTES and header.type in _READ_WHOLE:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        plain = (info.isfile() and not info.issparse()) or info.isdir()
        fault = None if plain else "a link, device or sparse file"
        size = info.size if info.isfile() else 0
        yield _Member(info.name, info.isdir(), size, fault, partial(_content, archive, info))
    assert archive.fileobj is not None, "it is open"
    while archive.fileobj.read(_CHUNK_BYTES):
        pass  # to its very end, where the checksum of a compressed archive is compared


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(info)
    assert content is not None, "only files are read"
    return content


@contextmanager
def _damage_of(name: str) -> Iterator[None]:
    """Turns what the readers raise on a broken archive into one message."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(
            f"expected a whole archive in {name}, found: {error or type(error).__name__}; delete it and fetch it again"
        ) from error


def _refusal(archive: Path, expected: str, found: str) -> UserError:
    return UserError(f"{archive.name}: expected {expected}, found {found}; it was not unpacked, do not trust it")
