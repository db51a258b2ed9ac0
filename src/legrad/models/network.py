"""Loading without a network: known in seconds, instead of after a minute of attempts.

huggingface_hub tries every file of a repository six times, with growing pauses and a line each. So the hub is asked for
a connection first. If there is none, the libraries are told that they are offline for this one load: what is in their
caches loads at once, and what is not is an error at once.
"""

import contextlib
import io
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from legrad.checks import first_line
from legrad.errors import InputError, LeGradError
from legrad.inputs import urls

_SECONDS = 4.0  # to look up a name and connect; slow networks need one
_OFFLINE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError")  # errors of huggingface_hub


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """A block that loads from the Hugging Face hub or its cache; without a network it logs nothing.

    Raises:
        OSError: what is neither in the cache nor to be had, and why the hub cannot be reached.
    """
    from huggingface_hub import constants

    settings: Any = constants
    offline = bool(settings.HF_HUB_OFFLINE)  # whoever is offline on purpose is not asked again
    reason = "HF_HUB_OFFLINE is set" if offline else unreachable(settings.ENDPOINT)
    if not reason:
        yield
        return
    level = logging.root.manager.disable
    settings.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)
    try:
        yield
    except LeGradError:
        raise
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        host = urls.safe_url(settings.ENDPOINT)
        raise OSError(f"it is not in the cache, and {host} cannot be reached ({reason})") from error
    finally:
        settings.HF_HUB_OFFLINE = offline
        logging.disable(level)


@contextlib.contextmanager
def server(url: str) -> Iterator[None]:
    """A block that downloads a file; if its server cannot be reached, it fails within seconds and prints nothing."""
    if not unreachable(url):
        yield
        return
    seconds = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(seconds)


def _is_of_the_network(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__name__ in _OFFLINE:
            return True
        error = error.__cause__ or error.__context__
    return False


def unreachable(url: str) -> str:
    """Why no connection to a server can be made within seconds; "" if one can, also through the machine's proxy."""
    proxy = urllib.request.getproxies().get(urllib.parse.urlsplit(url).scheme, "")
    if not proxy.startswith("http://") and "://" in proxy:
        return ""  # of a kind that only the libraries know
    try:
        with urls.connected(url, _SECONDS):
            return ""
    except (InputError, OSError, ValueError) as error:
        return first_line(error)
