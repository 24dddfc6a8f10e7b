"""The output folder of a scoring run: which file is where, what is missing, whose it is.

OUTPUT/_work/settings.json            the fingerprint; other settings are refused
OUTPUT/_work/tokens-NNNNN.parquet     rendered and tokenised pairs of a shard
OUTPUT/_work/prepared-NNNNN.json      what their preparation found; then they are whole
OUTPUT/_work/shards.json              the number of shards, once the set was read to its end
OUTPUT/_work/reference-NNNNN.parquet  log pi_ref per response token, where another pass follows
OUTPUT/_work/guidance-NNNNN.parquet   the rewards of a guide, where another pass follows; guide-NAME- of an added one
OUTPUT/_work/samples-NNNNN.parquet    tokens drawn from the reference, where another pass follows
OUTPUT/_work/begun-NNNNN-XXXXXXXX      a process is at a shard, or died at it
OUTPUT/_work/finished-NNNNN.json      the finished shard's entry in the manifest
OUTPUT/_work/probe-XXXXXXXXXXXX       an object store was tried out
OUTPUT/_work/lock                     shared by the processes that are at work, of one fingerprint; on disks alone
OUTPUT/part-NNNNN-of-NNNNN.parquet    the finished shard
OUTPUT/_manifest.json                 last; then _work goes

Several workers of one fingerprint may use one folder: whatever exists is whole, and the first to publish a file wins.
Every file carries a mark of the fingerprint, which is compared wherever it is read (run_file.py).
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, Field

from ...data.files import TEMPORARY_SUFFIX
from ...data.manifest import ENVIRONMENT_FIELDS, Fingerprint, Manifest
from ...data.schema import MANIFEST_NAME, SET_ASIDE_NAME, shard_name
from ...data.storage import Storage
from ...data.store import PROBE, StoredFile, open_store
from ...data.versions import OTHER_TEXT
from ...errors import CacheError, StorageError
from .folder_lock import FolderLock
from .run_file import Mark, RunFile
from .upgrade import begun_by, completed, differing, maker

WORK = "_work"
BEGUN = "begun-"
LOCK = "lock"


class ShardCount(BaseModel):
    """Content of shards.json."""

    shards: int = Field(ge=0)


class OutputFolder:
    """Files of one run; nothing is written before `claim`.

    Args:
        output: a path, or the URL of a folder in an object store.

    Raises:
        UsageError: the URL cannot be opened.
    """

    def __init__(self, output: str | Path) -> None:
        self.store = open_store(output)
        self._settings = self.store.file(f"{WORK}/settings.json")
        self._fingerprint: Fingerprint = {}
        self._lock = FolderLock(self.store, WORK, LOCK)
        self._made_folder = False

    def __str__(self) -> str:
        return self.store.location

    def explain_missing(self, error: FileNotFoundError) -> None:
        """Raises CacheError where a file is missing since the folder is gone, or another run has started it over."""
        theirs = self._their_settings()
        if theirs is None:
            raise CacheError(
                f"--output {self} is gone: it was moved or removed while the run was at work",
                fix="run the same command with its new name; finished work is kept",
            ) from error
        self._require_same(self._fingerprint, theirs)

    def close(self) -> None:
        """Lets runs with other settings use the folder."""
        self._lock.release()

    def _file(self, name: str) -> RunFile:
        return RunFile(self.store, name, Mark.of(self._fingerprint))

    def _work(self, name: str) -> RunFile:
        return self._file(f"{WORK}/{name}")

    @property
    def _shards(self) -> RunFile:
        return self._work("shards.json")

    def tokens(self, shard: int) -> RunFile:
        """Prepared rows of a shard."""
        return self._work(f"tokens-{shard:05d}.parquet")

    def record(self, shard: int) -> RunFile:
        """What the preparation of a shard found."""
        return self._work(f"prepared-{shard:05d}.json")

    def scores(self, role: str, shard: int) -> RunFile:
        """The columns that the pass of this role makes of a shard, where another pass follows."""
        return self._work(f"{role}-{shard:05d}.parquet")

    @contextmanager
    def begun(self, shard: int) -> Iterator[None]:
        """Notes that a process is at a shard. The note stays where the process dies in the block."""
        self.require_ours()
        note = self._work(f"{_begun(shard)}{secrets.token_hex(4)}")
        note.publish(lambda path: path.write_text("\n", encoding="utf-8"))
        try:
            yield
        finally:
            note.remove()

    def deaths(self, shards: Iterable[int]) -> int:
        """The largest number of processes that died at one of `shards`, in any pass; others that are at it now count
        as well."""
        notes = [name for name in self.store.names(WORK) if name.startswith(BEGUN)]
        return max((sum(name.startswith(_begun(shard)) for name in notes) for shard in shards), default=0)

    def entry(self, shard: int) -> RunFile:
        """What the manifest will say of a finished shard."""
        return self._work(f"finished-{shard:05d}.json")

    def shard(self, shard: int, count: int) -> RunFile:
        """The finished shard."""
        return self._file(shard_name(shard, count))

    def existing(self, files: Iterable[StoredFile]) -> set[StoredFile]:
        """Those of `files` that are there."""
        asked = {file.path: file for file in files}
        return {asked[path] for path in self.store.existing(asked)}

    def contents(self, files: Iterable[StoredFile]) -> Iterator[bytes | None]:
        """What stands in `files`, read together; None for one that is not there."""
        asked = [file.path for file in files]
        found = self.store.read_all(asked)
        return (found.get(path) for path in asked)

    def shard_count(self) -> int | None:
        """The number of shards, None before the set was read to its end."""
        (content,) = self.contents([self._shards])
        if content is None:
            return None
        count = self._shards.parsed(content, json.loads)
        if isinstance(count, int):  # as 0.1.0 wrote it
            self._shards.mark.require(None, self._shards)
            return count
        return self._shards.record(content, ShardCount).shards

    def all_shards(self) -> range:
        """The numbers of all shards. Raises FileNotFoundError where their count is not there: not yet, or no more since
        another worker has ended the run."""
        count = self.shard_count()
        if count is None:
            raise FileNotFoundError(str(self._shards))
        return range(count)

    def set_shard_count(self, count: int) -> None:
        """Notes the number of shards."""
        self._shards.write_record(ShardCount(shards=count))

    def unprepared(self) -> list[int]:
        """The shards that are not prepared, none before their number is known."""
        there = self.store.names(WORK)
        return [shard for shard in range(self.shard_count() or 0) if self.record(shard).name not in there]

    @property
    def set_aside(self) -> StoredFile:
        """The rows that were not scored."""
        return self.store.file(SET_ASIDE_NAME)

    def holds_tokens_of(self, settings: Fingerprint) -> bool:
        """Whether every shard's tokens are there, from a run that had these settings among its own; then its files can
        be read."""
        self._fingerprint = self._their_settings() or {}
        if not self._fingerprint or not self.shard_count() or self.unprepared():
            return False
        theirs = completed(self._fingerprint)
        return all(theirs.get(name) == value for name, value in settings.items())

    def is_begun_with_other_text(self) -> bool:
        """Whether a release that reads some rows in another way has prepared a part of them here, and not all."""
        theirs = self._their_settings()
        return theirs is not None and begun_by(theirs) in OTHER_TEXT and not self.holds_tokens_of({})

    def recorded(self) -> Fingerprint | None:
        """The fingerprint of the run that is in the folder, finished or not; None where there is none."""
        if self.store.file(MANIFEST_NAME).exists():
            return Manifest.read(Storage(self.store.location)).fingerprint
        return self._their_settings()

    def finished(self, fingerprint: Fingerprint) -> Manifest | None:
        """The manifest of a finished cache with these settings, None where the cache is not finished.

        Raises:
            CacheError: the finished cache has other settings.
        """
        if not self.store.file(MANIFEST_NAME).exists():
            return None
        manifest = Manifest.read(Storage(self.store.location))
        self._require_same(fingerprint, manifest.fingerprint, ignore=ENVIRONMENT_FIELDS)
        self.clean()  # what a run that was killed after it had published the manifest has left
        return manifest

    def claim(self, fingerprint: Fingerprint, *, alone: bool = True) -> bool:
        """Makes the folder this run's, or resumes the run in it. Returns whether it is new.

        A run with other settings that has not scored anything yet is started over with these, unless processes may be
        at work in it.

        Raises:
            CacheError: the folder holds scores of a run with other settings, or something else, or another process is
                at work in it with other settings.
        """
        for folder in ("", WORK):
            self.store.remove_temporaries(folder)
        self._require_free()
        self._fingerprint = fingerprint
        self._made_folder = not self.store.exists()
        self._lock.share()
        self._require_free()  # again, since nothing can be changed now
        self.store.require_first_wins(WORK)
        theirs = self._their_settings()
        if theirs == fingerprint:
            return False
        if theirs is not None:
            self._start_over(theirs, alone=alone)
        content = json.dumps(fingerprint, indent=1) + "\n"
        is_new = self._settings.publish(lambda path: path.write_text(content, encoding="utf-8"))
        if theirs is not None:
            self._lock.share()
        self.require_ours()  # another worker, or another run, may have been first
        return is_new

    def _require_free(self) -> None:
        if self._their_settings() is None and self._holds_something_else():
            if self.store.file(MANIFEST_NAME).exists():  # another worker has ended the run meanwhile
                raise FileNotFoundError(str(self._settings))
            raise CacheError(f"--output {self} exists and is no reward cache", fix="name a new or an empty folder")

    def require_ours(self) -> None:
        """Raises CacheError where a run with other settings has taken the folder over, and FileNotFoundError where
        another worker has ended this run."""
        theirs = self._their_settings()
        if theirs is None:
            raise FileNotFoundError(str(self._settings))
        if theirs != self._fingerprint:
            self._require_same(self._fingerprint, theirs)

    def _start_over(self, theirs: Fingerprint, *, alone: bool) -> None:
        """Removes the files of a run with other settings, unless it has scores, or processes may be at work in it."""
        holds_work = self._has_scores() or not self._is_ours()
        if holds_work or not alone:
            self._require_same(self._fingerprint, theirs)
        is_locked = not self._lock.own()
        if is_locked:
            self._require_same(self._fingerprint, theirs, whose="is in use by another tgdpo score")
        if holds_work or is_locked:  # begun meanwhile by another release whose work this one may finish
            raise CacheError(f"--output {self} was begun by another tgdpo score meanwhile", fix="run the command again")
        self._remove_work()

    def _their_settings(self) -> Fingerprint | None:
        (content,) = self.contents([self._settings])
        return None if content is None else self._settings.parsed(content, _mapping)

    def _holds_something_else(self) -> bool:
        try:
            return bool(self.store.names()) and not self._is_ours()
        except NotADirectoryError:
            return True

    def _is_ours(self) -> bool:
        """Whether the folder holds nothing but what an unfinished scoring run writes."""
        return self.store.names() == {WORK} and all(map(_is_written, self.store.names(WORK)))

    def _has_scores(self) -> bool:
        finished = any(name.startswith("part-") for name in self.store.names())
        return finished or any(name.startswith("reference-") for name in self.store.names(WORK))

    def abandon(self) -> None:
        """Removes what this run has made, in which nothing was scored yet."""
        self._remove_work()
        self.store.file(f"{WORK}/{LOCK}").remove()
        self.store.remove_empty_folder(WORK)
        if self._made_folder:
            self.store.remove_empty_folder("")

    def _remove_work(self) -> None:
        # The settings go last: without them, what is left of a killed removal would pass for the next run's.
        others = {name for name in self.store.names(WORK) if _is_written(name)} - {self._settings.name, LOCK}
        self.store.remove([f"{WORK}/{name}" for name in others])
        left = self.store.names(WORK) & others
        if left:  # a store may be silent about what it does not let go
            raise StorageError(f"{self._work(min(left))} cannot be removed", fix="use another --output")
        self._settings.remove()

    def clean(self) -> None:
        """Removes what only an unfinished run needs."""
        self.store.remove_folder(WORK, ignore_errors=True)
        self.store.remove_temporaries(of_the_living=True)

    def _require_same(
        self, ours: Fingerprint, theirs: Fingerprint, *, ignore: tuple[str, ...] = (), whose: str = "was made"
    ) -> None:
        fields, theirs = differing(ours, theirs, ignore=ignore), completed(theirs)
        if "score_version" in fields:
            raise CacheError(
                f"--output {self} was begun by {maker(theirs)}",
                fix=f"finish it with tgdpo {begun_by(theirs)}, or use another --output",
            )
        if fields:
            differences = ", ".join(
                f"{name} ({_short(theirs.get(name))}, now {_short(ours.get(name))})" for name in fields
            )
            raise CacheError(
                f"--output {self} {whose} with other settings: {differences}",
                fix="use the same settings, or another --output",
            )


def _mapping(content: bytes) -> Fingerprint:
    mapping = json.loads(content)
    if not isinstance(mapping, dict):
        raise ValueError("no mapping")
    return mapping


def _is_written(name: str) -> bool:
    """Whether an unfinished scoring run writes a file of that name into `_work`."""
    written = (
        *("settings.json", "shards.json", LOCK, "tokens-*.parquet", "prepared-*.json", "reference-*.parquet"),
        *("guidance-*.parquet", "guide-*.parquet", "samples-*.parquet", "finished-*.json"),
        *(f"{BEGUN}*", f"{PROBE}*", f".*{TEMPORARY_SUFFIX}"),
    )
    return any(fnmatchcase(name, pattern) for pattern in written)


def _begun(shard: int) -> str:
    return f"{BEGUN}{shard:05d}-"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items())
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text
