"""The pairs that are shown: which, and everything about their tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...data.cache import RewardCache, ScoredPair, Scores, pairs_of
from .modulation import Modulation, Values
from .sample import SIDES, side_tokens
from .statistics import Pairs
from .vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class ShownSide:
    """A response, token by token."""

    texts: list[str] | None
    """None without a tokenizer."""
    ids: npt.NDArray[np.int32]
    ref_logps: Scores
    rewards: Scores


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A pair of the cache with the texts of its tokens."""

    number: int
    pair_id: str
    source_row: int
    prompt: str
    chosen: ShownSide
    rejected: ShownSide

    @property
    def margin(self) -> float:
        """Summed rewards of chosen minus those of rejected."""
        return float(self.chosen.rewards.sum(dtype=np.float64) - self.rejected.rewards.sum(dtype=np.float64))

    def to_json(self, modulation: Modulation, *, is_log_ratio: bool) -> dict[str, Any]:
        """Tokens with both models' log-probabilities, reward and f."""
        content: dict[str, Any] = {
            "number": self.number,
            "pair_id": self.pair_id,
            "source_row": self.source_row,
            "prompt": self.prompt,
            "margin": self.margin,
        }
        for side in SIDES:
            shown: ShownSide = getattr(self, side)
            content[side] = list(_tokens(shown, modulation(shown.rewards, side), is_log_ratio))
        return content


def _tokens(side: ShownSide, f: Values, is_log_ratio: bool) -> Iterator[dict[str, Any]]:
    for n, token in enumerate(side.ids.tolist()):
        ref_logp, reward = float(side.ref_logps[n]), float(side.rewards[n])
        yield {
            "id": token,
            "text": side.texts[n] if side.texts else None,
            "ref_logp": ref_logp,
            "guide_logp": ref_logp + reward if is_log_ratio else None,
            "reward": reward,
            "f": float(f[n]),
        }


def ranked(pairs: Pairs, sort: str) -> npt.NDArray[np.int64]:
    """Numbers of pairs, those to show first at the front: for `accuracy` those that the guide gets most wrong, for
    `margin` those with the largest margin, for `extreme` those with the largest |reward| of a token."""
    keys = {"accuracy": pairs.margin, "margin": -pairs.margin, "extreme": -pairs.extreme}
    return pairs.number[np.argsort(keys[sort], kind="stable")]


def shown_pair(table: pa.Table, number: int, vocabulary: Vocabulary | None) -> ShownPair:
    """One row of the cache. Raises CacheError where its columns do not fit together."""
    for side in SIDES:
        side_tokens(table, side, f"pair {number}")
    pair = pairs_of(table)[0]
    return ShownPair(
        number=number,
        pair_id=pair.pair_id,
        source_row=table["source_row"][0].as_py(),
        prompt=table["prompt"][0].as_py(),
        chosen=_side(pair, "chosen", vocabulary),
        rejected=_side(pair, "rejected", vocabulary),
    )


def _side(pair: ScoredPair, side: str, vocabulary: Vocabulary | None) -> ShownSide:
    ids = getattr(pair.ids, side)
    return ShownSide(
        texts=vocabulary.texts(ids, pair.ids.prompt) if vocabulary else None,
        ids=ids,
        ref_logps=getattr(pair, f"{side}_ref_logps"),
        rewards=getattr(pair, f"{side}_rewards"),
    )


def read_numbered(cache: RewardCache, numbers: Iterable[int]) -> dict[int, pa.Table]:
    """Rows by their number in the cache, each row group read once."""
    wanted = sorted(set(numbers))
    found: dict[int, pa.Table] = {}
    start = at = 0
    for group in cache.row_groups:
        end = start + group.rows
        if at < len(wanted) and wanted[at] < end:
            table = cache.read_row_group(group)
            while at < len(wanted) and wanted[at] < end:
                # A copy: a view would keep its whole row group in memory.
                found[wanted[at]] = table.take([wanted[at] - start])
                at += 1
        start = end
    return found
