"""A folder that a run writes to, on a disk or in an object store: in either a file is whole or not there, and the first
writer wins. On disks `files` sees to that, elsewhere `object_store`.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError
from . import files
from .addresses import is_url, local_path
from .lock import Lock

Write = Callable[[Path], object]
"""Makes a file at the path that it is given."""

PROBE = "probe-"
"""Begin of the names of files that try a store out."""

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
        return f"{self.location.rstrip('/')}/{name}".rstrip("/")

    @abstractmethod
    def publish(self, name: str, write: Write) -> bool:
        """Makes a file with `write`; the first writer wins.

        Returns:
            Whether this call's file was published; False if another one stood there already (it is left alone). In an
            object store another one of the same bytes counts as this call's.

        Raises:
            OSError: a disk is full, say.
            StorageError: the object store did not take it.
        """

    @abstractmethod
    def replace(self, name: str, write: Write) -> None:
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

    def exists(self) -> bool:
        """Whether the folder is there, where there is such a thing."""
        return True

    def make_folder(self, name: str) -> None:  # noqa: B027
        """Makes a folder, where there is such a thing."""

    def remove_empty_folder(self, name: str) -> None:  # noqa: B027
        """Removes a folder in which there is nothing."""

    def remove_temporaries(self, folder: str = "", *, of_the_living: bool = False) -> None:  # noqa: B027
        """As `files.remove_temporaries`, where writers leave such files."""

    def require_first_wins(self, folder: str) -> None:  # noqa: B027
        """Raises UsageError where a file would be replaced by publishing another."""

    def lock(self, name: str) -> Lock | None:  # noqa: ARG002
        """A lock on the file of that name, in a folder that is there; None in an object store, which has no locks."""
        return None


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
        """A Parquet file's rows. Raises CacheError where it is damaged."""

        def read(source: Any) -> pa.Table:
            # In this thread, and from afar in few large reads: Arrow's own threads wait for ever where memory is short.
            is_remote = not isinstance(source, Path)
            with (
                self._damage_named(),
                pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=is_remote) as file,
            ):
                table = file.read(columns=columns, use_threads=False)
                return table if columns is None else table.select(columns)

        return self.store.read_with(self.path, read)

    def rows(self) -> int:
        """The number of rows of a Parquet file. Raises CacheError where it is damaged."""

        def count(source: Any) -> int:
            with self._damage_named():
                return int(pq.read_metadata(source).num_rows)

        return self.store.read_with(self.path, count)

    def parsed(self, content: bytes, parse: Callable[[bytes], Answer]) -> Answer:
        """What `parse` makes of the file's content. Raises CacheError where that is damaged."""
        try:
            with self._damage_named():
                return parse(content)
        except CacheError:
            again = self.store.read(self.path)
            if again == content:
                raise
        with self._damage_named():
            return parse(again)  # it was damaged on its way

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, MemoryError):  # Arrow's own of memory is one of both
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's; Arrow's own have no number
            raise CacheError(
                f"{self} is damaged", fix="restore it from a copy, or score again into another --output"
            ) from error

    def size_and_sha256(self) -> tuple[int, str]:
        """Its bytes: how many, and their hexadecimal SHA-256."""
        return self.store.size_and_sha256(self.path)

    def publish(self, write: Write) -> bool:
        """Makes it, unless it is there."""
        return self.store.publish(self.path, write)

    def replace(self, write: Write) -> None:
        """Makes or replaces it."""
        self.store.replace(self.path, write)

    def remove(self) -> None:
        """Removes it, if it is there."""
        self.store.remove([self.path])


class LocalStore(Store):
    """A folder on a disk, or on one that is shared over the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.location = str(self.folder)

    def publish(self, name: str, write: Write) -> bool:
        return files.publish(self.folder / name, write)

    def replace(self, name: str, write: Write) -> None:
        files.replace(self.folder / name, write)

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
            with suppress(FileNotFoundError, NotADirectoryError):
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

    def exists(self) -> bool:
        return self.folder.exists()

    def make_folder(self, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def remove_empty_folder(self, name: str) -> None:
        with suppress(OSError):
            (self.folder / name).rmdir()

    def remove_temporaries(self, folder: str = "", *, of_the_living: bool = False) -> None:
        files.remove_temporaries(self.folder / folder, of_the_living=of_the_living)

    def lock(self, name: str) -> Lock | None:
        return Lock(self.folder / name)


def open_store(location: str | Path) -> Store:
    """The store at a path or URL; nothing is written.

    Raises:
        UsageError: the URL's library is missing, or the URL holds credentials; or see `local_path`.
    """
    if not is_url(str(location)):
        return LocalStore(local_path(location))
    from .object_store import ObjectStore  # which is made of what stands here

    return ObjectStore(str(location))
