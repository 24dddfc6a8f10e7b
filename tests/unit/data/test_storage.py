"""A cache behind a URL of fsspec, here in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tgdpo.data.cache import RewardCache
from tgdpo.data.storage import Storage
from tgdpo.data.verify import verify
from tgdpo.errors import CacheError, UsageError

SHARD = "part-00001-of-00003.parquet"


@pytest.fixture
def memory(finished: Path) -> Iterator[Any]:
    """fsspec's file system in memory with a copy of the cache under /cache."""
    files = fsspec.filesystem("memory")
    files.put(str(finished) + "/", "/cache", recursive=True)
    yield files
    files.store.clear()


def test_reads_what_the_folder_holds(memory: Any, cache: RewardCache) -> None:
    remote = RewardCache("memory://cache")
    assert remote.manifest == cache.manifest
    assert verify(remote) == []
    remote.require_complete()
    for group in cache.row_groups:
        assert remote.read_row_group(group).equals(cache.read_row_group(group))
        assert [pair.pair_id for pair in remote.read_pairs(group)] == [p.pair_id for p in cache.read_pairs(group)]


def test_a_changed_byte_is_noticed_at_the_first_reading(memory: Any) -> None:
    content = bytearray(memory.cat_file(f"/cache/{SHARD}"))
    content[-1] ^= 1
    memory.pipe_file(f"/cache/{SHARD}", bytes(content))
    remote = RewardCache("memory://cache")
    remote.require_complete()
    remote.read_pairs(remote.row_groups[0])
    with pytest.raises(CacheError, match=f"{SHARD} has changed"):
        remote.read_pairs(next(group for group in remote.row_groups if group.shard == 1))


def test_another_size_is_noticed_at_the_start(memory: Any) -> None:
    memory.pipe_file(f"/cache/{SHARD}", memory.cat_file(f"/cache/{SHARD}")[:-1])
    with pytest.raises(CacheError, match=rf"memory://cache: {SHARD} has \d+ bytes"):
        RewardCache("memory://cache").require_complete()


def test_nothing_there(memory: Any) -> None:
    with pytest.raises(CacheError, match="memory://nothing is no folder"):
        RewardCache("memory://nothing")


def test_what_breaks_while_reading_names_the_address(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Storage("memory://cache")

    def broken(*_: Any) -> bytes:
        raise RuntimeError("the line is dead")

    monkeypatch.setattr(type(memory), "cat_file", broken)
    with pytest.raises(CacheError, match=rf"/cache/{SHARD} cannot be read \(the line is dead\)"):
        remote.read(SHARD)


@pytest.mark.parametrize("url", ["s3://id:secret@bucket/cache", "http://id:secret@host/cache"])
def test_credentials_in_the_url_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="holds credentials") as caught:
        Storage(url)
    assert "secret" not in str(caught.value)


def test_an_unknown_kind_of_url() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        Storage("nosuch://cache")


def test_a_path_below_home(monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    monkeypatch.setenv("HOME", str(finished.parent))
    assert RewardCache(f"~/{finished.name}").storage.location == str(finished)
