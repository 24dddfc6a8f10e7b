"""Two opposed guides of a cache, for objectives that weigh tokens by how differently they see them (TIS-DPO)."""

from typing import NamedTuple

import numpy as np

from ...data.cache import RewardCache, ScoredPair, Scores
from ...data.schema import rewards_columns
from ...errors import CacheError
from .config import TrainConfig
from .losses import LOSSES

GUIDANCE = "guidance"
"""Names the cache's guidance itself; other names are those of added guides."""


class Columns(NamedTuple):
    """Reward columns of a guide."""

    chosen: str
    rejected: str


class Contrast:
    """Reads log pi_positive - log pi_negative from a cache.

    Args:
        cache: holds the rewards of both.
        positive, negative: their names.

    Raises:
        CacheError: the cache has no such guide, or it gives no log-probabilities.
    """

    def __init__(self, cache: RewardCache, positive: str, negative: str) -> None:
        self._positive = _columns(cache, "--positive-guide", positive)
        self._negative = _columns(cache, "--negative-guide", negative)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (*self._positive, *self._negative)

    def chosen(self, pair: ScoredPair) -> Scores:
        """Of the chosen response's tokens, float32, in nats."""
        return self._difference(pair, self._positive.chosen, self._negative.chosen)

    def rejected(self, pair: ScoredPair) -> Scores:
        """Of the rejected response's tokens, float32, in nats."""
        return self._difference(pair, self._positive.rejected, self._negative.rejected)

    def _difference(self, pair: ScoredPair, positive: str, negative: str) -> Scores:
        # Both are relative to the reference, whose share goes out.
        difference: Scores = np.asarray(pair.further[positive] - pair.further[negative], np.float32)
        return difference


def contrast_of(config: TrainConfig, cache: RewardCache) -> Contrast | None:
    """The guides that the objective of `config` needs, None for those that need none; errors as `Contrast`."""
    if not LOSSES[config.loss].needs_guides:
        return None
    return Contrast(cache, str(config.positive_guide), str(config.negative_guide))


def _columns(cache: RewardCache, option: str, name: str) -> Columns:
    kinds = {guide.name: guide.reward_kind for guide in cache.manifest.added_guides}
    if cache.manifest.reward_kind != "none":
        kinds[GUIDANCE] = cache.manifest.reward_kind
    if name not in kinds:
        raise CacheError(
            f"{option} {name}: {cache.storage} has {', '.join(kinds) or 'no guide'}",
            fix=f"add it with tgdpo score --reuse {cache.storage} --add-guidance {name}=MODEL --output NEW",
        )
    if kinds[name] != "log-ratio":
        raise CacheError(
            f"{option} {name} is a reward model, and has no log-probabilities to compare", fix="name a causal LM"
        )
    return Columns(*rewards_columns(None if name == GUIDANCE else name))
