"""The output folder of a scoring run: which file is where, what is missing, whose it is.

OUTPUT/_work/settings.json            the fingerprint; other settings are refused
OUTPUT/_work/tokens-NNNNN.parquet     rendered and tokenised pairs of a shard
OUTPUT/_work/prepared-NNNNN.json      what their preparation found; then they are whole
OUTPUT/_work/shards.json              the number of shards, once the set was read to its end
OUTPUT/_work/reference-NNNNN.parquet  log pi_ref per response token, where another pass follows
OUTPUT/_work/guidance-NNNNN.parquet   the rewards of a guide, where another pass follows; guide-NAME- of an added one
OUTPUT/_work/samples-NNNNN.parquet    tokens drawn from the reference, where another pass follows
OUTPUT/_work/finished-NNNNN.json      the finished shard's entry in the manifest
OUTPUT/part-NNNNN-of-NNNNN.parquet    the finished shard
OUTPUT/_manifest.json                 last; then _work goes

Several workers may use one folder: whatever exists is whole, and the first to publish a file wins.
"""

import json
import shutil
from pathlib import Path

from ...data.files import TEMPORARY_SUFFIX, publish, remove_temporaries
from ...data.manifest import ENVIRONMENT_FIELDS, Fingerprint, Manifest, differing_fields
from ...data.schema import MANIFEST_NAME, SET_ASIDE_NAME, shard_name
from ...errors import CacheError


class OutputFolder:
    """Paths of one run; nothing is written before `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "_work"
        self._settings = self.work / "settings.json"
        self._shards = self.work / "shards.json"

    def tokens(self, shard: int) -> Path:
        """Prepared rows of a shard."""
        return self.work / f"tokens-{shard:05d}.parquet"

    def record(self, shard: int) -> Path:
        """What the preparation of a shard found."""
        return self.work / f"prepared-{shard:05d}.json"

    def scores(self, role: str, shard: int) -> Path:
        """The columns that the pass of this role makes of a shard, where another pass follows."""
        return self.work / f"{role}-{shard:05d}.parquet"

    def entry(self, shard: int) -> Path:
        """What the manifest will say of a finished shard."""
        return self.work / f"finished-{shard:05d}.json"

    def shard(self, shard: int, count: int) -> Path:
        """The finished shard."""
        return self.path / shard_name(shard, count)

    def shard_count(self) -> int | None:
        """The number of shards, None before the set was read to its end."""
        return int(json.loads(self._shards.read_text())) if self._shards.is_file() else None

    def set_shard_count(self, count: int) -> None:
        """Notes the number of shards."""
        publish(self._shards, lambda path: path.write_text(f"{count}\n"))

    def unprepared(self) -> list[int]:
        """The shards that are not prepared, none before their number is known."""
        there = {path.name for path in self.work.glob("prepared-*.json")}
        return [shard for shard in range(self.shard_count() or 0) if self.record(shard).name not in there]

    @property
    def set_aside(self) -> Path:
        """The rows that were not scored."""
        return self.path / SET_ASIDE_NAME

    def is_prepared_with(self, settings: Fingerprint) -> bool:
        """Whether every shard's tokens are there, from a run that had these settings among its own."""
        theirs = self._their_settings()
        if theirs is None or not self.shard_count() or self.unprepared():
            return False
        return all(theirs.get(name) == value for name, value in settings.items())

    def finished(self, fingerprint: Fingerprint) -> Manifest | None:
        """The manifest of a finished cache with these settings, None where the cache is not finished.

        Raises:
            CacheError: the finished cache has other settings.
        """
        if not (self.path / MANIFEST_NAME).exists():
            return None
        manifest = Manifest.read(self.path)
        self._require_same(fingerprint, manifest.fingerprint, ignore=ENVIRONMENT_FIELDS)
        self.clean()  # what a run that was killed after it had published the manifest has left
        return manifest

    def claim(self, fingerprint: Fingerprint, *, alone: bool = True) -> bool:
        """Makes the folder this run's, or goes on in it. Returns whether it is new.

        A run with other settings that has not scored anything yet is started over with these, unless other workers may
        be at work in it.

        Raises:
            CacheError: the folder holds scores of a run with other settings, or something else.
        """
        for folder in (self.path, self.work):
            remove_temporaries(folder)
        theirs = self._their_settings()
        if theirs == fingerprint:
            return False
        if theirs is not None:
            if self._has_scores() or not alone:
                self._require_same(fingerprint, theirs)
            if self._is_ours():
                self._remove_work()
        if self._holds_something_else():
            raise CacheError(f"--output {self.path} exists and is no reward cache", fix="name a new or an empty folder")
        self.work.mkdir(parents=True, exist_ok=True)
        content = json.dumps(fingerprint, indent=1) + "\n"
        if publish(self._settings, lambda path: path.write_text(content)):
            return True
        self._require_same(fingerprint, self._their_settings() or {})  # another worker was first
        return False

    def _their_settings(self) -> Fingerprint | None:
        if not self._settings.is_file():
            return None
        theirs: Fingerprint = json.loads(self._settings.read_text())
        return theirs

    def _holds_something_else(self) -> bool:
        if self.path.is_file():
            return True
        return self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours()

    def _is_ours(self) -> bool:
        """Whether the folder holds nothing but what an unfinished scoring run writes."""
        written = (
            *("settings.json", "shards.json", "tokens-*.parquet", "prepared-*.json", "reference-*.parquet"),
            *("guidance-*.parquet", "guide-*.parquet", "samples-*.parquet", "finished-*.json", f".*{TEMPORARY_SUFFIX}"),
        )
        if not self.work.is_dir() or any(entry != self.work for entry in self.path.iterdir()):
            return False
        return all(any(entry.match(pattern) for pattern in written) for entry in self.work.iterdir())

    def _has_scores(self) -> bool:
        return any(self.path.glob("part-*")) or any(self.work.glob("reference-*"))

    def abandon(self) -> None:
        """Takes a folder back in which nothing was scored yet."""
        self._remove_work()
        shutil.rmtree(self.path)

    def _remove_work(self) -> None:
        # The settings go last: without them, what is left of a killed removal would pass for the next run's.
        for entry in self.work.iterdir():
            if entry != self._settings:
                entry.unlink()
        shutil.rmtree(self.work)

    def clean(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self.work, ignore_errors=True)
        remove_temporaries(self.path, of_the_living=True)

    def _require_same(self, ours: Fingerprint, theirs: Fingerprint, *, ignore: tuple[str, ...] = ()) -> None:
        fields = differing_fields(ours, theirs, ignore=ignore)
        if fields:
            differences = ", ".join(
                f"{name} ({_short(theirs.get(name))}, now {_short(ours.get(name))})" for name in fields
            )
            raise CacheError(
                f"--output {self.path} was made with other settings: {differences}",
                fix="use the same settings, or another --output",
            )


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items())
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text
