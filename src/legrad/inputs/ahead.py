"""Work done ahead in other threads, results in order.

Bare threads and bare locks: whatever interrupts the caller, nobody waits for these threads, and they hold no lock that
the caller, or the interpreter at its end, has to have. (A pool is joined at its end, and its queue is guarded by locks
that an interrupted caller may leave locked.)
"""

import _thread
import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class _Slot(Generic[T]):
    """Where one job's result is put.

    Attributes:
        allowed: locked until a thread may begin with the job.
        finished: locked until the result, or the error, is there.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed, self.finished = _thread.allocate_lock(), _thread.allocate_lock()
        self.finished.acquire()
        if not allowed:
            self.allowed.acquire()
        self.result: list[T] = []
        self.error: BaseException | None = None


def read_ahead(jobs: Sequence[Callable[[], T]], threads: int, ahead: int) -> Generator[T]:
    """The results of the jobs, in order; threads work on the next ones meanwhile.

    Args:
        jobs: called once each, in any thread.
        threads: how many at once.
        ahead: how many results may wait, or be worked on, beyond those taken.

    Raises:
        BaseException: what a job raises; those after it are not begun any more.
    """
    slots: list[_Slot[T]] = [_Slot(index < ahead) for index in range(len(jobs))]
    numbers = itertools.count()
    stopped: list[bool] = []

    def work() -> None:
        while (index := next(numbers)) < len(jobs):
            slot = slots[index]
            slot.allowed.acquire()
            if stopped:
                return
            try:
                slot.result.append(jobs[index]())
            except BaseException as error:
                slot.error = error
            slot.finished.release()

    try:
        for _ in range(min(threads, len(jobs))):
            _thread.start_new_thread(work, ())
        for index, slot in enumerate(slots):
            slot.finished.acquire()
            if slot.error is not None:
                raise slot.error
            if index + ahead < len(slots):
                slots[index + ahead].allowed.release()
            yield slot.result.pop()
    finally:
        stopped.append(True)
        for slot in slots:
            with suppress(RuntimeError):  # it may begin already
                slot.allowed.release()
