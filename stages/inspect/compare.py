"""Two caches of the same pairs, scored with two guides: where do these agree?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...data.cache import RewardCache, RowGroup
from ...errors import CacheError, UsageError
from .sample import SIDES, Sample, SideTokens, damaged, row_ranges, side_tokens
from .statistics import RARE, Accuracy, Floats, Growing, correlation

LISTED = 10


@dataclass(frozen=True)
class TokenDifference:
    """A token of the vocabulary and its mean reward from either guide."""

    id: int
    count: int
    ours: float
    theirs: float


@dataclass(frozen=True)
class PairDifference:
    """A pair and its margin from either guide."""

    number: int
    ours: float
    theirs: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two guides say of the same pairs; `ours` is CACHE, `theirs` the other."""

    pairs: int
    unmatched: int
    """Pairs that were read and that the other cache has not."""
    agreement: float
    """Share of the pairs of which both prefer the same response."""
    ours: Accuracy
    theirs: Accuracy
    margin_correlation: float | None
    token_correlation: float | None
    ours_std: float
    theirs_std: float
    difference: float
    """Mean |difference| of a token's rewards, nats."""
    tokens: tuple[TokenDifference, ...]
    """Those that are met at least `RARE` times, the most differing first (in standard deviations of either guide)."""
    most_differing: tuple[PairDifference, ...]
    margins: tuple[Floats, Floats]

    def to_json(self) -> dict[str, Any]:
        """Everything but the single margins."""
        content = {name: value for name, value in vars(self).items() if name not in ("margins", "tokens")}
        for name in ("ours", "theirs"):
            content[name] = asdict(content[name])
        content["most_differing"] = [asdict(pair) for pair in self.most_differing]
        return content | {"tokens": [asdict(token) for token in self.tokens[:LISTED]]}


def compare(cache: RewardCache, other: RewardCache, sample: Sample) -> Comparison:
    """Compares the pairs of the sample that both caches hold.

    Raises:
        CacheError: there is no such pair, or a row group is damaged.
        UsageError: a cache holds no rewards.
    """
    for each in (cache, other):
        if each.manifest.reward_kind == "none":
            raise UsageError(
                f"--compare: {each.storage} was scored without guidance", fix="name two caches with token rewards"
            )
    sums = _Sums()
    for matched in _matched(cache, other, sample):
        sums.add(*matched)
    if not sums.numbers:
        raise CacheError(
            f"{cache.storage} and {other.storage} have no pair in common (in {sample})",
            fix="compare caches of one dataset with the same tokenizer and lengths",
        )
    return sums.comparison(sample)


def _matched(
    cache: RewardCache, other: RewardCache, sample: Sample
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, tuple[SideTokens, SideTokens]]]]:
    """By row group: numbers of the pairs that both have, and both caches' tokens of them, in the same order."""
    columns = ["pair_id", "source_row", *(f"{s}_{part}" for s in SIDES for part in ("ids", "rewards", "ref_logps"))]
    theirs = _Rows(other, columns)
    for start, group in sample.groups:
        table = cache.read_row_group(group, columns)
        found = theirs.of(table["source_row"])
        places = {name: n for n, name in enumerate(found["pair_id"].to_pylist())}
        names = table["pair_id"].to_pylist()
        mine = [n for n, name in enumerate(names) if name in places]
        if not mine:
            continue
        tables = table.take(mine), found.take([places[names[n]] for n in mine])
        where = f"{cache.storage} and {other.storage}, at pair {start}"
        sides = {side: _both(tables, side, where) for side in SIDES}
        yield start + np.array(mine, np.int64), sides


def _both(tables: tuple[pa.Table, pa.Table], side: str, where: str) -> tuple[SideTokens, SideTokens]:
    ours, theirs = (side_tokens(table, side, where) for table in tables)
    if not np.array_equal(ours.ids, theirs.ids):
        damaged(f"{where}: pairs of one name have other {side} ids")
    return ours, theirs


class _Rows:
    """Rows of a cache by their source_row; row groups keep the source's order, so few are read."""

    def __init__(self, cache: RewardCache, columns: list[str]) -> None:
        self._cache = cache
        self._columns = columns
        self._ranges = row_ranges(cache)
        self._read: dict[RowGroup, pa.Table] = {}

    def of(self, source_rows: pa.ChunkedArray) -> pa.Table:
        """All rows of the row groups that may hold any of these."""
        low, high = (value.as_py() for value in pc.min_max(source_rows).values())
        groups = [group for group, first, last in self._ranges if first <= high and low <= last]
        self._read = {
            group: self._read[group] if group in self._read else self._cache.read_row_group(group, self._columns)
            for group in groups
        }
        return pa.concat_tables(self._read.values()) if groups else pa.table({"pair_id": pa.array([], pa.string())})


class _Sums:
    def __init__(self) -> None:
        self.numbers: list[npt.NDArray[np.int64]] = []
        self._margins: list[tuple[Floats, Floats]] = []
        self._moments = np.zeros((2, 2))
        self._totals = np.zeros(2)
        self._difference = 0.0
        self._count = 0
        self._by_id = Growing(), Growing()
        self._with_id = Growing()

    def add(self, numbers: npt.NDArray[np.int64], sides: dict[str, tuple[SideTokens, SideTokens]]) -> None:
        self.numbers.append(numbers)
        margins = [sides["chosen"][n].sums(sides["chosen"][n].rewards) for n in (0, 1)]
        for n in (0, 1):
            margins[n] = margins[n] - sides["rejected"][n].sums(sides["rejected"][n].rewards)
        self._margins.append((margins[0], margins[1]))
        for ours, theirs in sides.values():
            rewards = np.stack([ours.rewards, theirs.rewards]).astype(np.float64)
            self._moments += rewards @ rewards.T
            self._totals += rewards.sum(axis=1)
            self._difference += np.abs(rewards[0] - rewards[1]).sum()
            self._count += rewards.shape[1]
            self._with_id.add(ours.ids)
            for sums, values in zip(self._by_id, rewards, strict=True):
                sums.add(ours.ids, values)

    def comparison(self, sample: Sample) -> Comparison:
        numbers = np.concatenate(self.numbers)
        ours, theirs = (np.concatenate([margins[n] for margins in self._margins]) for n in (0, 1))
        covariance = self._moments / self._count - np.outer(self._totals, self._totals) / self._count**2
        deviations = np.sqrt(np.maximum(0, np.diag(covariance)))
        most = _most_apart(ours, theirs, (ours.std(), theirs.std()))[:LISTED]
        return Comparison(
            pairs=len(numbers),
            unmatched=sample.pairs - len(numbers),
            agreement=float(((ours > 0) == (theirs > 0)).mean()),
            ours=Accuracy.of(ours),
            theirs=Accuracy.of(theirs),
            margin_correlation=correlation(ours, theirs),
            token_correlation=float(covariance[0, 1] / deviations.prod()) if deviations.all() else None,
            ours_std=float(deviations[0]),
            theirs_std=float(deviations[1]),
            difference=self._difference / self._count,
            tokens=self._tokens(deviations),
            most_differing=tuple(PairDifference(int(numbers[n]), float(ours[n]), float(theirs[n])) for n in most),
            margins=(ours, theirs),
        )

    def _tokens(self, deviations: Floats) -> tuple[TokenDifference, ...]:
        counts = self._with_id.values
        met = np.flatnonzero(counts >= RARE)
        ours, theirs = (sums.values[met] / counts[met] for sums in self._by_id)
        order = _most_apart(ours, theirs, deviations)
        return tuple(TokenDifference(int(met[n]), int(counts[met[n]]), float(ours[n]), float(theirs[n])) for n in order)


def _most_apart(ours: Floats, theirs: Floats, deviations: Sequence[float] | Floats) -> npt.NDArray[np.intp]:
    """Indices, the most differing first. One guide may give larger rewards throughout, so each is taken in standard
    deviations of its own."""
    ours, theirs = (values / (scale or 1) for values, scale in zip((ours, theirs), deviations, strict=True))
    return np.argsort(-np.abs(ours - theirs), kind="stable")
