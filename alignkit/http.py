"""One request to an endpoint: its reply, or why there is none and whether it is worth asking again."""

import ipaddress
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    import httpx2

__all__ = ["FaultError", "RefusedError", "make_client", "patiently", "post"]

T = TypeVar("T")

LONGEST_PAUSE = 60.0
"""Seconds between two attempts, unless the endpoint asks for more."""
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


def make_client(url: str) -> "httpx2.Client":
    """Make what asks the address: it follows no redirect, since a key must not go to a place that nobody named.

    This machine's own addresses are not asked by way of a proxy.
    """
    import ssl  # both here, since every `alignkit plan` loads this module

    import httpx2

    return httpx2.Client(follow_redirects=False, trust_env=not is_local(url), verify=ssl.create_default_context())


def is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def post(client: "httpx2.Client", url: str, headers: Mapping[str, str], body: Mapping[str, Any], timeout: float) -> Any:
    """Send a JSON object, and return the JSON value that comes back within so many seconds, None for an empty reply.

    Raises FaultError or RefusedError.
    """
    return _replied(client, "POST", url, timeout, json=body, headers=headers)


def send(client: "httpx2.Client", url: str, body: Mapping[str, Any], timeout: float) -> None:
    """Send a JSON object as `post` does to what confirms it in any words."""
    _content(client, "POST", url, timeout, json=body)


def get(client: "httpx2.Client", url: str, timeout: float) -> Any:
    """Ask for a JSON value as `post` does."""
    return _replied(client, "GET", url, timeout)


def is_there(url: str, timeout: float = 2.0) -> bool:
    """Return whether an address answers well."""
    try:
        with make_client(url) as client:
            get(client, url, timeout)
    except (FaultError, RefusedError):
        return False
    return True


def _replied(client: "httpx2.Client", method: str, url: str, timeout: float, **sent: Any) -> Any:
    content = _content(client, method, url, timeout, **sent)
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        raise FaultError("its reply is not JSON") from error


def _content(client: "httpx2.Client", method: str, url: str, timeout: float, **sent: Any) -> bytes:
    import httpx2

    ends = time.monotonic() + timeout
    try:
        with client.stream(method, url, timeout=timeout, **sent) as response:
            content = _read(response, ends)
        if not response.is_success:
            raise _refusal(response, content)
        return content
    except httpx2.TimeoutException as error:
        raise FaultError(f"no reply within {timeout:g} seconds") from error
    except httpx2.ConnectError as error:
        if invalid := _certificate(error):
            raise RefusedError(f"its certificate is not valid: {invalid.verify_message}") from error
        raise FaultError(str(error)) from error
    except httpx2.HTTPError as error:
        raise FaultError(f"the connection broke: {str(error) or type(error).__name__}") from error


def patiently(
    ask: Callable[[], T], pause: float, patience: float, rest: Callable[[float], bool | None] = time.sleep
) -> T:
    """Return what is asked for, again and again after growing pauses; `rest` waits, and returns whether to stop.

    Raise FaultError once patience ends, and RefusedError at once.
    """
    ends = time.monotonic() + patience
    while True:
        try:
            return ask()
        except FaultError as error:
            seconds = error.wait if error.wait is not None else pause * random.uniform(0.5, 1.5)  # noqa: S311
            if time.monotonic() + seconds > ends or rest(seconds):
                raise
            pause = min(2 * pause, LONGEST_PAUSE)


def _read(response: "httpx2.Response", ends: float) -> bytes:
    """Read a reply's body; one that comes drop by drop is too late as well."""
    import httpx2

    read = bytearray()
    for part in response.iter_bytes():
        read += part
        if time.monotonic() > ends:
            raise httpx2.ReadTimeout("the reply takes too long")
        if len(read) > LARGEST:
            raise FaultError("its reply is too long")
    return bytes(read)


def _certificate(error: BaseException | None) -> "ssl.SSLCertVerificationError | None":
    """Return what is wrong with a certificate, if that is beneath an error."""
    import ssl

    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _refusal(response: "httpx2.Response", content: bytes) -> FaultError | RefusedError:
    said = _message(content)
    reason = f"status {response.status_code}" + (f": {said}" if said else "")
    if response.status_code < 500 and (response.status_code not in PASSING or SPENT in said):
        return RefusedError(reason)
    return FaultError(reason, retry_after(response.headers.get("Retry-After")))


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
