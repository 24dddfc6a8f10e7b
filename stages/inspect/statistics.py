"""Statistics of a reward cache, gathered row group by row group."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.cache import RewardCache, Scores
from .modulation import Modulation
from .sample import SIDES, Sample, SideTokens, read_sides, reward_range

Floats = npt.NDArray[np.float64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
KEPT_TOKENS = 1_000_000
"""Quantiles come from at most about this many tokens of a side, every n-th; sums and counts from every token read."""
FEW = 20
"""A mean of fewer tokens is not drawn."""
RARE = 5
"""Tokens of the vocabulary that were met less often say nothing about themselves."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of tokens or pairs."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    quantiles: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SideRewards(Spread):
    """Token rewards of one side, in nats per unit of beta."""

    positive: float
    """Share of the tokens above 0."""
    last: float
    """Mean of the responses' last tokens, mostly the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class FSpread:
    """f of tokens."""

    mean: float
    quantiles: dict[str, float]
    negative: float
    """Share of the tokens below 0: there the loss pushes the wrong way."""


@dataclass(frozen=True)
class Position:
    """Mean rewards of the tokens number `start` to `end` - 1 of their responses."""

    start: int
    end: int
    chosen: float | None
    rejected: float | None
    tokens: int


@dataclass(frozen=True)
class PositionMean:
    """Mean reward of one side's tokens number `start` to `end` - 1, in ranges fine enough to draw."""

    side: str
    start: int
    end: int
    mean: float
    standard_error: float


@dataclass(frozen=True)
class VocabularyToken:
    """A token of the vocabulary: how often it was met, and its mean reward."""

    id: int
    count: int
    mean: float


@dataclass(frozen=True)
class Accuracy:
    """Share of the pairs where the summed rewards of chosen exceed those of rejected."""

    share: float
    standard_error: float
    pairs: int

    @classmethod
    def of(cls, margins: Floats) -> "Accuracy":
        """From the pairs' margins."""
        share = float((margins > 0).mean())
        return cls(share, (share * (1 - share) / len(margins)) ** 0.5, len(margins))


@dataclass(frozen=True)
class Pairs:
    """What is kept of every pair that was read; one entry a pair."""

    number: npt.NDArray[np.int64]
    margin: Floats
    """Summed rewards of chosen minus those of rejected."""
    chosen_length: npt.NDArray[np.int64]
    rejected_length: npt.NDArray[np.int64]
    extreme: Floats
    """Largest |reward| of a token."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What was found."""

    sample: Sample
    reward_kind: str
    chosen: SideRewards
    rejected: SideRewards
    accuracy: Accuracy
    margin: Spread
    length_correlation: float | None
    """Correlation of a pair's margin with its difference in length; None where one of the two never changes."""
    positions: tuple[Position, ...]
    position_means: tuple[PositionMean, ...]
    vocabulary: tuple[VocabularyToken, ...]
    """Tokens met at least `RARE` times, those that the guide likes best first."""
    ref_logps: dict[str, float]
    """Mean log pi_ref of a token by side."""
    pairs: Pairs
    kept: dict[str, Scores]
    """Token rewards by side that quantiles are taken from, sorted."""

    def f(self, modulation: Modulation) -> dict[str, FSpread]:
        """f of chosen, of rejected, and of all tokens."""
        sides = {side: modulation(self.kept[side], side) for side in SIDES}
        return {side: _f_spread(values) for side, values in sides.items()} | {
            "all": _f_spread(np.concatenate(list(sides.values())))
        }

    def f_to_json(self, modulation: Modulation) -> dict[str, Any] | None:
        """f and what it was computed with; None where the cache holds no rewards."""
        if self.reward_kind == "none":
            return None
        return asdict(modulation) | {side: asdict(spread) for side, spread in self.f(modulation).items()}

    def to_json(self) -> dict[str, Any]:
        """Everything but what is kept of single pairs and tokens."""
        sample = {"pairs": self.sample.pairs, "of": self.sample.of, "row_groups": len(self.sample.groups)}
        if self.reward_kind == "none":
            return {"sample": sample, "ref_logps": self.ref_logps}
        return {
            "sample": sample,
            "accuracy": asdict(self.accuracy),
            "rewards": {side: asdict(getattr(self, side)) for side in SIDES},
            "margins": asdict(self.margin),
            "length_correlation": self.length_correlation,
            "ref_logps": self.ref_logps,
            "positions": [asdict(position) for position in self.positions],
        }


def gather(cache: RewardCache, sample: Sample) -> Statistics | None:
    """Statistics of the sample; None without pairs.

    Raises:
        CacheError: a row group is damaged.
    """
    if sample.pairs == 0:
        return None
    sides = {side: _Side(_stride(cache, sample, side)) for side in SIDES}
    pairs: list[Pairs] = []
    for start, tokens in read_sides(cache, sample):
        for side in SIDES:
            sides[side].add(tokens[side])
        pairs.append(_pairs(start, tokens["chosen"], tokens["rejected"]))
    together = Pairs(*(np.concatenate([getattr(each, name) for each in pairs]) for name in Pairs.__dataclass_fields__))
    extremes = reward_range(cache) or {}
    kept = {side: np.sort(np.concatenate(sides[side].kept)) for side in SIDES}
    return Statistics(
        sample=sample,
        reward_kind=cache.manifest.reward_kind,
        chosen=sides["chosen"].rewards(kept["chosen"], extremes.get("chosen")),
        rejected=sides["rejected"].rewards(kept["rejected"], extremes.get("rejected")),
        accuracy=Accuracy.of(together.margin),
        margin=spread(together.margin),
        length_correlation=correlation(together.margin, together.chosen_length - together.rejected_length),
        positions=_positions(sides["chosen"], sides["rejected"]),
        position_means=tuple(mean for name, side in sides.items() for mean in side.position_means(name)),
        vocabulary=_vocabulary(sides["chosen"], sides["rejected"]),
        ref_logps={side: sides[side].ref_logps / sides[side].count for side in SIDES},
        pairs=together,
        kept=kept,
    )


def spread(values: npt.NDArray[np.floating[Any]]) -> Spread:
    """Mean, deviation, extremes and quantiles."""
    return Spread(
        count=len(values),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        minimum=float(values.min()),
        maximum=float(values.max()),
        quantiles=quantiles(values),
    )


def quantiles(values: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
    """`QUANTILES` by their names, "0.01" to "0.99"."""
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float | None:
    """Pearson's; None where it is not defined."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


class Growing:
    """Sums by a number such as a position or a token id, as far as these go."""

    def __init__(self) -> None:
        self.values = np.zeros(0)

    def add(self, keys: npt.NDArray[np.integer[Any]], weights: npt.NDArray[Any] | None = None) -> None:
        """Adds each weight, or 1, at its key."""
        sums = np.bincount(keys, weights)
        if len(sums) > len(self.values):
            self.values = np.concatenate([self.values, np.zeros(len(sums) - len(self.values))])
        self.values[: len(sums)] += sums


class _Side:
    """Sums over the tokens of one side."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self.count = self.positive = self.responses = 0
        self.total = self.squares = self.ref_logps = self.last = 0.0
        self.by_position, self.at_position, self.squares_by_position = Growing(), Growing(), Growing()
        self.by_id, self.with_id = Growing(), Growing()
        self.kept: list[Scores] = []

    def add(self, tokens: SideTokens) -> None:
        rewards = tokens.rewards.astype(np.float64)
        self.count += len(rewards)
        self.positive += int((rewards > 0).sum())
        self.total += rewards.sum()
        self.squares += (rewards**2).sum()
        self.ref_logps += tokens.ref_logps.sum(dtype=np.float64)
        self.responses += len(tokens.lengths)
        self.last += rewards[tokens.starts + tokens.lengths - 1].sum()
        positions = tokens.positions
        self.by_position.add(positions, rewards)
        self.squares_by_position.add(positions, rewards**2)
        self.at_position.add(positions)
        self.by_id.add(tokens.ids, rewards)
        self.with_id.add(tokens.ids)
        self.kept.append(tokens.rewards[:: self._stride])

    def rewards(self, kept: Scores, extremes: tuple[float, float] | None) -> SideRewards:
        mean = self.total / self.count
        return SideRewards(
            count=self.count,
            mean=mean,
            std=max(0.0, self.squares / self.count - mean**2) ** 0.5,
            minimum=extremes[0] if extremes else float(kept[0]),
            maximum=extremes[1] if extremes else float(kept[-1]),
            quantiles=quantiles(kept),
            positive=self.positive / self.count,
            last=self.last / self.responses,
        )

    def position_means(self, name: str) -> Iterator[PositionMean]:
        """Ranges that grow by a fifth; those with few tokens are left out."""
        start, longest = 0, len(self.at_position.values)
        while start < longest:
            end = max(start + 1, round(start * 1.2))
            here = slice(start, end)
            count = self.at_position.values[here].sum()
            if count >= FEW:
                mean = self.by_position.values[here].sum() / count
                variance = max(0.0, self.squares_by_position.values[here].sum() / count - mean**2)
                yield PositionMean(name, start, end, float(mean), float((variance / count) ** 0.5))
            start = end


def _stride(cache: RewardCache, sample: Sample, side: str) -> int:
    tokens = sum(getattr(shard, f"{side}_tokens") for shard in cache.manifest.shards)
    return max(1, int(tokens * sample.pairs / sample.of) // KEPT_TOKENS)


def _pairs(start: int, chosen: SideTokens, rejected: SideTokens) -> Pairs:
    extremes = [np.maximum.reduceat(np.abs(side.rewards), side.starts) for side in (chosen, rejected)]
    return Pairs(
        number=np.arange(start, start + len(chosen.lengths)),
        margin=chosen.sums(chosen.rewards) - rejected.sums(rejected.rewards),
        chosen_length=chosen.lengths,
        rejected_length=rejected.lengths,
        extreme=np.maximum(*extremes).astype(np.float64),
    )


def _positions(chosen: _Side, rejected: _Side) -> tuple[Position, ...]:
    """Ranges that double: 0, 1, 2 to 3, 4 to 7 …"""
    longest = max(len(chosen.at_position.values), len(rejected.at_position.values))
    found, start, end = [], 0, 1
    while start < longest:
        count: Callable[[_Side], int] = lambda side: int(side.at_position.values[start:end].sum())  # noqa: B023, E731
        means = [
            float(side.by_position.values[start:end].sum() / count(side)) if count(side) else None
            for side in (chosen, rejected)
        ]
        found.append(Position(start, end, means[0], means[1], count(chosen) + count(rejected)))
        start, end = end, 2 * end
    return tuple(found)


def _vocabulary(chosen: _Side, rejected: _Side) -> tuple[VocabularyToken, ...]:
    counts, sums = Growing(), Growing()
    for side in (chosen, rejected):
        ids = np.arange(len(side.with_id.values))
        counts.add(ids, side.with_id.values)
        sums.add(ids, side.by_id.values)
    met = np.flatnonzero(counts.values >= RARE)
    means = sums.values[met] / counts.values[met]
    return tuple(VocabularyToken(int(met[n]), int(counts.values[met[n]]), float(means[n])) for n in np.argsort(-means))


def _f_spread(f: Floats) -> FSpread:
    return FSpread(mean=float(f.mean()), quantiles=quantiles(f), negative=float((f < 0).mean()))
