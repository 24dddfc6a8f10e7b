"""Reading ahead and writing behind."""

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tgdpo.stages.score.overlap import Writer, ahead


class TestAhead:
    def test_gives_the_same_items(self) -> None:
        assert list(ahead(range(100), 4)) == list(range(100))
        assert list(ahead([])) == []

    def test_is_bounded(self) -> None:
        made = []

        def items() -> Iterator[int]:
            for i in range(20):
                made.append(i)
                yield i

        for item in ahead(items(), 3):
            time.sleep(0.002)
            assert len(made) <= item + 4

    def test_an_error_comes_in_its_turn(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            yield 2
            raise OSError("unreadable")

        seen = []
        with pytest.raises(OSError, match="unreadable"):  # noqa: PT012
            for item in ahead(items(), 2):
                seen.append(item)
        assert seen == [1, 2]

    def test_left_early_its_thread_ends(self) -> None:
        before = threading.active_count()
        stream = ahead(range(1000), 2)
        assert next(stream) == 0
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


class TestWriter:
    def test_runs_jobs_in_order_and_ends_with_all_of_them(self) -> None:
        done: list[int] = []
        with Writer(2) as writer:
            for i in range(20):
                writer.submit(lambda i=i: done.append(i))  # type: ignore[misc]
        assert done == list(range(20))

    def test_waits_where_too_many_are_on_their_way(self) -> None:
        running = threading.Event()
        with Writer(1) as writer:
            writer.submit(lambda: running.wait(5) and None)
            threading.Timer(0.05, running.set).start()
            start = time.monotonic()
            writer.submit(lambda: None)
            assert time.monotonic() - start > 0.02

    def test_check_tells_of_a_failed_job(self) -> None:
        def fail() -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"), Writer() as writer:  # noqa: PT012
            writer.submit(fail)
            for _ in range(1000):
                writer.check()
                time.sleep(0.001)
            raise AssertionError("check never raised")

    def test_the_last_failure_is_told_at_the_end(self) -> None:
        def fail() -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"), Writer() as writer:
            writer.submit(fail)

    def test_what_was_submitted_is_done_though_the_block_failed(self) -> None:
        done: list[int] = []

        def slow(number: int) -> None:
            time.sleep(0.01)
            done.append(number)

        with pytest.raises(KeyboardInterrupt), Writer(3) as writer:  # noqa: PT012
            for i in range(3):
                writer.submit(partial(slow, i))
            raise KeyboardInterrupt
        assert done == [0, 1, 2]
