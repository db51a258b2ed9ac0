"""Inputs from URLs: one limit of time and one of size over a whole download, and addresses that services may forbid.

Names, connections, headers, redirects, interim answers, chunk lines and bodies all count: every read of the socket gets
the time that is left, and every byte is counted. No message holds what may be secret in a URL, see ``safe_url``.
"""

import base64
import contextlib
import http.client
import io
import ipaddress
import logging
import os
import queue
import re
import socket
import ssl
import string
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from legrad.checks import first_line
from legrad.errors import InputError

URL_BYTES = 50_000_000
URL_SECONDS = 30.0
PRIVATE_SWITCH = "LEGRAD_ALLOW_PRIVATE_URLS"
"""Environment variable: 0 refuses local and private addresses everywhere, see ``allow_private_urls`` of ``explain``."""

_REDIRECTS = 10
_REDIRECT = {301, 302, 303, 307, 308}
_PORTS = {"http": 80, "https": 443}
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """What a URL holds; readers take it in place of the URL.

    Attributes:
        name: the URL as by ``safe_url``.
        data: the content.
    """

    name: str
    data: bytes


def is_url(source: Any) -> bool:
    """Whether a string looks like a URL rather than a path."""
    return isinstance(source, str) and "://" in source[:12]


def safe_url(source: str) -> str:
    """A URL without user name, password, query and fragment, which may be secret; any other text as it is."""
    if not is_url(source):
        return source
    scheme, _, rest = source.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    host = host.rpartition("@")[2]
    # a password with an unquoted "/" or "?" in it: nothing behind the scheme is sure to be harmless
    harmless = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host)
    return f"{scheme}://{host}{slash}{path}" if harmless else f"{scheme}://..."


def fetched(source: Any, public_only: bool = False) -> Any:
    """A URL's ``Download``; anything else as it is. See ``download``."""
    return Download(safe_url(source), download(source, public_only)) if is_url(source) else source


def download(url: str, public_only: bool = False) -> bytes:
    """The content of a URL, at most ``URL_BYTES`` within ``URL_SECONDS`` from the first name to the last byte.

    Args:
        url: http or https; every redirect is checked as if the user had given it.
        public_only: refuse addresses that are local, private or otherwise not of the public internet. The address that
            was checked is the one that is connected to; proxies are not used then, for they would resolve the name
            again. Always so if the environment variable of ``PRIVATE_SWITCH`` is 0.

    Raises:
        InputError: not http(s), with a user name, not reachable, too large, too slow, or a forbidden address.
    """
    public_only = public_only or os.environ.get(PRIVATE_SWITCH, "").strip().lower() in ("0", "no", "off", "false")
    name, allowance = safe_url(url), _Allowance(safe_url(url))
    try:
        for _ in range(_REDIRECTS + 1):
            parts = _checked(url)
            with _answer(parts, allowance, public_only) as response:
                if response.status not in _REDIRECT:
                    _logger.info("reading %s", name)
                    return _body(response, name)
                location = response.headers.get("Location")
            if location is None:
                raise InputError(f"cannot read {name}: a redirect (HTTP {response.status}) without a location")
            # headers come as Latin-1, and what servers write there is UTF-8
            url = urllib.parse.urljoin(url, location.encode("latin-1").decode("utf-8", "surrogateescape"))
    except InputError:
        raise
    except TimeoutError as error:
        raise allowance.too_slow() from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if allowance.exceeded is not None:  # http.client takes an InputError for a chunk length that is no number
            raise allowance.exceeded from error
        reason = first_line(error)
        raise InputError(f"cannot read {name}: {reason[:200]}") from error
    raise InputError(f"cannot read {name}: more than {_REDIRECTS} redirects")


@contextlib.contextmanager
def connected(url: str, seconds: float) -> Iterator[socket.socket]:
    """A connection to the server of a URL, through the machine's proxy if it has one; nothing is sent to the server.

    Raises:
        InputError, OSError, ValueError: there is none within ``seconds``.
    """
    parts = _checked(url)
    try:
        with _connection(parts, _Allowance(safe_url(url), seconds), False, encrypted=False) as (sock, _):
            yield sock
    except http.client.HTTPException as error:  # of a proxy
        raise OSError(first_line(error)) from error


class _Allowance:
    """Time and bytes that a download may still take.

    Attributes:
        exceeded: the error that says which of them ran out.
    """

    def __init__(self, name: str, seconds: float | None = None) -> None:
        self._seconds = URL_SECONDS if seconds is None else seconds
        self._name, self._deadline, self._bytes = name, time.monotonic() + self._seconds, URL_BYTES
        self.exceeded: InputError | None = None

    def too_slow(self) -> InputError:
        self.exceeded = InputError(f"{self._name} took longer than {self._seconds:.0f} s")
        return self.exceeded

    def seconds(self) -> float:
        """Those that are left."""
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise self.too_slow()
        return seconds

    def take(self, count: int) -> None:
        """``count`` bytes have come in."""
        self._bytes -= count
        if self._bytes < 0:
            self.exceeded = InputError(f"{self._name} is larger than {URL_BYTES // 1_000_000} MB")
            raise self.exceeded


class _Reader(io.RawIOBase):
    """What a socket receives, within an allowance."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._sock, self._allowance = sock, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._allowance.seconds())
        count = self._sock.recv_into(buffer)
        self._allowance.take(count)
        return count


class _LimitedSocket:
    """The part of a socket that ``http.client`` uses; closing is left to whoever opened the socket."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._sock, self._allowance = sock, allowance

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._allowance))

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._allowance.seconds())
        self._sock.sendall(data)

    def close(self) -> None:
        pass


def _checked(url: str) -> urllib.parse.SplitResult:
    """The parts of a URL that may be read; ``ValueError`` where it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        # not the error's own text, which repeats the URL
        raise InputError(f"not a URL: {safe_url(url)!r} (its host or port cannot be read)") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise InputError(f"only http and https URLs are read, got {safe_url(url)!r}")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            f"{safe_url(url)}: user names and passwords in URLs are not used; download the file yourself and give its "
            "path"
        )
    return parts


@contextlib.contextmanager
def _answer(
    parts: urllib.parse.SplitResult, allowance: _Allowance, public_only: bool
) -> Iterator[http.client.HTTPResponse]:
    """The server's final answer to a request for a URL, its body not yet read."""
    host, _, host_header = _address(parts)
    headers = {"Host": host_header, "User-Agent": "legrad", "Connection": "close"}
    target = _quoted(parts)
    with _connection(parts, allowance, public_only) as (sock, proxy):
        if proxy is not None and parts.scheme == "http":
            target, headers = f"http://{host_header}{target}", {**headers, **_proxy_authorization(proxy)}
        connection = http.client.HTTPConnection(host)
        connection.sock = _LimitedSocket(sock, allowance)
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            yield response


def _address(parts: urllib.parse.SplitResult) -> tuple[str, int, str]:
    """Host, port, and both as the header of a request has them."""
    assert parts.hostname is not None
    host, port = _ascii(parts.hostname), parts.port or _PORTS[parts.scheme]
    return host, port, (f"[{host}]" if ":" in host else host) + ("" if parts.port is None else f":{port}")


@contextlib.contextmanager
def _connection(
    parts: urllib.parse.SplitResult, allowance: _Allowance, public_only: bool, encrypted: bool = True
) -> Iterator[tuple[socket.socket, urllib.parse.SplitResult | None]]:
    """A connection to a URL's server, encrypted for https, and the proxy that it goes through."""
    host, port, host_header = _address(parts)
    proxy = None if public_only else _proxy(parts)
    with contextlib.ExitStack() as stack:
        if proxy is None:
            sock = stack.enter_context(_connected(host, port, allowance, public_only))
        else:
            sock = stack.enter_context(_connected(proxy.hostname or "", proxy.port or 80, allowance, False))
            if parts.scheme == "https":
                _tunnel(sock, f"{host_header if parts.port else f'{host_header}:{port}'}", proxy, allowance)
        if parts.scheme == "https" and encrypted:
            sock.settimeout(allowance.seconds())
            sock = stack.enter_context(ssl.create_default_context().wrap_socket(sock, server_hostname=host))
        yield sock, proxy


def _body(response: http.client.HTTPResponse, name: str) -> bytes:
    if response.status != 200:
        raise InputError(f"cannot read {name}: HTTP Error {response.status}: {response.reason[:100]}")
    data = bytearray()
    # read1 returns what has arrived, and never makes room for a length that a header only claims
    while chunk := response.read1(1 << 16):
        data += chunk
    if response.length:
        raise InputError(f"cannot read {name}: the connection ended {response.length} bytes before the file did")
    return bytes(data)


def _connected(host: str, port: int, allowance: _Allowance, public_only: bool) -> socket.socket:
    """A connection to the first address of a name that takes one."""
    addresses = _resolved(host, port, allowance)
    if public_only and not all(is_public(str(info[4][0])) for info in addresses):
        raise InputError(f"{host!r} is a local or private address, or a name of one; these are not read here")
    failure: OSError = OSError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(allowance.seconds() / (len(addresses) - index))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _resolved(host: str, port: int, allowance: _Allowance) -> list[Any]:
    """``socket.getaddrinfo``, which knows no time limit, in a thread of its own."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        except Exception as error:  # handed to the thread that waits
            answers.put(error)

    threading.Thread(target=resolve, daemon=True, name="legrad-resolve").start()
    try:
        answer = answers.get(timeout=allowance.seconds())
    except queue.Empty:
        raise allowance.too_slow() from None
    if isinstance(answer, Exception):
        raise answer
    return list(answer)


def is_public(address: str) -> bool:
    """Whether an IP address, in any spelling, is one of the public internet; IPv4 inside IPv6 counts as what it is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None:
            return ip.is_global and ip in _PUBLIC_IPV6
        ip = inner
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _proxy(parts: urllib.parse.SplitResult) -> urllib.parse.SplitResult | None:
    """This machine's proxy for a URL, if there is one."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy_parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if proxy_parts.scheme != "http" or not proxy_parts.hostname:
        raise InputError(f"only http proxies are used, this machine is set to {safe_url(proxy)!r}")
    return proxy_parts


def _proxy_authorization(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def _tunnel(sock: socket.socket, host: str, proxy: urllib.parse.SplitResult, allowance: _Allowance) -> None:
    """Have a proxy connect to ``host`` ("name:port")."""
    headers = {"Host": host, **_proxy_authorization(proxy)}
    lines = [f"CONNECT {host} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    limited: Any = _LimitedSocket(sock, allowance)
    limited.sendall("\r\n".join(lines).encode("ascii"))
    response = http.client.HTTPResponse(limited, method="CONNECT")
    response.begin()
    if response.status != 200:
        raise OSError(f"the proxy answers {response.status} {response.reason[:100]}")


def _ascii(host: str) -> str:
    """A host's name as the name system has it: letters of other scripts in their ASCII form."""
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _quoted(parts: urllib.parse.SplitResult) -> str:
    """Path and query with spaces and non-ASCII letters percent-encoded; ``%`` stays, it may belong to an encoded one.

    Names of files that are no UTF-8 keep their bytes.
    """
    path, query = (
        urllib.parse.quote(part, safe=string.punctuation, errors="surrogateescape")
        for part in (parts.path or "/", parts.query)
    )
    return f"{path}?{query}" if query else path
