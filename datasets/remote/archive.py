"""Unpacks downloaded archives as if a stranger had made them: nothing outside the folder, no links, no bombs.

`zipfile` and `tarfile` (with its "data" filter) do the unpacking. They mend or skip what is wrong with an archive; here
such an archive is refused before anything of it appears under the target's name.
"""

from __future__ import annotations

import gzip
import lzma
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from marl_flow.files import disk_errors, require_room
from marl_flow.interfaces import UserError

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all, or None where that is not known)."""

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
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
    """An entry of an archive. is_plain: a file or folder, not encrypted. extract: unpacks it below a folder."""

    name: str
    is_folder: bool
    size: int
    is_plain: bool
    extract: Callable[[Path], object]


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
        raise UserError(f"cannot unpack {archive.name}: {target} already exists; remove it or choose another folder")
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
                _extract(fresh, archive, members, limits or Limits(), lambda done: progress and progress(done, total))
            fresh.chmod(0o755)  # mkdtemp's 0700 would hide a shared data root from others
            fresh.rename(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return target


def _extract(
    folder: Path, archive: Path, members: Iterator[_Member], limits: Limits, report: Callable[[int], object]
) -> None:
    """Writes an archive's members under an empty folder."""
    taken: dict[str, tuple[str, bool]] = {}  # folded path -> the path itself, whether it is a folder
    entries, total, allowed = 0, 0, limits.bytes_for(archive)
    for member in members:
        entries, total = entries + 1, total + member.size
        if entries > limits.entries:
            raise _refusal(archive, f"at most {limits.entries:,} entries", "more")
        if total > allowed:
            raise _refusal(archive, f"at most {allowed:,} bytes in it", f"at least {total:,}")
        parts = member.name.removeprefix("./").removesuffix("/").split("/")
        if parts == ["."] and member.is_folder:  # as `tar c .` writes it
            continue
        if not member.is_plain or not _is_plain_path(parts):
            raise _refusal(archive, "plain, unencrypted files and folders under relative paths", repr(member.name))
        for depth in range(1, len(parts) + 1):
            path, is_folder = "/".join(parts[:depth]), member.is_folder or depth < len(parts)
            key = unicodedata.normalize("NFC", path).casefold()
            if key in taken and not (is_folder and taken[key] == (path, True)):
                raise _refusal(archive, "one entry for each path", f"{path!r} and {taken[key][0]!r}")
            taken[key] = (path, is_folder)
        member.extract(folder)
        report(total)
    if not entries:
        raise _refusal(archive, "files", "none")


def _is_plain_path(parts: list[str]) -> bool:
    """Whether a path stays below its folder and has a name that every file system holds and every terminal shows."""
    name = "/".join(parts)
    return (
        name.isprintable()
        and "\\" not in name
        and parts[0][1:2] != ":"
        and len(name.encode()) <= 1024
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Iterator[_Member], int | None]]:
    """The members of an archive in its order, and their size in all where the archive says so up front."""
    suffix = suffix_of(name)
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive), sum(info.file_size for info in archive.infolist())
    elif suffix:
        with tarfile.open(path, tarinfo=_StrictTarInfo, errorlevel=2) as archive:
            yield _tar_members(archive), None
    else:
        raise UserError(f"expected an archive ({', '.join(SUFFIXES)}), found {name}; unpack it yourself")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        file_type = stat.S_IFMT(info.external_attr >> 16)  # zero where the archive was made without Unix attributes
        is_plain = file_type in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 1  # encrypted
        is_plain = is_plain and "\0" not in info.orig_filename
        size = 0 if info.is_dir() else info.file_size
        yield _Member(info.filename, info.is_dir(), size, is_plain, partial(archive.extract, info))


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
        is_plain = (info.isfile() and not info.issparse()) or info.isdir()
        extract = partial(archive.extract, info, set_attrs=False, filter="data")
        yield _Member(info.name, info.isdir(), info.size if info.isfile() else 0, is_plain, extract)
    assert archive.fileobj is not None, "it is open"
    while archive.fileobj.read(1 << 20):
        pass  # to its very end, where the checksum of a compressed archive is compared


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
