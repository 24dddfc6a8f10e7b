"""A folder that a run writes to, on a disk or in an object store. A file in it is whole or not there.

On disks the order of `files` makes it so. In an object store a file is made here, in a file without a name, and put by
one request, which the store refuses where one of that name is there: the first writer wins, as on a disk. The store's
answer may be lost; whoever asks again is then refused for its own file, and finds that out by comparing the content.
"""

import hashlib
import secrets
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StorageError, UsageError
from . import files
from .addresses import is_url
from .storage import open_url

Write = Callable[[Path], object]
"""Makes a file at the path that it is given."""

WAITS = (1.0, 3.0, 9.0, 27.0)
"""Seconds between attempts at a store that has answered before; its library makes some of its own each time."""
_WILL_NOT_PASS = (PermissionError, TypeError, ValueError, NotImplementedError)

PROBE = "probe-"
"""Begin of the names of files that try a store out."""

LISTED_FROM = 3
"""So many names or more are looked up in a listing."""

Answer = TypeVar("Answer")


class Store(ABC):
    """A folder that files are published in. Names are relative to it, with slashes."""

    location: str
    """As a person would write it."""

    def __str__(self) -> str:
        return self.location

    def file(self, name: str) -> "StoredFile":
        """A file of that name, there or not."""
        return StoredFile(self, name)

    def address(self, name: str) -> str:
        """Where a file lies, for people."""
        return f"{self.location.rstrip('/')}/{name}"

    @abstractmethod
    def publish(self, name: str, write: Write, *, mode: int = 0o644) -> bool:
        """Makes a file with `write`; the first writer wins.

        Returns:
            Whether this call's file was published; False if another one stood there already (it is left alone). In an
            object store another one of the same bytes counts as this call's.

        Raises:
            OSError: a disk is full, say.
            StorageError: the object store did not take it.
        """

    @abstractmethod
    def replace(self, name: str, write: Write, *, mode: int = 0o644) -> None:
        """Makes or replaces a file; a reader sees the old one or the new one, whole. Raises as `publish`."""

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """The last part of the name of whatever lies directly in a folder; empty where there is no such folder."""

    @abstractmethod
    def existing(self, names: Collection[str]) -> set[str]:
        """Those of `names` that are there."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

    @abstractmethod
    def read_all(self, names: Collection[str]) -> dict[str, bytes]:
        """The content of those that are there."""

    @abstractmethod
    def read_with(self, name: str, reader: Callable[[Any], Answer]) -> Answer:
        """What `reader` returns for what pyarrow reads Parquet from. Raises FileNotFoundError."""

    @abstractmethod
    def size_and_sha256(self, name: str) -> tuple[int, str]:
        """A file's bytes: how many, and their hexadecimal SHA-256. Raises FileNotFoundError."""

    @abstractmethod
    def remove(self, names: Collection[str]) -> None:
        """Removes files, as far as they are there."""

    @abstractmethod
    def remove_folder(self, name: str, *, ignore_errors: bool = False) -> None:
        """Removes what lies in a folder, and the folder."""

    def make_folder(self, name: str) -> None:  # noqa: B027
        """Makes a folder, where there is such a thing."""

    def remove_temporaries(self, folder: str = "", *, of_the_living: bool = False) -> None:  # noqa: B027
        """As `files.remove_temporaries`, where writers leave such files."""

    def require_first_wins(self, folder: str) -> None:  # noqa: B027
        """Raises UsageError where a file would be replaced by publishing another."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, there or not; the methods are those of the store."""

    store: Store
    path: str
    """Its name, relative to the store."""

    def __str__(self) -> str:
        return self.store.address(self.path)

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.path.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self.store.existing([self.path]))

    def read(self) -> bytes:
        """Its content."""
        return self.store.read(self.path)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file's rows."""
        return self.store.read_with(self.path, lambda source: pq.read_table(source, columns=columns))

    def rows(self) -> int:
        """The number of rows of a Parquet file."""
        return self.store.read_with(self.path, lambda source: int(pq.read_metadata(source).num_rows))

    def size_and_sha256(self) -> tuple[int, str]:
        """Its bytes: how many, and their hexadecimal SHA-256."""
        return self.store.size_and_sha256(self.path)

    def publish(self, write: Write, *, mode: int = 0o644) -> bool:
        """Makes it, unless it is there."""
        return self.store.publish(self.path, write, mode=mode)

    def replace(self, write: Write, *, mode: int = 0o644) -> None:
        """Makes or replaces it."""
        self.store.replace(self.path, write, mode=mode)

    def remove(self) -> None:
        """Removes it, if it is there."""
        self.store.remove([self.path])


class LocalStore(Store):
    """A folder on a disk, or on one that is shared over the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.location = str(self.folder)

    def publish(self, name: str, write: Write, *, mode: int = 0o644) -> bool:
        return files.publish(self.folder / name, write, mode=mode)

    def replace(self, name: str, write: Write, *, mode: int = 0o644) -> None:
        files.replace(self.folder / name, write, mode=mode)

    def names(self, folder: str = "") -> set[str]:
        try:
            return {entry.name for entry in (self.folder / folder).iterdir()}
        except FileNotFoundError:
            return set()

    def existing(self, names: Collection[str]) -> set[str]:
        return {name for name in names if (self.folder / name).exists()}

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read_all(self, names: Collection[str]) -> dict[str, bytes]:
        content = {}
        for name in names:
            with suppress(FileNotFoundError):
                content[name] = self.read(name)
        return content

    def read_with(self, name: str, reader: Callable[[Any], Answer]) -> Answer:
        return reader(self.folder / name)

    def size_and_sha256(self, name: str) -> tuple[int, str]:
        path = self.folder / name
        return path.stat().st_size, files.sha256_file(path)

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def remove_folder(self, name: str, *, ignore_errors: bool = False) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=ignore_errors)

    def make_folder(self, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def remove_temporaries(self, folder: str = "", *, of_the_living: bool = False) -> None:
        files.remove_temporaries(self.folder / folder, of_the_living=of_the_living)


class ObjectStore(Store):
    """What lies below a URL of fsspec. Credentials come from the environment, as the URL's library finds them.

    Raises:
        UsageError: the URL's library is missing, or the URL holds credentials.
    """

    def __init__(self, url: str) -> None:
        self.location = url
        # A listing that was remembered would not know what other writers do.
        self._files, root = open_url(url, use_listings_cache=False)
        self._root = root.rstrip("/")
        self._has_answered = False

    def __reduce__(self) -> tuple[object, ...]:
        # Other machines have credentials of their own.
        return type(self), (self.location,)

    def publish(self, name: str, write: Write, *, mode: int = 0o644) -> bool:  # noqa: ARG002
        content = _made(write)

        def put() -> bool:
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except Exception:
                # Each library has other errors for a name that is taken. After a lost answer it is taken by this file.
                with suppress(FileNotFoundError):
                    return bool(self._files.cat_file(self._path(name)) == content)
                raise
            return True

        with self._no_bucket_named(name):
            return self._asked(name, "written", put)

    def replace(self, name: str, write: Write, *, mode: int = 0o644) -> None:  # noqa: ARG002
        content = _made(write)
        with self._no_bucket_named(name):
            self._asked(name, "written", lambda: self._files.pipe_file(self._path(name), content))

    def names(self, folder: str = "") -> set[str]:
        path = self._path(folder)
        try:
            entries = self._asked(folder, "listed", lambda: self._files.ls(path, detail=False))
        except FileNotFoundError:
            return set()
        # A store may list the folder itself.
        found = {entry.rstrip("/") for entry in entries} - {path}
        return {entry.rpartition("/")[2] for entry in found}

    def existing(self, names: Collection[str]) -> set[str]:
        if len(names) < LISTED_FROM:
            return {name for name in names if self._is_there(name)}
        folders = {name.rpartition("/")[0] for name in names}
        there = {f"{folder}/{name}".lstrip("/") for folder in folders for name in self.names(folder)}
        return there.intersection(names)

    def read(self, name: str) -> bytes:
        content: bytes = self._asked(name, "read", lambda: self._files.cat_file(self._path(name)))
        return content

    def read_all(self, names: Collection[str]) -> dict[str, bytes]:
        def many() -> dict[str, Any]:
            found: dict[str, Any] = self._files.cat([self._path(name) for name in names], on_error="return")
            for answer in found.values():
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
            return found

        found = self._asked("", "read", many) if names else {}
        content = {name: found[self._path(name)] for name in names}
        return {name: each for name, each in content.items() if isinstance(each, bytes)}

    def read_with(self, name: str, reader: Callable[[Any], Answer]) -> Answer:
        def read() -> Answer:
            with self._files.open(self._path(name), "rb", cache_type="none") as file:
                return reader(file)

        return self._asked(name, "read", read)

    def size_and_sha256(self, name: str) -> tuple[int, str]:
        content = self.read(name)
        return len(content), hashlib.sha256(content).hexdigest()

    def remove(self, names: Collection[str]) -> None:
        paths = [self._path(name) for name in names]
        try:
            self._asked("", "removed", lambda: self._files.rm(paths) if paths else None)
        except FileNotFoundError:  # somebody else removes them too
            for path in paths:
                with suppress(FileNotFoundError):
                    self._asked("", "removed", partial(self._files.rm_file, path))

    def remove_folder(self, name: str, *, ignore_errors: bool = False) -> None:
        with suppress(*([StorageError] if ignore_errors else [])):
            self.remove([f"{name}/{each}".lstrip("/") for each in self.names(name)])

    def require_first_wins(self, folder: str) -> None:
        probe = self.file(f"{folder}/{PROBE}{secrets.token_hex(6)}")
        probe.publish(lambda path: path.write_text("first"))
        is_replaced = probe.publish(lambda path: path.write_text("second"))
        probe.remove()
        if is_replaced:
            raise UsageError(
                f"{self}: the store replaces a file though it was told not to (If-None-Match: *)",
                fix="write to a folder, and copy the finished cache there",
            )

    def _is_there(self, name: str) -> bool:
        try:
            self._asked(name, "read", lambda: self._files.info(self._path(name)))
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _asked(self, name: str, done: str, request: Callable[[], Answer]) -> Answer:
        """What `request` returns. A store that has answered before is waited for.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: anything else that goes wrong.
        """
        waits = list(WAITS)
        while True:
            try:
                answer = request()
            except FileNotFoundError:
                self._has_answered = True
                raise
            except Exception as error:
                if not (self._has_answered and waits) or isinstance(error, _WILL_NOT_PASS):
                    raise self._error(name, done, error) from error
                time.sleep(waits.pop(0))
            else:
                self._has_answered = True
                return answer

    @contextmanager
    def _no_bucket_named(self, name: str) -> Iterator[None]:
        """A file that is to be written needs no file to be there."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._error(name, "written", error) from error

    def _error(self, name: str, done: str, error: Exception) -> StorageError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return StorageError(
            f"{self.address(name)} cannot be {done} ({reason})",
            fix="check the address, the credentials and the network, and run the same command again, it goes on",
        )


def open_store(location: str | Path) -> Store:
    """The store at a path or URL; nothing is written. Raises UsageError as `ObjectStore` does."""
    return ObjectStore(str(location)) if is_url(str(location)) else LocalStore(Path(location))


def _made(write: Write) -> bytes:
    """What `write` makes, by way of a file without a name: of a killed process nothing is left."""
    with tempfile.TemporaryFile() as file:
        try:
            write(Path(f"/dev/fd/{file.fileno()}"))
        except OSError as error:
            error.filename = tempfile.gettempdir()
            raise
        file.seek(0)
        return file.read()
