"""Atomic writes, locks, JSON records and `.npy` headers."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
from pathlib import Path

import pytest

from marl_flow import files
from marl_flow.files import InUse, lock_file, open_npy, read_json, unfinished_writes, write_atomically, write_json
from marl_flow.interfaces import UserError


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches writing in place, and a temporary file left behind."""
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    """Catches a file outside the folder that is overwritten through a link in it."""
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine" and (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_a_temporary_file_that_is_there_already_is_never_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file outside the folder that is overwritten through a link somebody put at the temporary name."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0a1b2c3d")
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "file.writing-0a1b2c3d").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine" and (tmp_path / "file.writing-0a1b2c3d").is_symlink()


def test_written_files_have_the_users_permissions(tmp_path: Path) -> None:
    """Catches files that nobody else in the group can read, or that everybody can write."""
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_write_left_is_told_from_other_files(tmp_path: Path) -> None:
    """Catches deleting a user's file that only ends like a temporary one."""
    for name in ("record.json.writing-0a1b2c3d", "thesis.writing", "a.writing-77", ".writing-0a1b2c3d"):
        (tmp_path / name).write_text("")
    expected = [(tmp_path / "record.json.writing-0a1b2c3d", "record.json")]
    assert list(unfinished_writes(tmp_path)) == expected
    assert list(unfinished_writes(tmp_path / "nowhere")) == []


def test_records_come_back_and_broken_ones_are_named(tmp_path: Path) -> None:
    """Catches a broken record taken for an absent one."""
    path = tmp_path / "record.json"
    assert read_json(path) is None
    write_json(path, {"a": [1.5, None]})
    assert read_json(path) == {"a": [1.5, None]}
    for text in ("{", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"record\.json: expected a JSON object, found.*; delete the file"):
            read_json(path)


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path: Path) -> None:
    """Catches two processes at one file, a message that does not say which, and a lock that outlives its owner."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock_file(tmp_path / "new" / "lock", "work"):
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    try:
        with (
            pytest.raises(InUse, match=rf"^work: .* in use by process {pid}; wait for it, stop it, or choose another"),
            lock_file(tmp_path / "new" / "lock", "work"),
        ):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for _ in range(2):
        with lock_file(tmp_path / "new" / "lock", "work"):
            assert (tmp_path / "new" / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_leaves_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches refusing all work on network disks that have no locks, and saying nothing about it."""

    def without_locks(file: object, flags: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with caplog.at_level(logging.WARNING), lock_file(tmp_path / "lock", "work"):
        pass
    assert len(caplog.records) == 1 and f"has no locks ({os.strerror(code)})" in caplog.text


def test_other_faults_of_a_lock_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a failing disk taken for one without locks."""

    def broken(file: object, flags: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with (
        pytest.raises(UserError, match=r"expected to write .*Input/output error"),
        lock_file(tmp_path / "lock", "work"),
    ):
        pass


@pytest.mark.parametrize("shape", ["(-1, 2)", "(-1, -2)", "(True, 2)", "(99999999999999999999,)", "()", "3", "("])
def test_npy_headers_that_lie_are_refused(shape: str, tmp_path: Path) -> None:
    """Catches an array mapped past the end of its file, and a traceback of the parser's."""
    body = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + bytes(8))
    with pytest.raises(UserError, match=r"^a\.npy: expected"):
        open_npy(tmp_path / "a.npy")
