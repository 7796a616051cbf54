"""Downloads one address into a `.part` file over HTTP, and continues what an earlier call left there.

A part is continued only where the file's hash is known and will be checked: otherwise nothing would tell that the rest
belongs to the same file, so it starts over. (pooch cannot continue a download, and huggingface_hub continues one only
while its process lives; these files have up to 9 GB.)
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from marl_flow.files import disk_errors, require_room

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all, or None where that is not known)."""

LARGEST_BYTES = 64 << 30
"""Where nobody says how long a file is, more than this is not downloaded."""
_CHUNK_BYTES = 1 << 18
_TEMPORARY_FAILURES = (408, 425, 429)  # and every 5xx
_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d{1,15})-\d{1,15}/(?P<total>\d{1,15}|\*)")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to keep trying.

    timeout_seconds: without a single byte, after which a connection is given up. idle_tries: tries in a row that bring
    nothing new. total_tries: in all. The wait before a try doubles from first_wait_seconds to longest_wait_seconds
    while nothing new comes; a server's Retry-After may lengthen it, up to the latter. least_bytes_per_second: a
    connection that was slower for a minute is given up, too.
    """

    timeout_seconds: float = 30.0
    idle_tries: int = 5
    total_tries: int = 100
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    least_bytes_per_second: float = 1000.0
    sleep: Callable[[float], None] = time.sleep


class DownloadError(Exception):
    """The address does not give the file; the message says why."""


class _TryAgain(Exception):
    """The try failed in a way that may pass."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def download(
    url: str,
    part: Path,
    *,
    size_bytes: int | None,
    has_hash: bool,
    retry: RetryPolicy,
    progress: Progress | None = None,
) -> bool:
    """Returns when `part` holds all that the address has: True when one connection brought it.

    size_bytes: the file's exact size, or None. has_hash: the caller will check the file's hash. A DownloadError says
    why the address does not give the file, a UserError why the disk cannot take it. What has come so far stays in
    `part` in every case, a killed process included.
    """
    if not has_hash:
        part.unlink(missing_ok=True)
    idle, most, in_one_go = 0, size_of(part), not part.exists()
    for _ in range(retry.total_tries):
        try:
            _request_rest(url, part, size_bytes, has_hash, retry, progress)
        except _TryAgain as error:
            in_one_go = not has_hash
            idle = 0 if size_of(part) > most else idle + 1
            most = max(most, size_of(part))
            if idle >= retry.idle_tries:
                raise DownloadError(f"{error} ({idle} tries in a row brought nothing new)") from error
            wait = max(error.wait_seconds, retry.first_wait_seconds * 2 ** max(idle - 1, 0))
            log.info("%s: %s; trying again", url, error)
            retry.sleep(min(wait, retry.longest_wait_seconds))
        else:
            return in_one_go
    raise DownloadError(f"not finished after {retry.total_tries} tries")


def size_of(part: Path) -> int:
    """Bytes of a part, 0 where there is none."""
    return part.stat().st_size if part.exists() else 0


def _request_rest(
    url: str, part: Path, size_bytes: int | None, has_hash: bool, retry: RetryPolicy, progress: Progress | None
) -> None:
    """Appends what is missing of a part; raises where that fails."""
    have = size_of(part) if has_hash and size_of(part) <= (size_bytes or LARGEST_BYTES) else 0
    if have and have == size_bytes:
        return
    headers = {"User-Agent": f"marl_flow/{importlib.metadata.version('marl_flow')}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=retry.timeout_seconds)
    except (requests.ConnectionError, requests.Timeout) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise DownloadError(f"has a certificate that is not trusted here ({error})") from error
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        raise _TryAgain(f"no answer ({type(cause).__name__}: {cause})") from error
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"cannot be downloaded ({error})") from error
    with response:
        if response.status_code == 416 and have:
            return  # the server has no more than this; the hash tells whether it is the file
        total = _check(response, part, have)
        if None not in (total, size_bytes) and total != size_bytes:
            raise DownloadError(f"expected a file of {size_bytes:,} bytes, found {total:,}")
        start = have if response.status_code == 206 else 0
        expected = total if total is not None else size_bytes
        require_room(part.parent, (expected or 0) - start, f"downloading {part.name}")
        _append(response, part, start, expected, retry, progress)


def _check(response: requests.Response, part: Path, have: int) -> int | None:
    """Bytes of the whole file, where a response that brings it, or the rest of it, says so."""
    status, headers = response.status_code, response.headers
    encrypted = [hop.url.startswith("https:") for hop in (*response.history, response)]
    if encrypted != sorted(encrypted):
        raise DownloadError("redirects from https to http, which is not followed")
    if status in _TEMPORARY_FAILURES or status >= 500:
        after = headers.get("Retry-After", "")
        raise _TryAgain(f"answered {status} {response.reason}", float(after) if after.isdecimal() else 0.0)
    if status not in (200, 206):
        raise DownloadError(f"answered {status} {response.reason}")
    if headers.get("Content-Type", "").partition(";")[0] in ("text/html", "application/xhtml+xml"):
        raise DownloadError("sent a web page instead of the file: a page to log in or confirm, or an error page")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"sent the file encoded as {headers['Content-Encoding']}, which was not requested")
    if status == 200:
        length = headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"\d{1,15}", length) else None
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or match["start"] != str(have):
        part.unlink()
        answered = headers.get("Content-Range", "no range")
        raise _TryAgain(f"answered with {answered} when asked for bytes from {have} on; starting over")
    return None if match["total"] == "*" else int(match["total"])


def _append(
    response: requests.Response,
    part: Path,
    start: int,
    expected: int | None,
    retry: RetryPolicy,
    progress: Progress | None,
) -> None:
    """Writes the body after the part's first `start` bytes, each piece as it comes."""
    done, began, broken = start, time.monotonic(), False
    with disk_errors(part), part.open("ab" if start else "wb") as file:
        while done <= (expected or LARGEST_BYTES):
            if progress is not None:
                progress(done, expected)
            try:
                piece = response.raw.read1(_CHUNK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError):
                broken = True
                break
            if not piece:
                break
            done += len(piece)
            if done <= (expected or LARGEST_BYTES):
                file.write(piece)
                file.flush()
            seconds = time.monotonic() - began
            if seconds > 60.0 and done - start < seconds * retry.least_bytes_per_second:
                broken = True
                break
    if done > (expected or LARGEST_BYTES):
        part.unlink()
        raise DownloadError(f"expected {expected or LARGEST_BYTES:,} bytes, found more")
    if done < expected if expected is not None else broken:
        of = "" if expected is None else f" of {expected:,}"
        raise _TryAgain(f"the connection ended after {done:,}{of} bytes")
