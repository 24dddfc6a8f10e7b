"""Reads a reward cache: a folder of Parquet shards and their manifest, on disk or at an fsspec URL."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import CacheError, UsageError
from .decoding import decoding_problem
from .inputs import Stamp, stamp_of
from .manifest import Manifest, Shard
from .schema import METADATA_KEY, shard_metadata, shard_schema
from .storage import Storage
from .tokenization import PairIds

if TYPE_CHECKING:
    import datasets
    import pandas as pd

Content = TypeVar("Content")
Scores = npt.NDArray[np.float32]
HASHED_AT_START = 2**28
"""Bytes of shards; a fraction of a second."""
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_SCORES = ("chosen_ref_logps", "rejected_ref_logps", "chosen_rewards", "rejected_rewards")


class ScoredPair(NamedTuple):
    """One row of the cache. Scores are float32, one per response token, in nats."""

    pair_id: str
    ids: PairIds
    chosen_ref_logps: Scores
    rejected_ref_logps: Scores
    chosen_rewards: Scores
    rejected_rewards: Scores
    further: Mapping[str, npt.NDArray[Any]] = {}
    """Further columns that were asked for, by name."""

    def without_rejected(self) -> "ScoredPair":
        """The pair with an empty rejected response, and without further columns."""
        return self._replace(
            ids=self.ids._replace(rejected=self.ids.rejected[:0]),
            rejected_ref_logps=self.rejected_ref_logps[:0],
            rejected_rewards=self.rejected_rewards[:0],
            further={},
        )


class RowGroup(NamedTuple):
    """Row group `number` of shard number `shard`."""

    shard: int
    number: int
    rows: int


class RewardCache:
    """A finished cache.

    Args:
        folder: the `--output` of `tgdpo score`: a path, or a URL that fsspec opens.

    Raises:
        CacheError: the folder holds no finished cache.
        UsageError: the URL cannot be opened.
    """

    def __init__(self, folder: str | Path) -> None:
        self.storage = Storage(folder)
        self.manifest = Manifest.read(self.storage)
        self._checked: dict[int, Stamp | None] = {}

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of its shards."""
        names = [guide.name for guide in self.manifest.added_guides]
        return shard_schema(names, has_samples=self.manifest.reference_samples > 0)

    @cached_property
    def _metadata(self) -> bytes:
        return shard_metadata(self.manifest.fingerprint)[METADATA_KEY]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the shards' hashes: equal for copies of one cache."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.manifest.shards).encode()).hexdigest()

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """All row groups in the cache's order, computed from the manifest without opening a shard.

        Raises:
            CacheError: a shard is missing or of another size than the manifest says.
        """
        # What is counted here from the manifest alone is no longer than files that are really there.
        for shard in self.manifest.shards:
            self._require(size_problem(self.storage, shard))
        return [group for number in range(len(self.manifest.shards)) for group in self.row_groups_of(number)]

    def row_groups_of(self, shard: int) -> list[RowGroup]:
        """The row groups of one shard, computed from the manifest."""
        size, rows = self.manifest.row_group_pairs, self.manifest.shards[shard].rows
        return [RowGroup(shard, group, min(size, rows - group * size)) for group in range(-(-rows // size))]

    @contextmanager
    def open_shard(self, number: int) -> Iterator[pq.ParquetFile]:
        """The shard with page checksums verified on reading. Raises CacheError where that fails."""
        shard, is_remote = self.manifest.shards[number], not self.storage.is_local
        with (
            self.storage.parquet(shard.name) as source,
            # From afar, a row group's columns come in few large reads.
            pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=is_remote) as file,
        ):
            if not file.schema_arrow.equals(self.schema):
                self._require(f"{shard.name} has other columns than the format")
            if (file.schema_arrow.metadata or {}).get(METADATA_KEY) != self._metadata:
                self._require(f"{shard.name} was made with other settings than the manifest's")
            self._require(decoding_problem(file, shard, self.manifest.reference_samples))
            yield file

    def read_row_group(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group. Raises CacheError where its bytes are damaged."""
        return self.read_file(
            group.shard, lambda file: file.read_row_group(group.number, columns=columns, use_threads=False)
        )

    def read_file(self, number: int, read: Callable[[pq.ParquetFile], Content]) -> Content:
        """What `read` takes from a shard. What comes from afar may be damaged on its way, and is then read again.

        Raises:
            CacheError: it is damaged.
        """
        try:
            with self.open_shard(number) as file:
                return read(file)
        except CacheError:
            if self.storage.is_local:
                raise
        with self.open_shard(number) as file:
            return read(file)

    def read_shard(self, number: int) -> pa.Table:
        """All rows and columns of a shard, once its SHA-256 was compared with the manifest's.

        Raises:
            CacheError: the shard has changed or is damaged.
        """
        self._require_unchanged(number)
        table = self.read_file(number, partial(pq.ParquetFile.read, use_threads=False))
        self._require_unchanged(number)  # nor while it was read
        return table

    def read_pairs(
        self, group: RowGroup, further: Sequence[str] = (), vocabulary: int | None = None
    ) -> list[ScoredPair]:
        """The rows of one row group as pairs, with these further columns; the arrays are views of the decoded columns.

        When a shard is read for the first time, its SHA-256 is compared with the manifest's.

        Args:
            group: which one.
            further: see `ScoredPair`.
            vocabulary: the number of token ids that a model knows, where that is to be checked.

        Raises:
            CacheError: the shard has changed or is damaged, or holds ids that the model does not know.
        """
        self._require_unchanged(group.shard)
        columns = ["pair_id", *_IDS, *_SCORES, *further]
        table = self.read_row_group(group, list(dict.fromkeys(columns)))
        self._require_unchanged(group.shard)  # nor while it was read
        for problem in ids_problems(table, vocabulary):
            raise CacheError(
                f"{self.storage.path(self.manifest.shards[group.shard].name)}: {problem}",
                fix="train a model of the family that the cache was scored with, or score again",
            )
        return pairs_of(table, further)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, or these columns of them, in memory.

        Raises:
            CacheError: a shard is missing or damaged.
            UsageError: there is no such column.
        """
        wanted = list(self.schema.names if columns is None else columns)
        unknown = [name for name in wanted if name not in self.schema.names]
        if unknown:
            raise UsageError(f"the cache has no column {unknown[0]}", fix=f"there are {', '.join(self.schema.names)}")
        tables = []
        for number in range(len(self.manifest.shards)):
            tables.append(self.read_file(number, partial(pq.ParquetFile.read, columns=wanted)))
        schema = pa.schema([self.schema.field(name) for name in wanted])
        # Each shard's metadata is its own.
        return pa.concat_tables([table.select(wanted).cast(schema) for table in tables] or [schema.empty_table()])

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """As `to_arrow`, as a data frame; lists are numpy arrays, one a row."""
        frame: pd.DataFrame = self.to_arrow(columns).to_pandas()
        return frame

    def to_dataset(self, columns: Sequence[str] | None = None) -> "datasets.Dataset":
        """As `to_arrow`, as a Dataset of Hugging Face datasets. A cache that memory does not hold is read by
        `datasets.load_dataset(folder, streaming=True)`."""
        import datasets

        return datasets.Dataset(self.to_arrow(columns))

    def find(self, pair: str) -> pa.Table:
        """One row, by `pair_id` or by its number in the cache.

        Raises:
            CacheError: there is no such pair.
        """
        return self.find_numbered(pair)[1]

    def find_numbered(self, pair: str) -> tuple[int, pa.Table]:
        """As `find`, with the row's number in the cache."""
        number = int(pair) if pair.isascii() and pair.isdigit() and len(pair) < 20 else None
        start = 0
        for group in self.row_groups:
            if number is not None and start <= number < start + group.rows:
                return number, self.read_row_group(group).slice(number - start, 1)
            if number is None:
                ids = self.read_row_group(group, ["pair_id"])["pair_id"].to_pylist()
                if pair in ids:
                    return start + ids.index(pair), self.read_row_group(group).slice(ids.index(pair), 1)
            start += group.rows
        raise CacheError(
            f"no pair {pair} in {self.storage}", fix=f"give a pair_id or a number from 0 to {len(self) - 1}"
        )

    def require_complete(self) -> None:
        """Compares the size of every shard with the manifest, from one listing; and of local shards the SHA-256, as far
        as `HASHED_AT_START` goes. The others are compared when they are first read.

        Raises:
            CacheError: at the first shard that is missing or has changed.
        """
        for shard in self.manifest.shards:
            self._require(size_problem(self.storage, shard))
        ends = np.cumsum([shard.bytes for shard in self.manifest.shards])
        for number in np.flatnonzero(ends <= HASHED_AT_START).tolist() if self.storage.is_local else []:
            self._require_unchanged(number)

    def _require_unchanged(self, number: int) -> None:
        name = self.manifest.shards[number].name
        stamp = stamp_of(Path(self.storage.path(name))) if self.storage.is_local else None
        if number not in self._checked or self._checked[number] != stamp:
            self._require(shard_problem(self.storage, self.manifest.shards[number]))
            self._checked[number] = stamp

    def _require(self, problem: str | None) -> None:
        if problem:
            raise CacheError(
                f"{self.storage}: {problem}", fix="restore the file from a copy, or score again into another --output"
            )


def load_cache(folder: str | Path) -> RewardCache:
    """Opens a finished cache, to look at it from Python: `tgdpo.load_cache("cache").to_pandas()`.

    Args:
        folder: the `--output` of `tgdpo score`: a path, or a URL that fsspec opens.

    Raises:
        CacheError: the folder holds no finished cache.
        UsageError: the URL cannot be opened.
    """
    return RewardCache(folder)


def size_problem(storage: Storage, shard: Shard) -> str | None:
    """What is wrong with a shard's file as the folder lists it, or None."""
    file = storage.files.get(shard.name)
    if file is None:
        return f"{shard.name} is missing"
    if file.size != shard.bytes:
        return f"{shard.name} has {file.size} bytes, the manifest says {shard.bytes}"
    return None


def shard_problem(storage: Storage, shard: Shard) -> str | None:
    """What is wrong with the bytes of a shard's file, or None."""
    problem = size_problem(storage, shard)
    if problem:
        return problem
    found = storage.sha256(shard.name)
    if found == shard.sha256:
        return None
    again = found if storage.is_local else storage.sha256(shard.name)
    if again == shard.sha256:
        return None  # it was damaged on its way
    if again != found:
        raise CacheError(
            f"{storage.path(shard.name)} arrives with other bytes each time it is read",
            fix="check the network and its proxies: something there changes what is sent",
        )
    return f"{shard.name} has changed (its SHA-256 is not the manifest's)"


def list_arrays(table: pa.Table, column: str) -> list[npt.NDArray[np.generic]]:
    """A list column as one numpy view per row."""
    rows = table[column].combine_chunks()
    values = rows.values.to_numpy(zero_copy_only=False)
    offsets = rows.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def ids_problems(table: pa.Table, vocabulary: int | None = None) -> list[str]:
    """What is wrong with the token ids of some rows, where a model knows so many."""
    problems = []
    for name in set(_IDS).intersection(table.schema.names):
        ends = pc.min_max(pc.list_flatten(table[name])).as_py()
        if ends["min"] is not None and ends["min"] < 0:
            problems.append(f"{name} holds the token id {ends['min']}")
        if ends["max"] is not None and vocabulary is not None and ends["max"] >= vocabulary:
            problems.append(f"{name} holds the token id {ends['max']}, and the model knows {vocabulary}")
    return sorted(problems)


def pair_ids_of(table: pa.Table) -> list[PairIds]:
    """The token ids of every row."""
    columns = (list_arrays(table, name) for name in _IDS)
    return [PairIds(*row) for row in zip(*columns, strict=True)]


def pairs_of(table: pa.Table, further: Sequence[str] = ()) -> list[ScoredPair]:
    """Every row as a `ScoredPair`, with these further columns."""
    scores = (list_arrays(table, name) for name in _SCORES)
    pairs = [ScoredPair(*row) for row in zip(table["pair_id"].to_pylist(), pair_ids_of(table), *scores, strict=True)]
    if not further:
        return pairs
    rows = zip(*(list_arrays(table, name) for name in further), strict=True)
    return [pair._replace(further=dict(zip(further, row, strict=True))) for pair, row in zip(pairs, rows, strict=True)]
