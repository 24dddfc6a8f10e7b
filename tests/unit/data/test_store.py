"""Files that are whole or not there, in a folder and in an object store; the latter here is fsspec's in memory."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tgdpo.data import object_store as module
from tgdpo.data.files import sha256_file
from tgdpo.data.object_store import LISTED_FROM, ObjectStore
from tgdpo.data.store import LocalStore, Store, open_store
from tgdpo.errors import StorageError, UsageError


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory."""
    files = fsspec.filesystem("memory", use_listings_cache=False)
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, memory: Any, tmp_path: Path) -> Store:
    made = open_store(tmp_path / "a" if request.param == "folder" else "memory://bucket/a")
    assert isinstance(made, LocalStore if request.param == "folder" else ObjectStore)
    made.make_folder("_work")
    return made


@pytest.fixture
def remote(memory: Any) -> Store:
    return open_store("memory://bucket/a")


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


class TestBoth:
    """A folder and an object store do the same."""

    def test_the_first_writer_wins(self, store: Store) -> None:
        file = store.file("_work/a.json")
        assert not file.exists()
        assert file.publish(text("one"))
        assert not file.publish(text("two"))
        assert file.read() == b"one"
        assert file.exists()

    def test_replacing(self, store: Store) -> None:
        file = store.file("a.json")
        for content in ("one", "two"):
            file.replace(text(content))
            assert file.read() == content.encode()

    def test_a_writer_that_fails_publishes_nothing(self, store: Store) -> None:
        def broken(path: Path) -> None:
            path.write_text("half")
            raise RuntimeError

        for make in (store.file("a").publish, store.file("a").replace):
            with pytest.raises(RuntimeError):
                make(broken)
        assert store.names() <= {"_work"}

    def test_names_and_what_is_there(self, store: Store) -> None:
        assert store.names("_work") == set()
        names = ["_work/a", "_work/b", "c"]
        for name in names:
            store.publish(name, text(name))
        assert store.names() == {"_work", "c"}
        assert store.names("_work") == {"a", "b"}
        assert store.existing(["_work/b", "_work/x"]) == {"_work/b"}
        asked = [*names, "_work/x", "_work/c", "x", "other/a"]
        assert len(asked) > LISTED_FROM
        assert store.existing(asked) == set(names)
        assert store.read_all(asked) == {name: name.encode() for name in names}
        assert store.read_all([]) == {}

    def test_removing(self, store: Store) -> None:
        for name in ("_work/a", "_work/b", "c"):
            store.publish(name, text(name))
        store.remove(["_work/a", "_work/gone"])
        assert store.names("_work") == {"b"}
        store.file("_work/gone").remove()
        store.remove_folder("_work")
        assert store.names() == {"c"}
        store.remove_folder("_work", ignore_errors=True)

    def test_what_is_not_there(self, store: Store) -> None:
        file = store.file("nothing.parquet")
        for read in (file.read, file.table, file.rows, file.size_and_sha256):
            with pytest.raises(FileNotFoundError):
                read()

    def test_parquet(self, store: Store, tmp_path: Path) -> None:
        table = pa.table({"a": list(range(1000)), "b": ["text"] * 1000})
        file = store.file("_work/a.parquet")
        file.publish(lambda path: pq.write_table(table, path))
        assert file.table().equals(table)
        assert file.table(["b"]).equals(table.select(["b"]))
        assert file.rows() == 1000
        pq.write_table(table, tmp_path / "copy")
        assert file.size_and_sha256() == ((tmp_path / "copy").stat().st_size, sha256_file(tmp_path / "copy"))
        assert file.name == "a.parquet"
        assert str(file) == f"{store}/_work/a.parquet"

    def test_other_processes_get_it_by_its_address(self, store: Store) -> None:
        store.publish("a", text("one"))
        copy = pickle.loads(pickle.dumps(store))
        assert copy.read("a") == b"one"
        assert b"secret" not in pickle.dumps(store)


def breaking(memory: Any, patch: pytest.MonkeyPatch, *broken: bool, after: bool = False) -> list[str]:
    """Lets puts fail, the n-th where `broken[n]`, before or after they are done; returns the names that were put."""
    put, seen = type(memory).pipe_file, list[str]()

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        seen.append(path)
        fails = len(seen) <= len(broken) and broken[len(seen) - 1]
        if not fails or after:
            put(self, path, value, mode=mode, **options)
        if fails:
            raise ConnectionError("the line is dead")

    patch.setattr(type(memory), "pipe_file", pipe_file)
    return seen


class TestObjectStore:
    def test_a_lost_answer(self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file is there by this put, whatever its answer."""
        seen = breaking(memory, monkeypatch, True, after=True)
        assert remote.publish("a", text("mine"))
        assert len(seen) == 1

    def test_a_lost_answer_that_would_have_been_no(
        self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert remote.publish("a", text("another's"))
        breaking(memory, monkeypatch, True)
        assert not remote.publish("a", text("mine"))
        assert remote.read("a") == b"another's"

    def test_a_store_that_has_answered_is_waited_for(
        self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr(module.time, "sleep", waited.append)
        seen = breaking(memory, monkeypatch, False, True, True)
        assert remote.publish("a", text("one"))
        assert remote.publish("b", text("two"))
        assert len(seen) == 4
        assert waited == [1, 2]

    def test_not_for_ever(self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PATIENCE", 0.1)
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
        remote.names()
        seen = breaking(memory, monkeypatch, *[True] * 100)
        with pytest.raises(StorageError, match=r"^memory://bucket/a/b cannot be written \(the line is dead\): check"):
            remote.replace("b", text("two"))
        assert 2 <= len(seen) <= 4

    def test_an_address_that_never_answered_is_not_waited_for(
        self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waited"))
        monkeypatch.setattr(type(memory), "ls", lambda *_, **__: 1 / 0)
        with pytest.raises(StorageError, match=r"^memory://bucket/a/_work cannot be listed \(division by zero\)"):
            remote.names("_work")

    def test_what_is_refused_is_not_asked_again(
        self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remote.names()

        def denied(*_: Any, **__: Any) -> None:
            raise PermissionError("Access Denied")

        monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waited"))
        monkeypatch.setattr(type(memory), "pipe_file", denied)
        with pytest.raises(StorageError, match=r"cannot be written \(Access Denied\)"):
            remote.publish("a", text("one"))

    def test_a_store_that_replaces_is_refused(
        self, remote: Store, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remote.require_first_wins("_work")
        put = type(memory).pipe_file
        monkeypatch.setattr(type(memory), "pipe_file", lambda self, path, value, **_: put(self, path, value))
        with pytest.raises(UsageError, match=r"^memory://bucket/a: the store replaces a file .*If-None-Match"):
            remote.require_first_wins("_work")
        assert remote.names("_work") == set()

    def test_files_are_made_without_a_name(
        self, remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that nothing is left of a killed process."""
        monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
        seen: list[list[str]] = []
        remote.publish("a", lambda path: (path.write_text("one"), seen.append(os.listdir(tmp_path))))
        assert seen == [[]]

    def test_a_full_disk_while_it_is_made(self, remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path) -> None:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
        with pytest.raises(OSError, match=str(tmp_path)):
            remote.publish("a", full)

    def test_credentials_in_the_url_are_refused(self) -> None:
        with pytest.raises(UsageError, match="holds credentials") as caught:
            open_store("s3://id:secret@bucket/cache")
        assert "secret" not in str(caught.value)
