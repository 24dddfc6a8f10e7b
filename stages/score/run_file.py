"""A file of a scoring run. Each carries a mark of the run's fingerprint, which is compared wherever the file is read,
and where another one was first: two runs that write into one folder never use each other's work."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ...data.manifest import Fingerprint
from ...data.schema import METADATA_KEY, write_parquet
from ...data.store import StoredFile
from ...errors import CacheError

Record = TypeVar("Record", bound=BaseModel)
_RUN = "run"


@dataclass(frozen=True)
class Mark:
    """What tells one run's files from another's."""

    sha256: str
    is_optional: bool
    """Whether a file may lack it: those that 0.1.0 left in an unfinished run do."""

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> "Mark":
        """The mark of a run."""
        content = json.dumps(fingerprint, sort_keys=True)
        return cls(hashlib.sha256(content.encode()).hexdigest(), "score_version" not in fingerprint)

    def require(self, found: object, file: object) -> None:
        """Raises CacheError where a file has the mark `found`, None without one, and that is another run's."""
        if found != self.sha256 and not (found is None and self.is_optional):
            raise CacheError(
                f"{file} was written by a run with other settings, which shared this --output",
                fix="score into another --output, each run into its own",
            )


@dataclass(frozen=True)
class RunFile(StoredFile):
    """A file of the run that has this mark, there or not."""

    mark: Mark

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file's rows. Raises CacheError where it is damaged, or another run's."""
        table = super().table(columns)
        self.mark.require(_mark_in(table.schema.metadata), self)
        return table

    def publish_table(self, table: pa.Table) -> bool:
        """Makes the file, unless it is there; returns whether it was made. Raises CacheError where the one that is
        there is another run's."""
        metadata = table.schema.metadata or {}
        if METADATA_KEY not in metadata:
            metadata = metadata | {METADATA_KEY: json.dumps({_RUN: self.mark.sha256})}
        marked = table.replace_schema_metadata(metadata)
        is_ours = self.publish(lambda path: write_parquet(marked, path))
        if not is_ours:
            self.mark.require(self.store.read_with(self.path, _mark_of_file), self)
        return is_ours

    def write_record(self, record: BaseModel) -> None:
        """Makes or replaces the file with the values of `record`."""
        content = json.dumps({_RUN: self.mark.sha256} | record.model_dump(mode="json"))
        self.replace(lambda path: path.write_text(content, encoding="utf-8"))

    def record(self, content: bytes, kind: type[Record]) -> Record:
        """The values that stand in the file's `content`. Raises CacheError where it is damaged, or another run's."""
        values = self.parsed(content, _mapping)
        self.mark.require(values.pop(_RUN, None), self)
        return self.parsed(content, lambda _: kind.model_validate(values))


def _mark_of_file(source: Any) -> object:
    return _mark_in(pq.read_schema(source).metadata)


def _mark_in(metadata: Mapping[bytes, bytes] | None) -> object:
    """The mark in a Parquet file's metadata; of a finished shard, that of the whole fingerprint in there."""
    try:
        noted = json.loads((metadata or {})[METADATA_KEY])
        return Mark.of(noted["fingerprint"]).sha256 if "fingerprint" in noted else noted[_RUN]
    except (KeyError, ValueError, TypeError):
        return None


def _mapping(content: bytes) -> dict[str, Any]:
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return values
