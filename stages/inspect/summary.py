"""Statistics of a reward cache, read row group by row group."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from ...data.cache import RewardCache, Scores
from ..console import printable

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
SAMPLE_TOKENS = 2_000_000
"""Quantiles come from about this many tokens, taken evenly over the cache; all other statistics from every row."""


@dataclass(frozen=True, kw_only=True)
class SideStatistics:
    """Token rewards of one side, in nats (times beta_r they are the paper's r)."""

    tokens: int
    mean: float
    std: float
    minimum: float
    maximum: float
    positive: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a cache holds."""

    chosen: SideStatistics
    rejected: SideStatistics
    accuracy: float
    """Share of the pairs where the summed rewards of chosen exceed those of rejected: how good the guide is."""
    sampled: bool
    """Whether quantiles come from a sample."""


class _Accumulator:
    def __init__(self) -> None:
        self.count = self.positive = 0
        self.total = self.squares = 0.0
        self.minimum, self.maximum = np.inf, -np.inf
        self.sample: list[Scores] = []

    def add(self, rewards: Scores, stride: int) -> None:
        if not len(rewards):
            return
        exact = rewards.astype(np.float64)
        self.count += len(exact)
        self.positive += int((exact > 0).sum())
        self.total += exact.sum()
        self.squares += (exact**2).sum()
        self.minimum = min(self.minimum, exact.min())
        self.maximum = max(self.maximum, exact.max())
        self.sample.append(rewards[::stride])

    def statistics(self) -> SideStatistics:
        mean = self.total / self.count
        return SideStatistics(
            tokens=self.count,
            mean=mean,
            std=max(0.0, self.squares / self.count - mean**2) ** 0.5,
            minimum=self.minimum,
            maximum=self.maximum,
            positive=self.positive / self.count,
            quantiles=tuple(np.quantile(np.concatenate(self.sample), QUANTILES).tolist()),
        )


def summarize(cache: RewardCache) -> Summary | None:
    """Statistics over all rows; None for a cache without rows."""
    if len(cache) == 0:
        return None
    tokens = sum(shard.chosen_tokens + shard.rejected_tokens for shard in cache.manifest.shards)
    stride = max(1, tokens // SAMPLE_TOKENS)
    sides = {"chosen": _Accumulator(), "rejected": _Accumulator()}
    preferred = 0
    for group in cache.row_groups:
        table = cache.read_row_group(group, [f"{side}_rewards" for side in sides])
        sums = []
        for side, accumulator in sides.items():
            column = table[f"{side}_rewards"]
            flat = pc.list_flatten(column).to_numpy()
            accumulator.add(flat, stride)
            parents = pc.list_parent_indices(column).to_numpy()
            sums.append(np.bincount(parents, weights=flat, minlength=len(table)))
        preferred += int((sums[0] > sums[1]).sum())
    return Summary(
        chosen=sides["chosen"].statistics(),
        rejected=sides["rejected"].statistics(),
        accuracy=preferred / len(cache),
        sampled=stride > 1,
    )


def overview(cache: RewardCache) -> Table:
    """What the cache holds and what it was made from, as a table for the terminal."""
    manifest, counts = cache.manifest, cache.manifest.counts
    table = Table.grid(padding=(0, 2))
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.set_aside_reasons.items()))
    sums = {
        part: sum(getattr(shard, f"{part}_tokens") for shard in manifest.shards)
        for part in ("prompt", "chosen", "rejected")
    }
    rows = {
        "pairs": f"{counts.scored:,} of {counts.read:,} rows read",
        "set aside": f"{counts.set_aside:,}" + (f" ({reasons})" if reasons else ""),
        "duplicates": f"{counts.duplicates:,}",
        "truncated": f"{counts.truncated:,}",
        "tokens": ", ".join(f"{part} {count:,}" for part, count in sums.items()),
        "shards": f"{len(manifest.shards)}, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB",
        "dataset": manifest.dataset,
        "reference": manifest.reference,
        "guidance": manifest.guidance or "none",
        "rewards": manifest.reward_kind,
        "dtype": str(manifest.fingerprint.get("dtype")),
        "made": manifest.created,
    }
    for name, value in rows.items():
        table.add_row(name, Text(printable(value)))
    return table


def reward_table(summary: Summary) -> Table:
    """Reward statistics of both sides as a table for the terminal."""
    title = "token rewards (nats)" + (", quantiles from a sample" if summary.sampled else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for side in ("chosen", "rejected"):
        table.add_column(side, justify="right")
    both = summary.chosen, summary.rejected
    table.add_row("tokens", *(f"{side.tokens:,}" for side in both))
    table.add_row("mean", *(f"{side.mean:.4f}" for side in both))
    table.add_row("standard deviation", *(f"{side.std:.4f}" for side in both))
    table.add_row("minimum", *(f"{side.minimum:.4f}" for side in both))
    for i, quantile in enumerate(QUANTILES):
        table.add_row(f"{quantile:.0%} quantile", *(f"{side.quantiles[i]:.4f}" for side in both))
    table.add_row("maximum", *(f"{side.maximum:.4f}" for side in both))
    table.add_row("above 0", *(f"{side.positive:.1%}" for side in both))
    return table
