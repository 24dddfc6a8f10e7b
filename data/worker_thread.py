"""A thread that runs jobs in order, and on which nobody waits when it is gone.

Of Python's own pools one does: where memory is short, their thread may end between two jobs, or before it has said that
it runs, and whoever waits for it waits for ever.
"""

import _thread
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

SECONDS_BETWEEN_LOOKS = 1.0
"""How often a waiter looks whether the thread is still there; a result wakes it at once."""


class Job(Generic[Result]):
    """Something that the thread does."""

    def __init__(self, work: Callable[[], Result], thread: "WorkerThread") -> None:
        self._work: Callable[[], Result] | None = work
        self._thread = thread
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._is_over = _thread.allocate_lock()
        self._is_over.acquire()

    def run(self) -> None:
        """Does it; called in the thread."""
        try:
            assert self._work is not None
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._work = None
            self._is_over.release()

    def done(self) -> bool:
        """Whether it is over, done or failed."""
        return not self._is_over.locked()

    def wait(self) -> bool:
        """Waits until it is over. False where it never will be, since its thread is gone."""
        while not self._is_over.acquire(timeout=SECONDS_BETWEEN_LOOKS):
            if not self._thread.is_alive and self._is_over.locked():
                return False
        self._is_over.release()
        return True

    def result(self) -> Result:
        """What the work returned.

        Raises:
            MemoryError: the thread has died, which it does for want of memory.
            BaseException: what the work raised.
        """
        if not self.wait():
            raise MemoryError("a thread has died")
        if self._error is not None:
            raise self._error
        if not self._results:
            raise MemoryError("a thread had no memory for its error")
        return self._results[0]


class _Sign:
    """Held by the thread, and nobody else: gone with it, however it ended."""


class WorkerThread:
    """One thread, as a context manager: the block ends when all of its jobs are over.

    Raises:
        RuntimeError: the system starts no thread.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._last: Job[Any] | None = None
        sign = _Sign()
        self._sign = weakref.ref(sign)
        # threading.Thread.start would wait for the thread to say that it runs.
        _thread.start_new_thread(_serve, (self._waiting, sign))

    @property
    def is_alive(self) -> bool:
        """Whether it is there."""
        return self._sign() is not None

    def submit(self, work: Callable[[], Result]) -> Job[Result]:
        """Has the thread do something after what was submitted before."""
        job = Job(work, self)
        self._waiting.put(job)
        self._last = job
        return job

    def __enter__(self) -> "WorkerThread":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for all jobs; then the thread ends."""
        if self._last is not None:
            self._last.wait()
        self._waiting.put(None)


def _serve(waiting: "SimpleQueue[Job[Any] | None]", sign: _Sign) -> None:  # noqa: ARG001  (held while this runs)
    with suppress(MemoryError):  # whoever waits finds out
        while (job := waiting.get()) is not None:
            job.run()
            del job
