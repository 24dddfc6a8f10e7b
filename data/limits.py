"""Bounds on what a chat template may take. It comes with a model and runs in Jinja's sandbox, which stops neither long
loops nor huge strings and numbers."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TEMPLATE_SECONDS = 10.0
"""Processor time of one rendering."""
TEMPLATE_BYTES = 2**31
"""Memory of one rendering."""
REPEAT = 1.0
"""Seconds of processor time until a block that has swallowed the first signal gets the next."""


class OverLimitError(BaseException):
    """The block took more time, memory or depth than it may. No Exception: Jinja evaluates constants under `except
    Exception`, and would go on where it was told to stop."""


@contextmanager
def limited(seconds: float = TEMPLATE_SECONDS, size: int = TEMPLATE_BYTES) -> Iterator[None]:
    """Ends the block where it takes too much. A limit costs two system calls, so it can be set around every row.

    Time is limited in the main thread only, memory on Linux only.

    Raises:
        OverLimitError: it took more than `seconds` of processor time, more than `size` bytes of further memory, or
            more nested calls than Python allows.
    """
    try:
        with _limited_memory(size), _limited_time(seconds):
            yield
    except MemoryError:
        raise OverLimitError(f"more than {size / 2**30:.3g} GiB of memory") from None
    except RecursionError:
        raise OverLimitError("more nested calls than Python allows") from None


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    late, inside = False, True

    def stop(*_: object) -> None:
        nonlocal late
        late = True
        if inside:
            raise OverLimitError(f"more than {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, REPEAT)
    try:
        try:
            yield
        finally:
            inside = False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    if late:  # the block caught everything, this included
        raise OverLimitError(f"more than {seconds:g} s")


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
