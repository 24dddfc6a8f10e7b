"""Reading the next item while the present one is worked on."""

import threading
import time

import pytest

from tgdpo.data.read_ahead import read_ahead


def test_all_in_order() -> None:
    assert list(read_ahead(lambda n: n * n, range(10))) == [n * n for n in range(10)]
    assert list(read_ahead(str, [])) == []


def test_one_ahead_and_never_more() -> None:
    begun: list[int] = []

    def read(n: int) -> int:
        begun.append(n)
        return n

    items = read_ahead(read, range(10))
    for n in range(5):
        assert next(items) == n
        time.sleep(0.05)
        assert begun == list(range(n + 2))


def test_the_next_is_read_meanwhile() -> None:
    second = threading.Event()
    items = read_ahead(lambda n: second.set() if n else None, range(2))
    next(items)
    assert second.wait(10)


def test_an_error_comes_where_its_content_would_have_come() -> None:
    items = read_ahead(lambda n: 1 / n, [2, 1, 0, 5])
    assert [next(items), next(items)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_a_reader_that_is_left_ends_its_thread() -> None:
    items = read_ahead(lambda n: n, range(10))
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
