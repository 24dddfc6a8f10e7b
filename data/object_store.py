"""What a run writes below a URL of fsspec: s3://bucket/cache, gs://…, abfs://…

A file is made here, in a file without a name, and put by one request, which the store refuses where one of that name is
there: the first writer wins, as on a disk. The store's answer may be lost; whoever asks again is then refused for its
own file, and finds that out by comparing the content.
"""

import errno
import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CacheError, StorageError, UsageError, is_out_of_memory
from .storage import open_url
from .store import PROBE, Answer, Store, Write
from .store_errors import Refusal, has_no_bucket, refusal

PATIENCE = 60.0
"""Seconds for which a store that has answered before is asked again; its library asks some times more on its own."""
FIRST_PAUSE = 1.0
"""Seconds between the first attempts; each pause is twice as long as the one before."""
_WILL_NOT_PASS = (PermissionError, TypeError, ValueError, NotImplementedError)

LISTED_FROM = 3
"""So many names or more are looked up in a listing."""


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

    def publish(self, name: str, write: Write) -> bool:
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

    def replace(self, name: str, write: Write) -> None:
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

        try:
            return self._asked(name, "read", read)
        except CacheError:  # perhaps it was damaged on its way: stores give no checksum of a part
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

    def upload(self, path: Path, name: str) -> None:
        """Makes or replaces a file with what lies at `path`, however large. Raises as `publish`."""
        with self._no_bucket_named(name):
            self._asked(name, "written", lambda: self._files.put_file(str(path), self._path(name)))

    def download(self, name: str, path: Path) -> None:
        """Makes `path` with the content of a file, however large. Raises FileNotFoundError."""
        self._asked(name, "read", lambda: self._files.get_file(self._path(name), str(path)))

    def remove_tree(self, name: str) -> None:
        """Removes all that lies below a name."""
        with suppress(FileNotFoundError):
            self._asked(name, "removed", lambda: self._files.rm(self._path(name), recursive=True))

    def require_first_wins(self, folder: str) -> None:
        probe = self.file(f"{folder}/{PROBE}{secrets.token_hex(6)}")
        probe.publish(lambda path: path.write_text("first", encoding="utf-8"))
        is_replaced = probe.publish(lambda path: path.write_text("second", encoding="utf-8"))
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
            OSError: this machine's disk is full.
            StorageError: anything else that goes wrong.
        """
        pause, until = FIRST_PAUSE, time.monotonic() + PATIENCE
        while True:
            try:
                answer = request()
            except (FileNotFoundError, CacheError) as error:  # answers as well
                if has_no_bucket(error):
                    raise self._error(name, done, refusal(error)) from error
                self._has_answered = True
                raise
            except Exception as error:
                if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
                    raise
                refused = refusal(error, lambda: self._files.ls(self._root, detail=False))
                is_late = time.monotonic() + pause > until
                is_lasting = isinstance(error, _WILL_NOT_PASS) or not refused.will_pass
                if is_late or not self._has_answered or is_lasting:
                    raise self._error(name, done, refused) from error
                time.sleep(pause)
                pause *= 2
            else:
                self._has_answered = True
                return answer

    @contextmanager
    def _no_bucket_named(self, name: str) -> Iterator[None]:
        """A file that is to be written needs no file to be there."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._error(name, "written", refusal(error)) from error

    def _error(self, name: str, done: str, refused: Refusal) -> StorageError:
        return StorageError(
            f"{self.address(name)} cannot be {done} ({refused.reason})",
            fix=f"{refused.fix}, and run the same command again, it goes on",
        )


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
