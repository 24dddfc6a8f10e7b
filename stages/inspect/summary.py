"""Statistics as tables for the terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...data.cache import RewardCache
from ..console import printable
from .compare import Comparison
from .modulation import Modulation
from .sample import SIDES
from .statistics import QUANTILES, Statistics
from .tokens import token_text
from .vocabulary import Vocabulary

_LISTED = 10


def facts(cache: RewardCache) -> dict[str, Any]:
    """What the cache holds and what it was made from, from its manifest."""
    manifest, counts = cache.manifest, cache.manifest.counts
    return {
        "pairs": counts.scored,
        "rows_read": counts.read,
        "set_aside": counts.set_aside,
        "set_aside_reasons": dict(sorted(manifest.set_aside_reasons.items())),
        "duplicates": counts.duplicates,
        "truncated": counts.truncated,
        "tokens": {
            part: sum(getattr(shard, f"{part}_tokens") for shard in manifest.shards)
            for part in ("prompt", "chosen", "rejected")
        },
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "dataset": manifest.dataset,
        "reference": manifest.reference,
        "guidance": manifest.guidance,
        "added_guides": {guide.name: guide.guidance for guide in manifest.added_guides},
        "reward_kind": manifest.reward_kind,
        "dtype": manifest.fingerprint.get("dtype"),
        "created": manifest.created,
    }


def fact_lines(cache: RewardCache) -> dict[str, str]:
    """`facts` in words: name to text, to be escaped before it is shown."""
    found = facts(cache)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found["set_aside_reasons"].items())
    added = "; ".join(f"{name}: {guide}" for name, guide in found["added_guides"].items())
    return {
        "pairs": f"{found['pairs']:,} of {found['rows_read']:,} rows read",
        "set aside": f"{found['set_aside']:,}" + (f" ({reasons})" if reasons else ""),
        "duplicates": f"{found['duplicates']:,}",
        "truncated": f"{found['truncated']:,}",
        "tokens": ", ".join(f"{part} {count:,}" for part, count in found["tokens"].items()),
        "shards": f"{found['shards']}, {found['bytes'] / 1e6:,.1f} MB",
        "dataset": found["dataset"],
        "reference": found["reference"],
        "guidance": found["guidance"] or "none",
        **({"added guides": added} if added else {}),
        "rewards": found["reward_kind"],
        "dtype": str(found["dtype"]),
        "made": found["created"],
    }


def overview(cache: RewardCache) -> Table:
    """`fact_lines` as a table."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fact_lines(cache).items():
        table.add_row(name, Text(printable(value)))
    return table


def report(statistics: Statistics, modulation: Modulation, vocabulary: Vocabulary | None) -> Group:
    """Everything about the rewards."""
    if statistics.reward_kind == "none":
        logps = ", ".join(f"{side} {statistics.ref_logps[side]:.4f}" for side in SIDES)
        return Group(
            f"{statistics.sample}",
            f"mean log-probability of a token under the reference: {logps}",
            "scored without guidance: there are no rewards to show",
        )
    parts: list[RenderableType] = [
        Text(f"statistics from {statistics.sample}" + ("" if statistics.sample.is_whole else "; --full reads all")),
        Text(),
        guide_lines(statistics),
        Text(),
        _reward_table(statistics),
        Text(),
        _position_table(statistics),
        Text(),
        _f_table(statistics, modulation),
    ]
    if vocabulary:
        parts += [Text(), _vocabulary_table(statistics, vocabulary)]
    return Group(*parts)


def comparison_report(comparison: Comparison, names: tuple[str, str], vocabulary: Vocabulary | None) -> Group:
    """Two guides on the same pairs."""
    ours, theirs = comparison.ours, comparison.theirs
    table = _table("", "this cache", "the other")
    table.add_row("accuracy", f"{ours.share:.1%}", f"{theirs.share:.1%}")
    table.add_row("standard deviation of token rewards", f"{comparison.ours_std:.4f}", f"{comparison.theirs_std:.4f}")
    parts: list[RenderableType] = [
        Text("\n".join(comparison_lines(comparison, names))),
        Text(),
        table,
        Text(),
        _pair_differences(comparison),
    ]
    if vocabulary:
        parts += [Text(), _token_differences(comparison, vocabulary)]
    return Group(*parts)


def comparison_lines(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    """Agreement and correlation in words."""
    unmatched = f", {comparison.unmatched:,} of this cache's are not in the other" if comparison.unmatched else ""
    correlations = {"margins": comparison.margin_correlation, "token rewards": comparison.token_correlation}
    known = [f"{name} {value:+.3f}" for name, value in correlations.items() if value is not None]
    return [
        f"compared with {printable(names[1])}: {comparison.pairs:,} pairs{unmatched}",
        f"both guides prefer the same response in {comparison.agreement:.1%} of the pairs",
        f"correlation of {', of '.join(known)}" if known else "correlations are not defined",
        f"mean difference of a token's rewards: {comparison.difference:.4f} nats",
    ]


def _pair_differences(comparison: Comparison) -> Table:
    table = _table("pairs whose margins differ most", "this cache", "the other")
    for pair in comparison.most_differing:
        table.add_row(f"pair {pair.number}", f"{pair.ours:+.3f}", f"{pair.theirs:+.3f}")
    return table


def _token_differences(comparison: Comparison, vocabulary: Vocabulary) -> Table:
    table = _table("tokens whose mean rewards differ most", "this cache", "the other", "times")
    for token in comparison.tokens[:_LISTED]:
        text = token_text(vocabulary.text(token.id)).replace("\n", "")[:20]
        table.add_row(Text(f"'{text}'"), f"{token.ours:+.3f}", f"{token.theirs:+.3f}", f"{token.count:,}")
    return table


def guide_lines(statistics: Statistics) -> Text:
    """How good the guide is, in words."""
    accuracy, margin = statistics.accuracy, statistics.margin
    lines = [
        f"accuracy of the guide: {accuracy.share:.1%} (standard error {accuracy.standard_error:.1%}) of the pairs, "
        "whose summed rewards prefer chosen",
        f"margin of a pair: mean {margin.mean:+.3f}, median {margin.quantiles['0.5']:+.3f}, "
        f"standard deviation {margin.std:.3f}",
    ]
    if statistics.length_correlation is not None:
        lines.append(f"correlation of margin with chosen being longer: {statistics.length_correlation:+.2f}")
    return Text("\n".join(lines))


def _table(title: str, *columns: str) -> Table:
    # The title is the first column's heading: as a title of its own it would break at the table's width.
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _reward_table(statistics: Statistics) -> Table:
    table = _table("token rewards, nats", *SIDES)
    both = [getattr(statistics, side) for side in SIDES]
    table.add_row("tokens", *(f"{side.count:,}" for side in both))
    table.add_row("mean", *(f"{side.mean:.4f}" for side in both))
    table.add_row("standard deviation", *(f"{side.std:.4f}" for side in both))
    table.add_row("minimum", *(f"{side.minimum:.4f}" for side in both))
    for quantile in QUANTILES:
        table.add_row(f"{quantile:.0%} quantile", *(f"{side.quantiles[str(quantile)]:.4f}" for side in both))
    table.add_row("maximum", *(f"{side.maximum:.4f}" for side in both))
    table.add_row("above 0", *(f"{side.positive:.1%}" for side in both))
    return table


def _position_table(statistics: Statistics) -> Table:
    table = _table("mean reward by position in the response", *SIDES, "tokens")
    for each in statistics.positions:
        name = f"{each.start}" if each.end == each.start + 1 else f"{each.start} to {each.end - 1}"
        means = ("" if mean is None else f"{mean:.4f}" for mean in (each.chosen, each.rejected))
        table.add_row(name, *means, f"{each.tokens:,}")
    table.add_row("last token", f"{statistics.chosen.last:.4f}", f"{statistics.rejected.last:.4f}", "")
    return table


def _f_table(statistics: Statistics, modulation: Modulation) -> Table:
    clip = "" if modulation.clip is None else f", clip {modulation.clip:g}"
    title = f"f of tokens at alpha {modulation.alpha:g}, beta_r {modulation.beta_r:g}, {modulation.shape}{clip}"
    spreads = statistics.f(modulation)
    table = _table(title, *spreads)
    table.add_row("mean", *(f"{f.mean:.4f}" for f in spreads.values()))
    for quantile in QUANTILES:
        table.add_row(f"{quantile:.0%} quantile", *(f"{f.quantiles[str(quantile)]:.4f}" for f in spreads.values()))
    table.add_row("below 0", *(f"{f.negative:.2%}" for f in spreads.values()))
    return table


def _vocabulary_table(statistics: Statistics, vocabulary: Vocabulary) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("most liked tokens", "mean reward", "times", "  most disliked", "mean reward", "times"):
        table.add_column(heading, justify="left" if "most" in heading else "right", no_wrap=True)
    liked = statistics.vocabulary[:_LISTED]
    disliked = statistics.vocabulary[::-1][:_LISTED]
    for both in zip(liked, disliked, strict=True):
        cells: list[Text] = []
        for token, margin in zip(both, ("", "  "), strict=True):
            text = token_text(vocabulary.text(token.id)).replace("\n", "")[:20]
            cells += [Text(f"{margin}'{text}'"), Text(f"{token.mean:+.3f}"), Text(f"{token.count:,}")]
        table.add_row(*cells)
    return table
