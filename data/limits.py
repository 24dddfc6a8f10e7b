"""Bounds on what a chat template may take. It comes with a model and runs in Jinja's sandbox, which stops neither long
loops nor huge strings."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TEMPLATE_SECONDS = 10.0
"""Processor time of one rendering."""
TEMPLATE_BYTES = 2**31
"""Memory of one rendering."""


class OverLimitError(Exception):
    """The block took more time or memory than it may."""


@contextmanager
def limited(seconds: float = TEMPLATE_SECONDS, size: int = TEMPLATE_BYTES) -> Iterator[None]:
    """Ends the block where it takes too much; two system calls a limit, so that it can stand around every row.

    Time is limited in the main thread alone, memory on Linux alone.

    Raises:
        OverLimitError: it took more than `seconds` of processor time, or more than `size` bytes of further memory.
    """
    try:
        with _limited_memory(size), _limited_time(seconds):
            yield
    except MemoryError:
        raise OverLimitError(f"more than {size / 2**30:.3g} GiB of memory") from None


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OverLimitError(f"more than {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = _address_space()
    limit = now + size
    if not now or (soft != resource.RLIM_INFINITY and soft <= limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    with suppress(OSError), open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0
