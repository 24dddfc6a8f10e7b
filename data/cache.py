"""Reads a reward cache: a folder of Parquet shards and their manifest."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError
from .files import sha256_file
from .manifest import Manifest, Shard
from .tokenization import PairIds

Scores = npt.NDArray[np.float32]


class ScoredPair(NamedTuple):
    """One row of the cache. Scores are float32, one per response token, in nats."""

    pair_id: str
    ids: PairIds
    chosen_ref_logps: Scores
    rejected_ref_logps: Scores
    chosen_rewards: Scores
    rejected_rewards: Scores


class RowGroup(NamedTuple):
    """Row group `number` of shard number `shard`."""

    shard: int
    number: int
    rows: int


class RewardCache:
    """A finished cache.

    Args:
        folder: the `--output` of `tgdpo score`.

    Raises:
        CacheError: the folder holds no finished cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the shards' hashes: equal for copies of one cache."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.manifest.shards).encode()).hexdigest()

    @cached_property
    def row_groups(self) -> list[RowGroup]:
        """All row groups in the cache's order, computed from the manifest without opening a shard."""
        size = self.manifest.row_group_pairs
        return [
            RowGroup(number, group, min(size, shard.rows - group * size))
            for number, shard in enumerate(self.manifest.shards)
            for group in range(-(-shard.rows // size))
        ]

    def shard_path(self, shard: Shard) -> Path:
        """Where the shard lies."""
        return self.folder / shard.name

    def open_shard(self, number: int) -> pq.ParquetFile:
        """The shard with page checksums verified on reading. Raises CacheError where it cannot be opened."""
        path = self.shard_path(self.manifest.shards[number])
        try:
            return pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, str(error)) from error

    def read_row_group(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group. Raises CacheError where its bytes are damaged."""
        try:
            return self.open_shard(group.shard).read_row_group(group.number, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.shard_path(self.manifest.shards[group.shard]), str(error)) from error

    def read_pairs(self, group: RowGroup) -> list[ScoredPair]:
        """The rows of one row group as pairs; the arrays are views of the decoded columns."""
        return pairs_of(self.read_row_group(group))

    def find(self, pair: str) -> pa.Table:
        """One row, by `pair_id` or by its number in the cache.

        Raises:
            CacheError: there is no such pair.
        """
        number = int(pair) if pair.isascii() and pair.isdigit() and len(pair) < 20 else None
        start = 0
        for group in self.row_groups:
            if number is not None and start <= number < start + group.rows:
                return self.read_row_group(group).slice(number - start, 1)
            start += group.rows
            if number is None:
                ids = self.read_row_group(group, ["pair_id"])["pair_id"].to_pylist()
                if pair in ids:
                    return self.read_row_group(group).slice(ids.index(pair), 1)
        raise CacheError(
            f"no pair {pair} in {self.folder}", fix=f"give a pair_id or a number from 0 to {len(self) - 1}"
        )

    def require_unchanged(self) -> None:
        """Compares size and SHA-256 of every shard with the manifest. Raises CacheError at the first that differs."""
        for shard in self.manifest.shards:
            problem = shard_problem(self.shard_path(shard), shard)
            if problem:
                raise CacheError(
                    f"{self.folder}: {problem}", fix="restore the file from a copy, or delete the cache and score again"
                )


def shard_problem(path: Path, shard: Shard) -> str | None:
    """What is wrong with the bytes of a shard's file, or None."""
    if path.is_symlink():
        return f"{shard.name} is a symbolic link, and those are not followed"
    if not path.is_file():
        return f"{shard.name} is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{shard.name} has {size} bytes, the manifest says {shard.bytes}"
    if sha256_file(path) != shard.sha256:
        return f"{shard.name} has changed (its SHA-256 is not the manifest's)"
    return None


def list_arrays(table: pa.Table, column: str) -> list[npt.NDArray[np.generic]]:
    """A list column as one numpy view per row."""
    rows = table[column].combine_chunks()
    values = rows.values.to_numpy(zero_copy_only=False)
    offsets = rows.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def pair_ids_of(table: pa.Table) -> list[PairIds]:
    """The token ids of every row."""
    columns = (list_arrays(table, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [PairIds(*row) for row in zip(*columns, strict=True)]


def pairs_of(table: pa.Table) -> list[ScoredPair]:
    """Every row as a `ScoredPair`."""
    names = ("chosen_ref_logps", "rejected_ref_logps", "chosen_rewards", "rejected_rewards")
    scores = (list_arrays(table, name) for name in names)
    return [ScoredPair(*row) for row in zip(table["pair_id"].to_pylist(), pair_ids_of(table), *scores, strict=True)]


def _damaged(path: Path, reason: str) -> CacheError:
    first_line = reason.splitlines()[0] if reason else "unreadable"
    return CacheError(f"{path} is damaged ({first_line})", fix="run tgdpo verify; restore the file or score again")
