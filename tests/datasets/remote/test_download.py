"""Fetching one published file from servers that drop, lie, change their mind, stall and redirect; and from a user."""

from __future__ import annotations

import hashlib
import http.server
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import requests

from marl_flow.datasets.remote import download
from marl_flow.datasets.remote.download import DownloadError, Progress, RetryPolicy
from marl_flow.datasets.remote.fetch import fetch_file, lock
from marl_flow.datasets.remote.sources import RemoteFile
from marl_flow.interfaces import UserError

STAMP = "Mon, 08 Jul 2024 10:00:00 GMT"


def archive(seed: int, size: int = 200_000) -> bytes:
    """A zip file of random bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("simple_spread.vlt/Expert/metadata.json", "{}")
        file.writestr("simple_spread.vlt/Expert/d/0", np.random.default_rng(seed).bytes(size))
    return buffer.getvalue()


BODY, OTHER = archive(0), archive(1)
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Hands each request to the site's next answer; counts body bytes."""

    server: Site

    def do_GET(self) -> None:
        site = self.server
        site.requests.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        answer = site.answers.pop(0) if site.answers else honest()
        answer(self)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: str | int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def body(self, data: bytes, *, piece: int = 1 << 14, pause: float = 0.0, reset: bool = False) -> None:
        for start in range(0, len(data), piece):
            count = len(data[start : start + piece])
            self.server.served += count  # before the client, who may look at once, has it
            try:
                self.wfile.write(data[start : start + piece])
            except OSError:
                self.server.served -= count
                raise
            if pause:
                self.wfile.flush()
                time.sleep(pause)
        if reset:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Answer = Callable[[Handler], None]


class Site(http.server.ThreadingHTTPServer):
    """A real server on this machine: answers in turn, honest ones when none are left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.requests: list[dict[str, str]] = []
        self.served = 0
        self.content = BODY

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what these tests are about."""

    def url(self, path: str = "file.zip") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def ranges(self) -> list[str | None]:
        return [request.get("range") for request in self.requests]


def honest(
    *,
    cut: int | None = None,
    with_ranges: bool = True,
    pause: float = 0.0,
    reset: bool = False,
    corrupt_at: int | None = None,
    **claims: str | int,
) -> Answer:
    """Range as it should be; `cut` sends so many bytes of the body only, `claims` replace headers."""

    def answer(handler: Handler) -> None:
        site = handler.server
        content, asked = site.content, handler.headers.get("Range")
        if corrupt_at is not None:
            content = content[:corrupt_at] + bytes([content[corrupt_at] ^ 255]) + content[corrupt_at + 1 :]
        headers: dict[str, str | int] = {"Last-Modified": STAMP}
        start = 0
        if asked and with_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return handler.head(416, **{"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= {"Content-Type": "application/zip", "Content-Length": len(content) - start}
        handler.head(206 if "Content-Range" in headers else 200, **(headers | claims))
        handler.body(content[start:][:cut], pause=pause, reset=reset)
        return None

    return answer


def status(code: int, **headers: str | int) -> Answer:
    return lambda handler: handler.head(code, **({"Content-Length": 0} | headers))


def page(handler: Handler) -> None:
    text = b"<html>Please confirm</html>"
    handler.head(200, Content_Type="text/html; charset=utf-8", Content_Length=len(text))
    handler.body(text)


def chunked(cut: int | None = None) -> Answer:
    def answer(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked")
        for start in range(0, len(BODY) if cut is None else cut, 50_000):
            piece = BODY[start : start + 50_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if cut is None:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def stall(after: int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(BODY))
        handler.body(BODY[:after])
        handler.wfile.flush()
        time.sleep(8)

    return answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Waits:
    """Waits for nothing and remembers how long it should have."""

    seconds: list[float] = field(default_factory=list)

    def policy(self, **changes: float) -> RetryPolicy:
        return RetryPolicy(**{"timeout_seconds": 5.0, "sleep": self.seconds.append, **changes})  # type: ignore[arg-type]


def remote(url: str, sha256: str | None = SHA, size_bytes: int | None = len(BODY)) -> RemoteFile:
    return RemoteFile(
        name="spread",
        datasets=("omar/mpe/simple_spread/expert-v1",),
        layout="vault",
        licence="none",
        citation="none",
        size="0.2 MB",
        url=url,
        sha256=sha256,
        size_bytes=size_bytes,
    )


def unknown(url: str) -> RemoteFile:
    return remote(url, sha256=None, size_bytes=None)


def fetch(file: RemoteFile, folder: Path, progress: Progress | None = None, retry: RetryPolicy | None = None) -> Path:
    with lock(file, folder):
        return fetch_file(file, folder, progress, retry)


def check_arrived(folder: Path, content: bytes = BODY) -> None:
    assert (folder / "spread.zip").read_bytes() == content
    assert {path.name for path in folder.iterdir()} == {"spread.zip", "spread.zip.json", ".spread.lock"}
    assert json.loads((folder / "spread.zip.json").read_text())["sha256"] == hashlib.sha256(content).hexdigest()


def check_refused(file: RemoteFile, folder: Path, message: str, **changes: float) -> None:
    with pytest.raises(UserError, match=message):
        fetch(file, folder, retry=Waits().policy(**changes))
    assert not (folder / "spread.zip").exists()


def test_a_file_arrives_whole_and_is_not_fetched_twice(site: Site, tmp_path: Path) -> None:
    """Catches wrong bytes, leftovers, a progress that does not end at the size, and a second download."""
    steps: list[tuple[int, int | None]] = []
    path = fetch(remote(site.url()), tmp_path, lambda done, total: steps.append((done, total)))
    check_arrived(tmp_path)
    assert path == tmp_path / "spread.zip" and steps[0][0] == 0 and steps[-1] == (len(BODY), len(BODY))
    assert fetch(remote(site.url()), tmp_path) == path and len(site.requests) == 1


def test_dropped_connections_are_continued_where_they_broke(site: Site, tmp_path: Path) -> None:
    """Catches starting over, and overlapping or skipping a byte."""
    site.answers = [honest(cut=1), honest(cut=70_000), honest(cut=0), honest(cut=50_000)]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.served == len(BODY)
    assert site.ranges() == [None, "bytes=1-", "bytes=70001-", "bytes=70001-", "bytes=120001-"]


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_drops_gives_the_file_and_serves_each_byte_once(seed: int, site: Site, tmp_path: Path) -> None:
    """Catches an offset that is wrong after some particular drop, within one call or over several."""
    draws = np.random.default_rng(seed)
    site.answers = [honest(cut=int(cut)) for cut in draws.integers(0, 12_000, size=60)]
    file = remote(site.url(), size_bytes=None if seed % 2 else len(BODY))
    for _ in range(20):
        try:
            fetch(file, tmp_path, retry=Waits().policy(idle_tries=3, total_tries=7))
            break
        except UserError as error:
            assert "the connection ended after" in str(error) or "not finished after 7 tries" in str(error)
            assert not (tmp_path / "spread.zip").exists()
    check_arrived(tmp_path)
    assert site.served == len(BODY)


def test_reset_connections_are_continued(site: Site, tmp_path: Path) -> None:
    """Catches treating a reset, which loses bytes on the way, like an end."""
    site.answers = [honest(cut=80_000, reset=True, pause=0.001), honest(cut=80_000, reset=True, pause=0.001)]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)


@pytest.mark.parametrize("more", [10, -10])
def test_a_length_that_is_not_the_published_one_is_refused_at_once(more: int, site: Site, tmp_path: Path) -> None:
    """Catches downloading gigabytes that cannot be the file."""
    site.answers = [honest(**{"Content-Length": len(BODY) + more})]
    check_refused(remote(site.url()), tmp_path, f"expected a file of {len(BODY):,} bytes, found {len(BODY) + more:,}")
    assert not (tmp_path / "spread.zip.part").exists()


def test_a_length_too_long_is_corrected_by_the_server_itself(site: Site, tmp_path: Path) -> None:
    """Catches waiting for bytes that never come: asked for them, the server says that there are none (416)."""
    site.answers = [honest(**{"Content-Length": len(BODY) + 10})]
    fetch(remote(site.url(), size_bytes=None), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.served == len(BODY)


def test_a_server_that_insists_on_a_length_too_long_is_given_up(site: Site, tmp_path: Path) -> None:
    """Catches an endless loop of requests, and a short file under the final name."""
    end, total = len(BODY) + 9, len(BODY) + 10

    def nothing_more(handler: Handler) -> None:
        handler.head(206, **{"Content-Range": f"bytes {len(BODY)}-{end}/{total}", "Content-Length": 10})

    site.answers = [honest(**{"Content-Length": total}), *[nothing_more] * 20]
    file = remote(site.url(), size_bytes=None)
    check_refused(file, tmp_path, rf"ended after {len(BODY):,} of {total:,} bytes \(5 tries in a row")


def test_a_length_too_short_does_not_pass_for_a_whole_archive(site: Site, tmp_path: Path) -> None:
    """Catches a truncated archive of unknown hash under the final name."""
    site.answers = [honest(**{"Content-Length": len(BODY) - 100})]
    check_refused(
        unknown(site.url()), tmp_path, "expected a whole archive in spread.zip, found: File is not a zip file"
    )
    assert not (tmp_path / "spread.zip.part").exists()


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    """Catches appending a whole file to the part of it that is there."""
    site.answers = [
        honest(cut=50_000, with_ranges=False),
        honest(cut=9_000, with_ranges=False),
        honest(with_ranges=False),
    ]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.ranges() == [None, "bytes=50000-", "bytes=9000-"]


@pytest.mark.parametrize(
    "answered",
    [f"bytes 49000-{len(BODY) - 1}/{len(BODY)}", "bytes */5", "pages 1-2/3", "", f"bytes 5{'0' * 5000}-1/2"],
)
def test_a_wrong_range_is_not_believed(answered: str, site: Site, tmp_path: Path) -> None:
    """Catches pasting bytes from elsewhere in the file behind those that are here."""

    def elsewhere(handler: Handler) -> None:
        handler.head(206, Content_Length=1000, **({"Content-Range": answered} if answered else {}))
        handler.body(b"x" * 1000)

    site.answers = [honest(cut=50_000), elsewhere]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.ranges() == [None, "bytes=50000-", None]


@pytest.mark.parametrize("known", [True, False])
def test_content_that_changes_between_tries_is_never_mixed(known: bool, site: Site, tmp_path: Path) -> None:
    """Catches the head of one version with the tail of another, told by the hash or never put together."""

    def changed(handler: Handler) -> None:
        handler.server.content = OTHER
        honest()(handler)

    site.answers = [honest(cut=50_000), changed]
    sha256 = hashlib.sha256(OTHER).hexdigest() if known else None
    fetch(remote(site.url(), sha256=sha256, size_bytes=None), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path, OTHER)
    assert site.ranges() == ([None, "bytes=50000-", None] if known else [None, None])


def test_only_what_a_hash_will_tell_is_continued(site: Site, tmp_path: Path) -> None:
    """Catches continuing what may be another version with nothing to find out by."""
    for sha256, ranges in ((None, [None, None]), (SHA, [None, "bytes=50000-"])):
        site.answers, site.requests = [honest(cut=50_000)], []
        fetch(remote(site.url(), sha256=sha256), tmp_path / str(sha256), retry=Waits().policy())
        check_arrived(tmp_path / str(sha256))
        assert site.ranges() == ranges


def test_what_cannot_be_continued_does_not_count_as_progress(site: Site, tmp_path: Path) -> None:
    """Catches giving up because an old part, which is not used, is longer than what has come."""
    (tmp_path / "spread.zip.part").write_bytes(bytes(len(BODY) - 1))
    site.answers = [honest(cut=1000 * count) for count in range(1, 8)]
    fetch(unknown(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)


def test_corrupt_bytes_are_refused_by_the_hash(site: Site, tmp_path: Path) -> None:
    """Catches a file of the right size and wrong content, and keeping it to continue from."""
    site.answers = [honest(corrupt_at=1234)]
    check_refused(remote(site.url()), tmp_path, f"expected sha256 {SHA}, found [0-9a-f]{{64}}: damaged")
    assert not (tmp_path / "spread.zip.part").exists() and len(site.requests) == 1


def test_a_part_that_was_corrupt_costs_one_more_download_not_the_file(site: Site, tmp_path: Path) -> None:
    """Catches giving up, or going round for ever, when only the continued part was bad."""
    site.answers = [honest(cut=50_000, corrupt_at=1234)]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.ranges() == [None, "bytes=50000-", None]
    site.answers = [honest(cut=50_000, corrupt_at=1234)] * 3
    site.answers[1:] = [honest(corrupt_at=99_999), honest(cut=50_000, corrupt_at=3), honest(), honest()]
    check_refused(remote(site.url()), tmp_path / "again", "expected sha256")
    assert len(site.requests) == 3 + 4


def test_a_web_page_is_not_a_file(site: Site, tmp_path: Path) -> None:
    """Catches saving a log-in or confirm page under the archive's name, however it is labelled."""
    site.answers = [page]
    check_refused(unknown(site.url()), tmp_path, "sent a web page instead of the file")
    site.answers = [honest(**{"Content-Length": 27})]
    site.content = b"<html>Please confirm</html>" * 2
    check_refused(unknown(site.url()), tmp_path, "expected a whole archive")


def test_servers_that_are_busy_are_asked_again_with_growing_waits(site: Site, tmp_path: Path) -> None:
    """Catches giving up at the first 503, hammering a server, and waiting as long as a server likes."""
    waits = Waits()
    site.answers = [status(500), status(503, Retry_After=7), status(429, Retry_After=86_400), status(502)]
    fetch(remote(site.url()), tmp_path, retry=waits.policy())
    check_arrived(tmp_path)
    assert waits.seconds == [1.0, 7.0, 60.0, 8.0]


def test_tries_are_bounded(site: Site, tmp_path: Path) -> None:
    """Catches asking a dead server for ever, and a server that gives one byte at a time."""
    site.answers = [status(503)] * 20
    check_refused(
        remote(site.url()), tmp_path, r"answered 503 Service Unavailable \(5 tries in a row brought nothing new"
    )
    assert len(site.requests) == 5
    site.answers = [honest(cut=1)] * 20
    check_refused(
        remote(site.url()), tmp_path, r"not finished after 9 tries\. The same command continues", total_tries=9
    )


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once_with_what_to_do(code: int, site: Site, tmp_path: Path) -> None:
    """Catches trying a refusal again and again, and leaving the user without a next step."""
    site.answers = [status(code)]
    message = rf"file\.zip: answered {code} .*https_proxy.*MIRROR.*put it at .*spread\.zip"
    check_refused(remote(site.url()), tmp_path, message)
    assert len(site.requests) == 1


def test_a_mirror_continues_what_another_address_began(site: Site, tmp_path: Path) -> None:
    """Catches downloading again from a mirror what is here already."""
    site.answers = [honest(cut=120_000), status(404)]
    check_refused(remote(site.url("a.zip")), tmp_path, "answered 404")
    fetch(remote(site.url("b.zip")), tmp_path)
    check_arrived(tmp_path)
    assert site.served == len(BODY)


def test_redirects_are_followed_to_web_addresses_only(site: Site, tmp_path: Path) -> None:
    """Catches reading a local file for a server, and going round a loop."""
    site.answers = [honest(cut=9), status(302, Location="/moved.zip"), honest()]
    fetch(remote(site.url()), tmp_path / "a", retry=Waits().policy())
    check_arrived(tmp_path / "a")
    assert site.ranges() == [None, "bytes=9-", "bytes=9-"]
    for place in (f"file://{tmp_path}/a/spread.zip", "ftp://127.0.0.1/x.zip", "data:,x"):
        site.answers = [status(302, Location=place)]
        check_refused(remote(site.url()), tmp_path / "b", "cannot be downloaded .No connection adapters were found")
    site.answers = [status(302, Location="/file.zip")] * 50
    check_refused(remote(site.url()), tmp_path / "b", "Exceeded 30 redirects")
    assert len(site.requests) < 50


def test_a_redirect_never_leaves_encryption(tmp_path: Path) -> None:
    """Catches a downgrade from https to http."""
    for urls, refused in (
        (("https://a/x", "http://b/x"), True),
        (("http://a/x", "https://b/x", "https://c/x"), False),
        (("http://a/x", "http://b/x"), False),
    ):
        hops = [requests.Response() for _ in urls]
        for hop, url in zip(hops, urls, strict=True):
            hop.url, hop.status_code = url, 200
        hops[-1].history = hops[:-1]
        if refused:
            with pytest.raises(DownloadError, match="redirects from https to http"):
                download._check(hops[-1], tmp_path / "x.part", 0)
        else:
            assert download._check(hops[-1], tmp_path / "x.part", 0) is None


def test_other_schemes_are_not_opened(tmp_path: Path) -> None:
    """Catches a library that reads file: addresses."""
    (tmp_path / "secret.zip").write_bytes(BODY)
    with pytest.raises(DownloadError, match="No connection adapters"):
        download.download(
            f"file://{tmp_path}/secret.zip",
            tmp_path / "x.part",
            size_bytes=None,
            has_hash=False,
            retry=Waits().policy(),
        )


def test_a_server_that_stalls_is_left_and_continued(site: Site, tmp_path: Path) -> None:
    """Catches waiting for ever on a silent connection, and losing what it had brought."""
    site.answers, begin = [stall(60_000)], time.monotonic()
    fetch(remote(site.url()), tmp_path, retry=Waits().policy(timeout_seconds=0.3))
    check_arrived(tmp_path)
    assert time.monotonic() - begin < 5
    assert site.ranges() == [None, "bytes=60000-"]


def test_a_slow_server_is_waited_for(site: Site, tmp_path: Path) -> None:
    """Catches a limit on the whole download where only silence should count."""
    site.answers = [honest(pause=0.06)]
    fetch(remote(site.url()), tmp_path, retry=Waits().policy(timeout_seconds=0.3))
    check_arrived(tmp_path)
    assert len(site.requests) == 1


def test_a_connection_that_trickles_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a download that takes for ever because one byte comes now and then."""
    clock = itertools.count(step=100.0)
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    site.answers = [honest(pause=0.02)] * 2
    policy = Waits().policy(least_bytes_per_second=1e6, total_tries=2)
    with pytest.raises(UserError, match="not finished after 2 tries"):
        fetch(remote(site.url()), tmp_path, retry=policy)
    assert len(site.requests) == 2


@pytest.mark.parametrize("size_bytes", [None, 5000])
def test_a_part_longer_than_the_file_starts_over(size_bytes: int | None, site: Site, tmp_path: Path) -> None:
    """Catches a 416 that ends the download, or stands for its success."""
    site.content = archive(2, size=1000)
    sha256, size = hashlib.sha256(site.content).hexdigest(), size_bytes and len(site.content)
    (tmp_path / "spread.zip.part").write_bytes(BODY)
    fetch(remote(site.url(), sha256=sha256, size_bytes=size), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path, site.content)


def test_unknown_lengths_and_encodings(site: Site, tmp_path: Path) -> None:
    """Catches a chunked file cut short that passes for whole, and compressed bytes saved as the file."""
    site.answers = [chunked(cut=100_000), chunked()]
    fetch(unknown(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    site.answers = [honest(Content_Encoding="gzip")]
    check_refused(unknown(site.url()), tmp_path / "b", "encoded as gzip")
    assert site.requests[0]["accept-encoding"] == "identity"


def test_more_bytes_than_published_are_not_written(site: Site, tmp_path: Path) -> None:
    """Catches a server without a length that fills the disk."""
    largest = [0]

    def flood(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked")
        for _ in range(200):
            handler.wfile.write(b"%x\r\n%s\r\n" % (50_000, bytes(50_000)))

    site.answers = [flood]
    with pytest.raises(UserError, match="expected 60,000 bytes, found more"):
        fetch(
            remote(site.url(), size_bytes=60_000),
            tmp_path,
            lambda done, total: largest.append(done),
            retry=Waits().policy(),
        )
    assert max(largest) <= 60_000 and list(tmp_path.glob("spread*")) == []


def test_a_killed_process_leaves_a_part_that_the_next_one_continues(site: Site, tmp_path: Path) -> None:
    """Catches a half file under the final name after SIGKILL, and starting over."""
    site.answers = [honest(pause=0.05)]
    code = (
        "import sys\nfrom pathlib import Path\nfrom marl_flow.datasets.remote.fetch import fetch_file\n"
        "from marl_flow.datasets.remote.sources import RemoteFile\n"
        "file = RemoteFile(name='spread', datasets=(), layout='vault', licence='', citation='', size='', "
        "url=sys.argv[1], sha256=sys.argv[3])\nfetch_file(file, Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, site.url(), str(tmp_path), SHA])
    part = tmp_path / "spread.zip.part"
    while not part.exists() or part.stat().st_size < 60_000:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    size = part.stat().st_size
    assert 60_000 <= size < len(BODY) and not (tmp_path / "spread.zip").exists()
    fetch(remote(site.url()), tmp_path, retry=Waits().policy())
    check_arrived(tmp_path)
    assert site.ranges() == [None, f"bytes={size}-"]


def test_an_interrupted_download_continues(site: Site, tmp_path: Path) -> None:
    """Catches Ctrl-C that deletes the part, or that is swallowed."""

    def interrupt(done: int, total: int | None) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(remote(site.url()), tmp_path, interrupt)
    size = (tmp_path / "spread.zip.part").stat().st_size
    assert size > 50_000 and not (tmp_path / "spread.zip").exists()
    fetch(remote(site.url()), tmp_path)
    check_arrived(tmp_path)
    assert site.ranges() == [None, f"bytes={size}-"]


def test_two_processes_never_write_one_part(site: Site, tmp_path: Path) -> None:
    """Catches two downloads that interleave their bytes."""
    with lock(remote(site.url()), tmp_path):
        check_refused(remote(site.url()), tmp_path, f"in use by process {os.getpid()}")
    assert site.requests == []
    fetch(remote(site.url()), tmp_path)
    check_arrived(tmp_path)


def test_a_full_disk_is_found_before_the_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches filling the disk to find that it is too small."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    check_refused(
        remote(site.url()), tmp_path, "downloading spread.zip.part: expected .* free bytes in .*, found 1,048,576"
    )
    assert not (tmp_path / "spread.zip.part").exists()


def test_a_place_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    """Catches a bare OSError for a data root that is a file."""
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match=r"expected to write .*root.*MARL_FLOW_DATA"):
        fetch(remote(site.url()), tmp_path / "root" / "downloads")


def test_a_file_of_unknown_hash_is_compared_with_the_one_first_seen(site: Site, tmp_path: Path) -> None:
    """Catches content that the publisher exchanged, taken for the same dataset."""
    fetch(unknown(site.url()), tmp_path)
    (tmp_path / "spread.zip").unlink()
    site.content = OTHER
    check_refused(
        unknown(site.url()), tmp_path, f"expected sha256 {SHA} as when it was first fetched, found .*published again"
    )
    (tmp_path / "spread.zip.json").unlink()
    fetch(unknown(site.url()), tmp_path)
    check_arrived(tmp_path, OTHER)


def test_a_damaged_file_on_the_disk_is_not_used_and_not_deleted(site: Site, tmp_path: Path) -> None:
    """Catches trusting a name, and deleting what a user may have put there."""
    fetch(unknown(site.url()), tmp_path)
    (tmp_path / "spread.zip").write_bytes(OTHER)
    with pytest.raises(UserError, match=r"first fetched, found .*; to have the published file, delete this one"):
        fetch(unknown(site.url()), tmp_path)
    assert (tmp_path / "spread.zip").read_bytes() == OTHER


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_file_put_there_by_hand_is_verified_and_used(suffix: str, site: Site, tmp_path: Path) -> None:
    """Catches downloading what the user has, and taking any file of the right name."""
    place = tmp_path / f"spread{suffix}"
    place.write_bytes(OTHER)
    with pytest.raises(UserError, match=rf"spread{re.escape(suffix)}: expected sha256 {SHA}"):
        fetch(remote(site.url(), size_bytes=None), tmp_path)
    place.write_bytes(BODY)
    assert fetch(remote(site.url()), tmp_path) == place and site.requests == []
    assert json.loads((tmp_path / f"spread{suffix}.json").read_text())["origin"] == "put there by hand"


def test_a_proxy_is_asked_when_the_environment_names_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches going round the proxy, the only way out of many clusters."""
    monkeypatch.setenv("http_proxy", site.url("")[:-1])
    fetch(remote("http://published.invalid/file.zip"), tmp_path)
    assert site.requests[0]["path"] == "http://published.invalid/file.zip"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "spread.zip").unlink()
    fetch(remote(site.url()), tmp_path)
    assert site.requests[1]["path"] == "/file.zip"


def test_nobody_answering_is_said(tmp_path: Path) -> None:
    """Catches a traceback where the network is closed."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.zip"
        check_refused(remote(url), tmp_path, r"no answer \(ConnectionRefusedError.*\(5 tries in a row")
