"""Archives made by somebody hostile: what they try, and that nothing of it reaches the disk."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marl_flow.datasets.remote.archive import Limits, check_archive, unpack
from marl_flow.interfaces import UserError

GOOD = {"3m.vlt/Good/metadata.json": b"{}", "3m.vlt/Good/d/0a1b": b"x" * 3000, "3m.vlt/Poor/metadata.json": b""}


def make_zip(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o4777
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(content))
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    return make_zip(path, files) if path.suffix == ".zip" else make_tar(path, files)


def refused(archive: Path, message: str, **limits: float) -> None:
    """Refused with this message, nothing unpacked, nothing left beside it."""
    folder = archive.parent
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(UserError, match=message):
        unpack(archive, folder / "target", limits=Limits(**limits))  # type: ignore[arg-type]
    assert sorted(path for path in folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_an_archive_is_unpacked_whole(name: str, tmp_path: Path) -> None:
    """Catches wrong content, and permissions (setuid here) taken over from the archive."""
    steps: list[int] = []
    archive = make(tmp_path / name, {"3m.vlt/": b"", **GOOD} if name.endswith("zip") else GOOD)
    target = unpack(archive, tmp_path / "target", progress=lambda done, total: steps.append(done))
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == GOOD and steps[-1] == sum(map(len, GOOD.values()))
    assert all(path.stat().st_mode & 0o7111 == 0 for path in target.rglob("*") if path.is_file())
    assert {path.name for path in tmp_path.iterdir()} == {name, "target"}


def test_a_tar_archive_of_a_folder_itself(tmp_path: Path) -> None:
    """Catches refusing what `tar c .` writes."""
    (tmp_path / "content" / "Good").mkdir(parents=True)
    (tmp_path / "content" / "Good" / "obs.npy").write_bytes(b"1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "content", ".")
    assert (unpack(tmp_path / "a.tar.gz", tmp_path / "target") / "Good" / "obs.npy").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "a/../../evil", "/etc/evil", "a//b", "a/./b", "..", "c:/evil", "a\\..\\evil"),
        *("a\nb", "a\x1b[2J", "x" * 300, "d/" * 600 + "x"),
    ],
)
def test_paths_that_are_not_plain_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    """Catches writing outside the folder, and names that other systems read as a path or a terminal as commands."""
    refused(
        make(tmp_path / kind, {"good": b"1", name: b"2"}),
        "expected plain, unencrypted files and folders under relative paths, found",
    )


def test_links_and_devices_in_tar_archives_are_refused(tmp_path: Path) -> None:
    """Catches a link out of the folder that a later entry writes through, and device files."""
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    for kind in (*kinds, tarfile.GNUTYPE_SPARSE):

        def change(info: tarfile.TarInfo, kind: bytes = kind) -> None:
            info.type, info.linkname = kind, str(tmp_path.parent)

        refused(
            make_tar(tmp_path / "a.tar", {"link": b""}, change),
            "folders under relative paths, found 'link'|whole archive",
        )


def test_links_in_zip_archives_are_refused(tmp_path: Path) -> None:
    """Catches a symbolic link hidden in the attributes of a zip entry."""

    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    refused(make_zip(tmp_path / "a.zip", {"link": b"/etc"}, change), "folders under relative paths, found 'link'")


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    """Catches a traceback at a password."""
    archive = make_zip(tmp_path / "a.zip", {"secret": b"12345"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "expected plain, unencrypted files .* found 'secret'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("d/A", "d/a"), ("Good/x", "good/y"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301"), ("a", "./a")],
)
def test_two_entries_for_one_path_are_refused(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    """Catches one file silently written over another, here or on a disk that is blind to case or Unicode form."""
    archive = tmp_path / kind
    if kind == "a.zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, b"1")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"1"))
    refused(archive, "expected one entry for each path, found")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_bombs_are_refused(kind: str, tmp_path: Path) -> None:
    """Catches a small archive that fills the disk; the same content is fine where the limit is not reached."""
    archive = make(tmp_path / kind, {f"{i}": bytes(1_000_000) for i in range(4)})
    refused(archive, r"expected at most 2,000,000 bytes in it, found at least 3,000,000", ratio=1, free_bytes=2_000_000)
    refused(archive, "expected at most 2,500,000 bytes", total_bytes=2_500_000)
    unpack(archive, tmp_path / "target", limits=Limits(ratio=1, free_bytes=4_000_000))


def test_a_bomb_in_a_header_is_refused(tmp_path: Path) -> None:
    """Catches a tar header of gigabytes, which would be read into memory before any entry is seen."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):

        def change(info: tarfile.TarInfo, kind: bytes = kind) -> None:
            info.type = kind

        refused(make_tar(tmp_path / "a.tar.gz", {"x": bytes(2 << 20)}, change), "a header of 2,097,152 bytes")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_too_many_entries_are_refused(kind: str, tmp_path: Path) -> None:
    """Catches an archive of millions of empty files."""
    refused(
        make(tmp_path / kind, {f"{i}": b"" for i in range(101)}),
        "expected at most 100 entries, found more",
        entries=100,
    )
    unpack(tmp_path / kind, tmp_path / "target", limits=Limits(entries=101))


def test_a_declared_size_that_is_a_lie_is_found(tmp_path: Path) -> None:
    """Catches counting on the sizes in the directory of a zip file while its data hold more."""
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(1_000_000)})
    content = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", content, content.index(magic) + offset, 1000)
    archive.write_bytes(content)
    refused(archive, "expected a whole archive in a.zip, found: Bad CRC-32|expected 1,000 bytes in 'a'")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_damaged_archives_are_refused_as_such(kind: str, tmp_path: Path) -> None:
    """Catches a traceback, or half the files, for archives cut short or changed anywhere."""
    draws = np.random.default_rng(0)
    archive = make(tmp_path / kind, {f"{i}": draws.bytes(2000) for i in range(5)})
    whole = archive.read_bytes()
    for at in (0, 3, len(whole) // 3, len(whole) // 2, len(whole) - 30):
        archive.write_bytes(whole[:at])
        refused(archive, "expected a whole archive|expected files, found none")
    for at in draws.integers(0, len(whole), size=60):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            shutil.rmtree(unpack(archive, tmp_path / "target"))  # some bytes mean nothing, e.g. times
        except UserError:
            assert {path.name for path in tmp_path.iterdir()} == {kind}


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    """Catches guessing at a format, and a page that was saved as an archive."""
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    refused(
        tmp_path / "a.rar",
        r"expected an archive \(.zip, .tar, .tar.gz, .tgz, .tar.xz\), found a.rar; unpack it yourself",
    )
    for name in ("a.zip", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"<html>confirm</html>" * 600)
        with pytest.raises(UserError, match="expected a whole archive"):
            check_archive(tmp_path / name, name)
    refused(make_zip(tmp_path / "empty.zip", {}), "expected files, found none")


def test_an_occupied_place_is_left_alone(tmp_path: Path) -> None:
    """Catches unpacking over what is there."""
    archive = make_zip(tmp_path / "a.zip", GOOD)
    (tmp_path / "target").mkdir()
    refused(archive, r"cannot unpack a\.zip: .*target already exists; remove it")


def test_a_disk_without_room_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches filling the disk with a half-unpacked archive."""
    archive = make_zip(tmp_path / "a.zip", GOOD)
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    refused(archive, "unpacking a.zip: expected .* free bytes")


def test_a_failure_or_a_kill_leaves_no_half_folder(tmp_path: Path) -> None:
    """Catches a half-unpacked folder under the final name, and leftovers that pile up."""
    archive = make_zip(tmp_path / "a.zip", GOOD)

    def interrupt(done: int, total: int | None) -> None:
        assert total == sum(map(len, GOOD.values()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "target", progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip"}
    (tmp_path / ".target.unpacking-killed").mkdir()
    unpack(archive, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "target"}
    assert os.access(tmp_path / "target", os.R_OK) and (tmp_path / "target").stat().st_mode & 0o777 == 0o755
