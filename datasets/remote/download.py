"""Brings one address into one `.part` file over HTTP: continues what is there, believes nothing the server says.

The standard library does the talking, so `http_proxy`, `https_proxy` and `no_proxy` count, and so do SSL_CERT_FILE and
SSL_CERT_DIR. Only http and https are spoken, also after redirects, and never plain http after https.

Beside `x.part` lies `x.part.json`: from which address its bytes came, how many there are in all, and the server's name
for that content (ETag, else Last-Modified). Bytes are continued only as the same content: by that name (Range with
If-Range), or because the file's hash is known and will be checked. Otherwise the part starts over.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

from marl_flow.config import from_json
from marl_flow.files import disk_errors, read_json, require_room, write_json

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all, or None where that is not known)."""

_CHUNK_BYTES = 1 << 18
_PASSING = (408, 425, 429)  # with every 5xx: states of a server that pass
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-(?P<end>\d+)|\*)/(?P<total>\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to keep asking one address.

    timeout_seconds: without a single byte, after which a connection is given up. idle_tries: tries in a row that bring
    nothing new. total_tries: in all; the command can be given again. The wait before a try doubles from first_wait to
    longest_wait while nothing new comes; a server's Retry-After may lengthen it up to the latter.
    """

    timeout_seconds: float = 30.0
    idle_tries: int = 5
    total_tries: int = 100
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    sleep: Callable[[float], None] = time.sleep


class AddressFailed(Exception):
    """This address does not give the file; the message says why."""


class _TryAgain(Exception):
    """The try failed in a way that may pass."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Whose bytes a part holds: the record beside it."""

    url: str
    validator: str | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is asked for: size_bytes None while it is not known; has_hash when the caller will check one."""

    url: str
    part: Path
    size_bytes: int | None
    has_hash: bool


def download(
    url: str,
    part: Path,
    *,
    size_bytes: int | None,
    has_hash: bool,
    patience: Patience,
    progress: Progress | None = None,
) -> bool:
    """Returns when `part` holds all that the address has: True when one connection brought it.

    Whether that is the right file is for the caller to check; `has_hash` promises that it will.

    Raises AddressFailed when this address will not give it, a UserError when the disk cannot take it. What has come so
    far stays in `part` in every case, a killed process included, and is continued by the next call.
    """
    wanted = _Wanted(url=url, part=part, size_bytes=size_bytes, has_hash=has_hash)
    idle, most, in_one_go = 0, _size(part), not part.exists()
    for _ in range(patience.total_tries):
        try:
            _try(wanted, patience.timeout_seconds, progress)
        except _TryAgain as error:
            in_one_go = _size(part) == 0
            idle = 0 if _size(part) > most else idle + 1
            most = max(most, _size(part))
            if idle >= patience.idle_tries:
                raise AddressFailed(f"{error} ({idle} tries in a row brought nothing new)") from error
            wait = max(error.wait_seconds, patience.first_wait_seconds * 2 ** max(idle - 1, 0))
            log.info("%s: %s; trying again", url, error)
            patience.sleep(min(wait, patience.longest_wait_seconds))
        else:
            return in_one_go
    raise AddressFailed(f"not finished after {patience.total_tries} tries; the same command goes on from here")


def discard(part: Path) -> None:
    """Forgets a part and whose it was."""
    with disk_errors(part):
        part.unlink(missing_ok=True)
        _record(part).unlink(missing_ok=True)


def _try(wanted: _Wanted, timeout_seconds: float, progress: Progress | None) -> None:
    """One request, or none when the part is whole already."""
    origin = _origin(wanted.part)
    have = _size(wanted.part) if origin is not None and _continues(origin, wanted) else 0
    if origin is not None and have and have == origin.total:
        return
    headers = {"User-Agent": f"marl_flow/{importlib.metadata.version('marl_flow')}", "Accept-Encoding": "identity"}
    if origin is not None and have:
        headers["Range"] = f"bytes={have}-"
        if origin.validator is not None and origin.url == wanted.url:
            headers["If-Range"] = origin.validator
    with _request(wanted, headers, timeout_seconds, have) as response:
        start, total = _placed(response, wanted, origin if have else None, have)
        require_room(wanted.part.parent, (total or wanted.size_bytes or 0) - start, f"downloading {wanted.part.name}")
        if start == 0:
            validator = _validator(response.headers)
            with disk_errors(wanted.part):
                wanted.part.write_bytes(b"")  # before the record: old bytes must never stand under a new name
                write_json(_record(wanted.part), asdict(_Origin(url=wanted.url, validator=validator, total=total)))
        _append(response, wanted, start, total, progress)


def _append(
    response: http.client.HTTPResponse, wanted: _Wanted, start: int, total: int | None, progress: Progress | None
) -> None:
    """Writes the body behind the part's first `start` bytes, each piece as it comes."""
    done, limit = start, total or wanted.size_bytes
    with disk_errors(wanted.part), wanted.part.open("ab") as file:
        if progress is not None:
            progress(done, limit)
        while total is None or done < total:
            try:
                piece = response.read1(_CHUNK_BYTES if total is None else min(_CHUNK_BYTES, total - done))
            except (OSError, http.client.HTTPException) as error:
                raise _TryAgain(f"the connection broke after {done:,} bytes ({_named(error)})") from error
            if not piece:
                break
            file.write(piece)
            file.flush()
            done += len(piece)
            if wanted.size_bytes is not None and done > wanted.size_bytes:
                break
            if progress is not None:
                progress(done, limit)
    expected = total if total is not None else wanted.size_bytes
    if expected is not None and done < expected:
        raise _TryAgain(f"the connection ended after {done:,} of {expected:,} bytes")
    if expected is not None and done > expected:
        discard(wanted.part)
        raise AddressFailed(f"expected {expected:,} bytes, found more")
    if total is None:
        origin = _origin(wanted.part)
        assert origin is not None, "it was written before the first byte"
        with disk_errors(wanted.part):
            write_json(_record(wanted.part), asdict(origin) | {"total": done})


def _request(wanted: _Wanted, headers: dict[str, str], timeout_seconds: float, have: int) -> http.client.HTTPResponse:
    """The answer to one request, redirects followed; an error status and no answer are exceptions."""
    try:
        return _opener().open(urllib.request.Request(wanted.url, headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_error(error, wanted, have) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise AddressFailed(f"its certificate is not trusted here ({cause.verify_message})") from error
        raise _TryAgain(f"no answer ({_named(cause)})") from error
    except ValueError as error:
        raise AddressFailed(f"not an address that can be asked ({error})") from error


def _status_error(error: urllib.error.HTTPError, wanted: _Wanted, have: int) -> Exception:
    """What an answer with an error status means for the next try."""
    found = f"answered {error.code} {error.reason}"
    if error.code == 416 and have:
        match = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
        origin = _origin(wanted.part)
        if match and match["total"] == str(have) and origin is not None:
            with disk_errors(wanted.part):
                write_json(_record(wanted.part), asdict(replace(origin, total=have)))
            return _TryAgain(f"the server has no more than the {have:,} bytes that are here")
        discard(wanted.part)
        return _TryAgain(f"{found} to bytes from {have:,} on: its content has changed, starting over")
    if error.code in _PASSING or error.code >= 500:
        after = error.headers.get("Retry-After", "")
        return _TryAgain(found, float(after) if after.isdecimal() else 0.0)
    return AddressFailed(found.replace("\n", " "))


def _placed(
    response: http.client.HTTPResponse, wanted: _Wanted, origin: _Origin | None, have: int
) -> tuple[int, int | None]:
    """Where in the file the body of an answer belongs: its first byte, and how many the whole file has."""
    headers = response.headers
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise AddressFailed("sent a web page instead of the file: a page to log in or confirm, or an error page")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise AddressFailed(f"sent the file encoded as {headers['Content-Encoding']}, which was not asked for")
    start, total = 0, response.length
    if response.status == 206:
        start, total = _range(headers, wanted, origin, have)
    elif response.status != 200:
        raise AddressFailed(f"answered {response.status} {response.reason} instead of 200")
    if None not in (total, wanted.size_bytes) and total != wanted.size_bytes:
        raise AddressFailed(f"expected a file of {wanted.size_bytes:,} bytes, found {total:,}")
    if start == 0 and have:
        log.info("%s: the server starts over (it cannot continue, or its content has changed)", wanted.url)
    return start, total


def _range(headers: HTTPMessage, wanted: _Wanted, origin: _Origin | None, have: int) -> tuple[int, int | None]:
    """First byte and whole size of a partial answer, which must continue the part; otherwise the part starts over."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    fault = None
    if origin is None or match is None or match["start"] != str(have):
        fault = f"answered with {headers.get('Content-Range', 'no range')} when asked for bytes from {have} on"
    elif origin.total is not None and match["total"] not in ("*", str(origin.total)):
        fault = f"has {match['total']} bytes where there were {origin.total}: its content has changed"
    elif origin.url == wanted.url and _validator(headers) not in (None, origin.validator):
        fault = "has another content than before under this address"
    if fault is not None or origin is None or match is None:
        discard(wanted.part)
        raise _TryAgain(f"{fault}; starting over")
    return have, origin.total if match["total"] == "*" else int(match["total"])


def _validator(headers: HTTPMessage) -> str | None:
    """The server's name for exactly this content: a strong ETag, else Last-Modified."""
    tag = headers.get("ETag")
    return tag if tag is not None and not tag.startswith("W/") else headers.get("Last-Modified")


def _continues(origin: _Origin, wanted: _Wanted) -> bool:
    """Whether a part of this origin may be continued from this address."""
    same_content = wanted.has_hash or (origin.url == wanted.url and origin.validator is not None)
    sizes = {size for size in (origin.total, wanted.size_bytes) if size is not None}
    return same_content and len(sizes) < 2 and _size(wanted.part) <= min(sizes, default=_size(wanted.part))


def _origin(part: Path) -> _Origin | None:
    """Whose bytes a part holds; None when that is not known."""
    record = read_json(_record(part))
    return None if record is None else from_json(_Origin, record)


def _record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _named(error: object) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but never from https down to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        schemes = (urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme)
        if schemes not in (("http", "http"), ("http", "https"), ("https", "https")):
            fp.close()
            raise AddressFailed(f"redirects from {schemes[0]} to {schemes[1]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that speaks http and https only: the standard one also opens file, ftp and data addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
