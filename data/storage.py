"""A folder to read from, on this machine or at an fsspec URL: s3://bucket/cache, gs://…, hf://datasets/…, memory://…"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from ..errors import CacheError, UsageError, is_out_of_memory
from .addresses import credentials_in, is_url, local_path, require_package
from .store_errors import arrived, has_no_bucket, refusal


class File(NamedTuple):
    """A file of the folder, or what a link there leads to."""

    size: int


class Storage:
    """Reads the files of one folder.

    Args:
        location: a path, or a URL of fsspec. Credentials come from the environment, as the URL's library finds them.

    Raises:
        UsageError: the URL's library is missing, or the URL holds credentials; or see `local_path`.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        if not is_url(self.location):
            self.location = str(local_path(location))
            self._files: Any = LocalFileSystem()
            self.root = self.location
        else:
            self._files, self.root = open_url(self.location)

    def __str__(self) -> str:
        return self.location

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine."""
        return isinstance(self._files, LocalFileSystem)

    @cached_property
    def files(self) -> dict[str, File]:
        """Name to file, from one listing. Raises CacheError where there is no such folder."""
        with self._errors_named(self.location):
            try:
                # Libraries remember listings, also of before a run of this process wrote there.
                self._files.invalidate_cache(self.root)
                entries = self._files.ls(self.root, detail=True)
            except (FileNotFoundError, NotADirectoryError) as error:
                if has_no_bucket(error):
                    raise OSError(str(error)) from error
                raise CacheError(f"{self} is no folder", fix="name the --output folder of tgdpo score") from error
            return {
                entry["name"].rstrip("/").rpartition("/")[2]: File(entry["size"] or 0)
                for entry in entries
                if entry["type"] == "file" or (entry.get("islink") and os.path.isfile(entry["name"]))
            }

    def path(self, name: str) -> str:
        """The address of a file."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._errors_named(self.path(name)):
            content: bytes = arrived(lambda: self._files.cat_file(self.path(name)))
            return content

    def sha256(self, name: str) -> str:
        """Hexadecimal SHA-256 of a file's bytes, read piece by piece."""

        def read() -> str:
            with self._files.open(self.path(name), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        with self._errors_named(self.path(name)):
            return arrived(read)

    @contextmanager
    def parquet(self, name: str) -> Iterator[Any]:
        """What pyarrow opens. Raises CacheError where reading in the block fails."""
        with self._errors_named(self.path(name)):
            if self.is_local:
                yield self.path(name)
            else:
                with self._files.open(self.path(name), "rb", cache_type="none") as file:
                    yield file

    @contextmanager
    def _errors_named(self, address: str) -> Iterator[None]:
        try:
            yield
        except CacheError:
            raise
        except Exception as error:
            # Of remote storage each library has exceptions of its own. A damaged column name is no UTF-8.
            if self.is_local and not isinstance(error, OSError | pa.ArrowException | UnicodeDecodeError):
                raise
            if is_out_of_memory(error):
                raise
            if isinstance(error, pa.ArrowException) or self.is_local:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise CacheError(
                    f"{address} is damaged ({reason})", fix="run tgdpo verify; restore the file or score again"
                ) from error
            refused = refusal(error, lambda: self._files.ls(self.root, detail=False))
            raise CacheError(f"{address} cannot be read ({refused.reason})", fix=refused.fix) from error


def open_url(url: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system of a URL, made with `options`, and the path in it.

    Raises:
        UsageError: the URL's library is missing, or the URL holds credentials.
    """
    shown = credentials_in(url)
    if shown:
        # They would stand in logs and in the run's configuration.
        raise UsageError(f"{shown}: the URL holds credentials", fix="put them into the environment instead")
    require_package(url)
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url} cannot be opened ({error})", fix="name a folder or a URL that fsspec knows") from error
    return found
