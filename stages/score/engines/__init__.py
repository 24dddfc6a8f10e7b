"""Engines: what runs a model over pairs of token ids. One file an engine, behind `Engine`; `ENGINES` names them.

A run loads an engine per pass, or one for both passes where guidance is an adapter on the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ....data.cache import Scores
from ....data.tokenization import PairIds
from ....errors import UsageError
from ...models import ModelSource

OnBatch = Callable[[int, int], None]
"""Called after each batch with its numbers of pairs and of tokens."""


class PairScores(NamedTuple):
    """One float32 score per response token."""

    chosen: Scores
    rejected: Scores

    @property
    def finite(self) -> bool:
        """Whether every score is finite."""
        return bool(np.isfinite(self.chosen).all() and np.isfinite(self.rejected).all())


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What an engine is to load and how; picklable, so that it can be loaded in another process."""

    source: ModelSource
    """The model; for an adapter, its base."""
    adapter: ModelSource | None = None
    """A PEFT adapter to put on it. `adapter_on` switches it, so that one model can serve both passes."""
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None = None
    batch_tokens: int | None = None
    """Tokens of one forward pass, padding included; None leaves it to the engine."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.adapter.name if self.adapter else self.source.name


class Engine(Protocol):
    """Scores pairs with one model.

    For a causal LM a score is log pi(y_t | x, y_<t) in nats; for a token classifier with one label, its output.
    """

    adapter_on: bool
    """Whether scores are those with the spec's adapter; True at first. Without an adapter it changes nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the model. Raises ModelError where it cannot be loaded or run."""

    @staticmethod
    def versions() -> dict[str, str]:
        """What, beside the spec, decides the scores: the fingerprint takes it up. Loads nothing."""

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """Scores of the response tokens, one entry per pair, in the pairs' order. A score that is not finite has been
        tried again in float32."""

    def close(self) -> None:
        """Gives the model's memory back."""


ENGINES = {
    "transformers": "tgdpo.stages.score.engines.transformers.TransformersEngine",
}
"""Where each engine's class is. Imported when asked for: an engine's library may be large, or not installed."""


def engine_class(name: str) -> type[Engine]:
    """The class of an engine by its name in `ENGINES`, or by its dotted path."""
    module, _, attribute = ENGINES.get(name, name).rpartition(".")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise UsageError(
            f"--engine {name} ({error})", fix=f"name one of {', '.join(ENGINES)}, or a class as package.module.Class"
        ) from error
    return found  # type: ignore[no-any-return]
