"""The output folder of a scoring run: which file is where, what is missing, whose it is.

OUTPUT/_work/settings.json            the fingerprint; other settings are refused
OUTPUT/_work/tokens-NNNNN.parquet     rendered and tokenised pairs, and prepared.json once all are there
OUTPUT/_work/reference-NNNNN.parquet  log pi_ref per response token
OUTPUT/part-NNNNN-of-NNNNN.parquet    the finished shard
OUTPUT/_manifest.json                 last; then _work goes
"""

import json
import shutil
from pathlib import Path

from ...data.files import TEMPORARY_SUFFIX, remove_temporaries, replace
from ...data.manifest import ENVIRONMENT_FIELDS, Fingerprint, Manifest, differing_fields
from ...data.schema import MANIFEST_NAME, SET_ASIDE_NAME, shard_name
from ...errors import CacheError


class OutputFolder:
    """Paths of one run; nothing is written before `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "_work"
        self.prepared = self.work / "prepared.json"
        self._settings = self.work / "settings.json"

    def tokens(self, shard: int) -> Path:
        """Prepared rows of a shard."""
        return self.work / f"tokens-{shard:05d}.parquet"

    def reference(self, shard: int) -> Path:
        """Reference log-probabilities of a shard."""
        return self.work / f"reference-{shard:05d}.parquet"

    def shard(self, shard: int, count: int) -> Path:
        """The finished shard."""
        return self.path / shard_name(shard, count)

    @property
    def set_aside(self) -> Path:
        """The rows that were not scored."""
        return self.path / SET_ASIDE_NAME

    def finished(self, fingerprint: Fingerprint) -> Manifest | None:
        """The manifest of a finished cache with these settings, None where the cache is not finished.

        Raises:
            CacheError: the finished cache has other settings.
        """
        if not (self.path / MANIFEST_NAME).exists():
            return None
        manifest = Manifest.read(self.path)
        self._require_same(fingerprint, manifest.fingerprint, ignore=ENVIRONMENT_FIELDS)
        return manifest

    def claim(self, fingerprint: Fingerprint) -> bool:
        """Makes the folder this run's, or goes on in it. Returns whether it is new.

        A run with other settings that has not scored anything yet is started over with these.

        Raises:
            CacheError: the folder holds scores of a run with other settings, or something else.
        """
        if self._settings.is_file():
            theirs = json.loads(self._settings.read_text())
            if theirs == fingerprint:
                return False
            if self._has_scores():
                self._require_same(fingerprint, theirs)
        if self._is_ours() and not self._has_scores():
            shutil.rmtree(self.work)
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise CacheError(f"--output {self.path} exists and is no reward cache", fix="name a new or an empty folder")
        self.work.mkdir(parents=True)
        content = json.dumps(fingerprint, indent=1) + "\n"
        replace(self._settings, lambda path: path.write_text(content))
        return True

    def _is_ours(self) -> bool:
        """Whether the folder holds nothing but what an unfinished scoring run writes."""
        written = ("settings.json", "prepared.json", "tokens-*.parquet", "reference-*.parquet", f".*{TEMPORARY_SUFFIX}")
        if not self.work.is_dir() or any(entry != self.work for entry in self.path.iterdir()):
            return False
        return all(any(entry.match(pattern) for pattern in written) for entry in self.work.iterdir())

    def _has_scores(self) -> bool:
        return any(self.path.glob("part-*")) or any(self.work.glob("reference-*"))

    def abandon(self) -> None:
        """Takes a folder back in which nothing was scored yet."""
        shutil.rmtree(self.path)

    def clean(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self.work, ignore_errors=True)
        remove_temporaries(self.path)

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
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text
