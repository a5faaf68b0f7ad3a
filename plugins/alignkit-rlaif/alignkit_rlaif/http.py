"""One request to an endpoint: its reply, or why there is none and whether it is worth asking again."""

import http.client
import ipaddress
import json
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

LARGEST = 8 * 2**20
"""Bytes of a reply; a longer one is none."""
PASSING = (408, 409, 425, 429)
"""Statuses below 500 that may be another the next time."""
SPENT = "insufficient_quota"
"""What a reply with status 429 says where waiting does not help."""


class FaultError(Exception):
    """There was no valid reply, and there may be one the next time, after `wait` seconds if the endpoint says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class RefusedError(Exception):
    """The endpoint will not answer, however often it is asked."""


class _NoRedirect(HTTPRedirectHandler):
    """Follows none: a key must not go to a place that nobody named."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


def make_opener(url: str) -> OpenerDirector:
    """Make what opens the address; this machine's own addresses are not asked by way of a proxy."""
    proxies = [ProxyHandler({})] if is_local(url) else []
    return build_opener(_NoRedirect, HTTPSHandler(context=ssl.create_default_context()), *proxies)


def is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def post(opener: OpenerDirector, url: str, headers: Mapping[str, str], body: Mapping[str, Any], timeout: float) -> Any:
    """Send a JSON object, and give the JSON value that comes back within so many seconds.

    Raises FaultError or RefusedError.
    """
    data = json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json", **headers})  # noqa: S310  # the scheme is checked
    ends = time.monotonic() + timeout
    try:
        with opener.open(request, timeout=timeout) as response:
            return json.loads(_read(response, ends))
    except HTTPError as error:
        with error:
            _raise_status(error, ends)
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RefusedError(f"its certificate is not valid: {error.reason.verify_message}") from error
        raise FaultError(str(error.reason)) from error
    except TimeoutError as error:
        raise FaultError(f"no reply within {timeout:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise FaultError(f"the connection broke: {type(error).__name__}") from error
    except ValueError as error:
        raise FaultError("its reply is not JSON") from error


def _read(response: Any, ends: float) -> bytes:
    """Read a reply's body; one that comes drop by drop is too late as well."""
    parts, size = list[bytes](), 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > ends:
            raise TimeoutError
        if size > LARGEST:
            raise FaultError("its reply is too long")
    if getattr(response, "length", 0):
        raise FaultError("the connection broke: its reply is cut off")
    return b"".join(parts)


def _raise_status(error: HTTPError, ends: float) -> NoReturn:
    said = ""
    with suppress(OSError, http.client.HTTPException, FaultError):
        said = _message(_read(error, ends))
    reason = f"status {error.code}" + (f": {said}" if said else "")
    if error.code < 500 and (error.code not in PASSING or SPENT in said):
        raise RefusedError(reason) from error
    raise FaultError(reason, retry_after(error.headers.get("Retry-After"))) from error


def _message(body: bytes) -> str:
    """Return the endpoint's own words, in one short line."""
    try:
        found = json.loads(body)
        inner = found["error"]
        text = f"{inner['message']} {inner.get('code') or ''}" if isinstance(inner, dict) else str(inner)
    except (ValueError, KeyError, TypeError):
        text = body.decode("utf-8", "replace")
    return " ".join(text.split())[:200]


def retry_after(value: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
