"""Inputs from URLs: downloads with limits on size, time, protocol and redirects."""

import http.client
import ipaddress
import socket
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from legrad.errors import InputError

URL_BYTES = 50_000_000
URL_SECONDS = 30.0


def is_url(source: Any) -> bool:
    """Whether a string looks like a URL rather than a path."""
    return isinstance(source, str) and "://" in source[:12]


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Checks where a redirect leads as if the user had given that URL."""

    def __init__(self, public_only: bool) -> None:
        self.public_only = public_only

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl, self.public_only)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str, public_only: bool = False) -> None:
    """Raise ``InputError`` unless the URL is http(s) and, with ``public_only``, all its addresses are public."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"not a URL: {url!r} ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"only http and https URLs are read, got {url!r}")
    if public_only:
        try:
            addresses = {info[4][0] for info in socket.getaddrinfo(parts.hostname, None)}
        except OSError as error:
            raise InputError(f"cannot resolve {parts.hostname!r}: {error}") from error
        if not all(ipaddress.ip_address(address).is_global for address in addresses):
            raise InputError(f"{url!r} points to a local or private address")


def download(url: str, public_only: bool = False) -> bytes:
    """The content of a URL, at most ``URL_BYTES`` within ``URL_SECONDS``; every redirect is checked again.

    Raises:
        InputError: not http(s), not reachable, too large, too slow, or with ``public_only`` a private address.
    """
    check_url(url, public_only)
    opener = urllib.request.build_opener(_CheckedRedirects(public_only))
    request = urllib.request.Request(_quoted(url), headers={"User-Agent": "legrad"})
    deadline = time.monotonic() + URL_SECONDS
    data = bytearray()
    try:
        with opener.open(request, timeout=URL_SECONDS) as response:
            # read1 returns what has arrived; read would wait for a slow server beyond the deadline
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > URL_BYTES:
                    raise InputError(f"{url} is larger than {URL_BYTES // 1_000_000} MB")
                if time.monotonic() > deadline:
                    raise InputError(f"{url} took longer than {URL_SECONDS:.0f} s")
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise InputError(f"cannot read {url}: {error}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"cannot read {url}: {error}") from error
    return bytes(data)


def _quoted(url: str) -> str:
    """The URL with spaces and non-ASCII letters percent-encoded; ``%`` stays, it may belong to an encoded one."""
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query))
