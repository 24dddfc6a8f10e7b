"""Reading, computing and writing side by side: one thread reads ahead, one writes behind, both a bounded way.

Both are plain threads: parsing, tokenising in Rust, the forward pass, Parquet and fsync give the interpreter lock back.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ...data.worker_thread import Job, WorkerThread

T = TypeVar("T")

_END: Any = object()


def ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """`items`, made in a thread of their own up to `depth` too early; errors come in their turn."""
    iterator = iter(items)
    step = partial(next, iterator, _END)
    with WorkerThread() as thread:
        waiting: deque[Job[T]] = deque(thread.submit(step) for _ in range(depth))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(step))
            yield item


class Writer:
    """Runs jobs in a thread, in order, while at most `depth` of them wait or run.

    The first error of a job is raised by the next `submit` or `check`, or at the end of the block. What was submitted
    before the block ended is done, also where it ended with an error: it was paid for.
    """

    def __init__(self, depth: int = 1) -> None:
        self._depth = depth
        self._thread = WorkerThread()
        self._jobs: deque[Job[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.close()
        if error is None:
            self.check()

    def submit(self, job: Callable[[], None]) -> None:
        """Takes `job` on, waiting for an earlier one where `depth` are on their way."""
        while len(self._jobs) >= self._depth:
            self._jobs.popleft().result()
        self._jobs.append(self._thread.submit(job))

    def check(self) -> None:
        """Raises the error of a job that failed. Costs nothing, so that a long computation can ask often."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
