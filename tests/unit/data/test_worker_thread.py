"""A thread that runs jobs, and how one that dies is told."""

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from tgdpo.data import worker_thread as module
from tgdpo.data.read_ahead import read_ahead
from tgdpo.data.worker_thread import Job, WorkerThread
from tgdpo.stages.score.overlap import Writer, ahead


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.02)


def no_memory(*_: Any) -> Any:
    raise MemoryError


def in_the_frame(patch: pytest.MonkeyPatch) -> None:
    """The thread is started, and has no memory to run anything."""
    patch.setattr(_thread, "start_new_thread", lambda *_: None)


def between_jobs(patch: pytest.MonkeyPatch) -> None:
    """It dies where it asks for the next job."""

    class Queue:
        def __init__(self) -> None:
            self._queue: SimpleQueue[Any] = SimpleQueue()
            self.put = self._queue.put

        def get(self) -> Any:
            self._queue.get()
            raise MemoryError

    patch.setattr(module, "SimpleQueue", Queue)


def before_a_job(patch: pytest.MonkeyPatch) -> None:
    """It dies where it begins a job."""
    patch.setattr(Job, "run", no_memory)


def without_its_error(patch: pytest.MonkeyPatch) -> None:
    """The job fails, and there is no memory to note how."""

    def run(self: Job[Any]) -> None:
        self._is_over.release()

    patch.setattr(Job, "run", run)


def read_by(work: Callable[[], Any]) -> None:
    list(ahead(work() for _ in range(5)))


def read_for_training(work: Callable[[], Any]) -> None:
    list(read_ahead(lambda _: work(), range(5)))


def written(work: Callable[[], Any]) -> None:
    with Writer() as writer:
        for _ in range(5):
            writer.submit(work)
            writer.check()


USES = [read_by, read_for_training, written]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dies", [in_the_frame, between_jobs, before_a_job, without_its_error])
def test_a_thread_that_dies_ends_the_run(
    use: Callable[[Callable[[], Any]], None],
    dies: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dies(monkeypatch)
    start = time.monotonic()
    with pytest.raises(MemoryError):
        use(lambda: 1)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("use", USES)
def test_no_memory_in_a_job(use: Callable[[Callable[[], Any]], None]) -> None:
    with pytest.raises(MemoryError):
        use(no_memory)


@pytest.mark.parametrize("use", USES)
def test_no_thread_at_all(use: Callable[[Callable[[], Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        use(lambda: 1)


def test_its_thread_ends() -> None:
    before = _thread._count()
    with WorkerThread() as thread:
        assert thread.submit(threading.get_ident).result() != threading.get_ident()
        assert thread.is_alive
    for _ in range(500):
        if not thread.is_alive:
            break
        time.sleep(0.01)
    assert not thread.is_alive
    assert _thread._count() <= before


def test_a_long_job_is_waited_for() -> None:
    with WorkerThread() as thread:
        assert thread.submit(lambda: time.sleep(0.1) or "done").result() == "done"


def test_an_error_of_a_job_is_its_own() -> None:
    def steps() -> Iterator[int]:
        yield 1
        raise TimeoutError("the store")

    with pytest.raises(TimeoutError, match="the store"):
        list(ahead(steps()))
