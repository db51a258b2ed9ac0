"""What a long call is at, for whoever shows it: "loading", "checking", "explaining" or "drawing"."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def tell(stage: str) -> None:
    """Say what begins now; costs nothing where nobody listens."""
    listener = _listener.get()
    if listener is not None:
        listener(stage)


@contextlib.contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """A block whose stages are told to ``listener``, in the thread that it runs in."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
