"""Which row groups are read, and their columns as flat arrays.

A million pairs hold some 400 million rewards, minutes of reading. So statistics come from row groups drawn over the
whole cache, unless all of it is asked for, and what every shard's footer knows (the extremes) from there.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...data.cache import RewardCache, RowGroup, Scores
from ...data.schema import ROW_GROUP_PAIRS
from ...errors import CacheError

SIDES = ("chosen", "rejected")
SAMPLE_ROW_GROUPS = 32
SAMPLE_PAIRS = SAMPLE_ROW_GROUPS * ROW_GROUP_PAIRS
MAX_TOKEN_ID = 2**22
"""No vocabulary is as large; an id beyond it is damage, and would take its size in memory."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The row groups that are read, each with the number of its first pair."""

    groups: tuple[tuple[int, RowGroup], ...]
    pairs: int
    of: int

    @property
    def is_whole(self) -> bool:
        """Whether all pairs are in it."""
        return self.pairs == self.of

    def __str__(self) -> str:
        if self.is_whole:
            return f"all {self.of:,} pairs"
        return f"a sample of {self.pairs:,} of {self.of:,} pairs"


@dataclass(frozen=True)
class SideTokens:
    """One side of a row group, flat: T tokens of N responses."""

    ids: npt.NDArray[np.int32]
    """[T]"""
    rewards: Scores
    """[T], nats"""
    ref_logps: Scores
    """[T], nats"""
    lengths: Ints
    """[N], each at least 1"""

    @property
    def starts(self) -> Ints:
        """[N], where each response begins."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def positions(self) -> Ints:
        """[T], each token's place in its response, from 0."""
        return np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)

    def sums(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """[N], sums over each response."""
        return np.add.reduceat(values.astype(np.float64), self.starts)


def draw(cache: RewardCache, *, full: bool) -> Sample:
    """All row groups of a small cache or with `full`, else `SAMPLE_ROW_GROUPS` at random, always the same ones."""
    groups = cache.row_groups
    starts = [0, *accumulate(group.rows for group in groups)]
    chosen = np.arange(len(groups))
    if not full and len(groups) > SAMPLE_ROW_GROUPS:
        chosen = np.sort(np.random.default_rng(0).choice(len(groups), SAMPLE_ROW_GROUPS, replace=False))
    drawn = tuple((starts[n], groups[n]) for n in chosen.tolist())
    return Sample(groups=drawn, pairs=sum(group.rows for _, group in drawn), of=len(cache))


def read_sides(cache: RewardCache, sample: Sample) -> Iterator[tuple[int, dict[str, SideTokens]]]:
    """Row group by row group: the number of its first pair, and both sides.

    Raises:
        CacheError: columns of one response differ in length, or hold what no score or token id can be.
    """
    parts = ("ids", "rewards", "ref_logps")
    columns = [f"{side}_{part}" for side in SIDES for part in parts]
    for start, group in sample.groups:
        table = cache.read_row_group(group, columns)
        yield start, {side: side_tokens(table, side, f"{cache.storage}, row group at pair {start}") for side in SIDES}


def side_tokens(table: pa.Table, side: str, where: str) -> SideTokens:
    """One side of `table`. Raises CacheError as `read_sides` does."""
    flat, lengths = {}, []
    for part in ("ids", "rewards", "ref_logps"):
        column = table[f"{side}_{part}"]
        flat[part] = pc.list_flatten(column).to_numpy()
        lengths.append(pc.list_value_length(column).to_numpy())
    ids, scores = flat["ids"], (flat["rewards"], flat["ref_logps"])
    if not all(np.array_equal(lengths[0], each) for each in lengths[1:]) or not lengths[0].all():
        damaged(f"{where}: {side} ids and scores differ in length, or a response is empty")
    if not all(np.isfinite(values).all() for values in scores):
        damaged(f"{where}: a {side} score is not finite")
    if len(ids) and not 0 <= ids.min() <= ids.max() < MAX_TOKEN_ID:
        damaged(f"{where}: a {side} token id is out of range")
    return SideTokens(ids, *scores, lengths[0].astype(np.int64))


def damaged(problem: str) -> NoReturn:
    """Raises the CacheError of a cache that is not what it should be."""
    raise CacheError(problem, fix="run tgdpo verify; restore the cache from a copy or score again")


def reward_range(cache: RewardCache) -> dict[str, tuple[float, float]] | None:
    """Smallest and largest token reward of each side over all pairs, from the shards' footers.

    None where a footer does not say (a shard that another program wrote).
    """
    found: dict[str, tuple[float, float]] = {}
    for side, ranges in _footer_ranges(cache, [f"{side}_rewards.list.element" for side in SIDES]).items():
        known = [each for each in ranges if each is not None]
        if len(known) < len(ranges) or not known:
            return None
        found[side.partition("_")[0]] = min(low for low, _ in known), max(high for _, high in known)
    return found


def row_ranges(cache: RewardCache) -> list[tuple[RowGroup, int, int]]:
    """Each row group with its first and last source_row, from the footers; all rows where a footer does not say."""
    ranges = _footer_ranges(cache, ["source_row"])["source_row"]
    return [(group, *(each or (0, 2**63))) for group, each in zip(cache.row_groups, ranges, strict=True)]


def _footer_ranges(cache: RewardCache, columns: list[str]) -> dict[str, list[tuple[Any, Any] | None]]:
    """Of each column, the range of every row group in the cache's order."""
    with ThreadPoolExecutor(16) as pool:
        shards = list(pool.map(lambda shard: _shard_ranges(cache, shard, columns), range(len(cache.manifest.shards))))
    return {column: [each for shard in shards for each in shard[column]] for column in columns}


def _shard_ranges(cache: RewardCache, shard: int, columns: list[str]) -> dict[str, list[tuple[Any, Any] | None]]:
    count = len(cache.row_groups_of(shard))
    if count == 0:
        return {column: [] for column in columns}
    metadata = cache.read_file(shard, lambda file: file.metadata)
    if metadata.num_row_groups != count:
        damaged(f"{cache.manifest.shards[shard].name} has {metadata.num_row_groups} row groups instead of {count}")
    places = {metadata.schema.column(n).path: n for n in range(len(metadata.schema))}
    return {
        column: [_range(metadata.row_group(group), places.get(column)) for group in range(count)] for column in columns
    }


def _range(group: Any, column: int | None) -> tuple[Any, Any] | None:
    statistics = None if column is None else group.column(column).statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
