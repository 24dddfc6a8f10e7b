"""Reads the next item while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from .worker_thread import Job, WorkerThread

Item = TypeVar("Item")
Content = TypeVar("Content")


def read_ahead(read: Callable[[Item], Content], items: Iterable[Item]) -> Iterator[Content]:
    """`read(item)` of every item in order, in a thread that is one item ahead and never more.

    What `read` raises is raised where its content would have come.
    """
    with WorkerThread() as thread:
        pending: deque[Job[Content]] = deque()
        for item in items:
            pending.append(thread.submit(partial(read, item)))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
