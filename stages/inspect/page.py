"""`tgdpo inspect --html`: statistics as figures and a browser of pairs, in one file."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ...data.cache import RewardCache
from ..console import printable
from ..page.document import packed_with, write_page
from .charts import comparison_figures, figures
from .compare import Comparison
from .config import InspectConfig
from .modulation import Modulation
from .pairs import ShownPair, ShownSide, ranked, read_numbered, shown_pair
from .sample import SIDES
from .statistics import Statistics
from .summary import comparison_lines, fact_lines
from .tokens import token_text
from .vocabulary import Vocabulary

PAIR_BYTES = 3_000_000
"""Of the page, for its pairs; charts' script and figures take another 1.2 MB."""
MOST_PAIRS = 1000
GRID = 2000
"""Quantiles of the rewards that f at another alpha is computed from."""
_PROMPT = 4000
_ORDERS = ("accuracy", "margin", "extreme")


def write_cache_page(
    path: Path,
    cache: RewardCache,
    config: InspectConfig,
    statistics: Statistics,
    vocabulary: Vocabulary | None,
    comparison: Comparison | None = None,
) -> int:
    """Writes the page.

    Returns:
        The number of pairs in it.
    """
    limit = MOST_PAIRS if config.limit is None else config.limit
    numbers = list(islice(_candidates(cache, statistics, config), limit))
    rows = read_numbered(cache, (number for number, _ in numbers))
    pairs = (_pair_json(shown_pair(rows[number], number, vocabulary), why) for number, why in numbers)
    content = _content(cache, config, statistics, vocabulary, comparison)
    payload, count = packed_with(content, "pairs", pairs, limit=PAIR_BYTES)
    write_page(path, __package__ or "", title=f"Rewards of {printable(str(cache.storage))}", payload=payload)
    return count


def _candidates(cache: RewardCache, statistics: Statistics, config: InspectConfig) -> Iterator[tuple[int, str]]:
    """Numbers of pairs and why they are shown: those that are named, else in the order asked for, else random ones and
    both ends, in turn."""
    pairs = statistics.pairs
    if config.pair:
        yield from dict.fromkeys((cache.find_numbered(pair)[0], "named") for pair in config.pair)
        return
    if config.sort:
        yield from ((number, config.sort) for number in ranked(pairs, config.sort).tolist())
        return
    random = np.random.default_rng(0).permutation(pairs.number).tolist()
    if len(random) <= MOST_PAIRS and statistics.sample.is_whole:
        yield from ((number, "all") for number in sorted(random))
        return
    orders = {"random": random} | {order: ranked(pairs, order)[:MOST_PAIRS].tolist() for order in _ORDERS}
    # Half of them at random.
    named = [[(number, order) for number in numbers] for order, numbers in orders.items()]
    turns = zip_longest(named[0][0::3], named[1], named[0][1::3], named[2], named[0][2::3], named[3])
    seen: set[int] = set()
    for number, order in filter(None, chain.from_iterable(turns)):
        if number not in seen:
            seen.add(number)
            yield number, order


def _content(
    cache: RewardCache,
    config: InspectConfig,
    statistics: Statistics,
    vocabulary: Vocabulary | None,
    comparison: Comparison | None,
) -> dict[str, Any]:
    has_rewards = statistics.reward_kind != "none"
    drawn = figures(statistics, vocabulary) if has_rewards else []
    if comparison:
        drawn += comparison_figures(comparison, vocabulary)
    return {
        "facts": {name: printable(value) for name, value in fact_lines(cache).items()},
        "sample": str(statistics.sample),
        "of": len(cache),
        "statistics": statistics.to_json(),
        "reward_kind": statistics.reward_kind,
        "figures": drawn,
        "comparison": _comparison_json(comparison, config),
        "f": asdict(Modulation.of(config)),
        "grid": {side: _grid(statistics, side) for side in SIDES},
    }


def _comparison_json(comparison: Comparison | None, config: InspectConfig) -> dict[str, Any] | None:
    if comparison is None:
        return None
    lines = comparison_lines(comparison, ("", config.compare or ""))
    return comparison.to_json() | {"text": "; ".join(lines) + "."}


def _grid(statistics: Statistics, side: str) -> list[float]:
    kept = statistics.kept[side]
    places = (np.arange(GRID) + 0.5) / GRID * len(kept)
    return [round(value, 4) for value in kept[places.astype(np.int64)].tolist()]


def _pair_json(pair: ShownPair, why: str) -> dict[str, Any]:
    cut = max(0, len(pair.prompt) - _PROMPT)
    return {
        "n": pair.number,
        "id": printable(pair.pair_id),
        "row": pair.source_row,
        "why": why,
        "cut": cut,
        "prompt": printable(pair.prompt[cut:]),
        "chosen": _side_json(pair.chosen),
        "rejected": _side_json(pair.rejected),
    }


def _side_json(side: ShownSide) -> dict[str, Any]:
    """Texts, ids, reference log-probabilities and rewards in thousandths of a nat, and the rewards' exact sum."""
    texts = side.texts or [f"<{token}>" for token in side.ids.tolist()]
    return {
        "t": [token_text(text) for text in texts],
        "i": side.ids.tolist(),
        "l": np.rint(side.ref_logps.astype(np.float64) * 1000).astype(np.int64).tolist(),
        "r": np.rint(side.rewards.astype(np.float64) * 1000).astype(np.int64).tolist(),
        "sum": round(float(side.rewards.sum(dtype=np.float64)), 5),
    }
