"""Scores made from the token ids alone, without a model: for tests, and to simulate runs at any scale.

    --engine dummy --engine-arg seconds_per_token=1e-5 --engine-arg seconds_to_load=2

takes that time for its work, by sleeping.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....data.cache import Scores
from ....data.tokenization import PairIds
from ....errors import UsageError
from . import Engine, EngineSpec, OnBatch, PairScores, require_arguments_known

ARGUMENTS = ("seconds_per_token", "seconds_to_load")


class DummyEngine(Engine):
    """Deterministic scores between -10 and 0 that differ by model, position and id. See `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        model = spec.adapter or spec.source
        self._seed = int(model.content_hash[:8], 16)
        self._seconds_per_token = float(spec.arguments.get("seconds_per_token", 0))
        time.sleep(float(spec.arguments.get("seconds_to_load", 0)))

    @staticmethod
    def versions() -> dict[str, str]:
        """See `Engine.versions`."""
        return {}

    @classmethod
    def check(cls, spec: EngineSpec) -> None:
        """See `Engine.check`."""
        require_arguments_known(spec.arguments, ARGUMENTS, cls.__name__)
        for name, value in spec.arguments.items():
            if not isinstance(value, int | float) or value < 0:
                raise UsageError(
                    f"--engine-arg {name}={value}: no number of seconds", fix="give it one, as 0.5 or 1e-5"
                )

    @staticmethod
    def lasting_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG004
        """See `Engine.lasting_arguments`: time changes no score."""
        return {}

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """See `Engine.score`."""
        results = []
        for pair in pairs:
            time.sleep(self._seconds_per_token * pair.tokens)
            results.append(PairScores(self._scores(pair.prompt, pair.chosen), self._scores(pair.prompt, pair.rejected)))
            on_batch(1, pair.tokens)
        return results

    def _scores(self, prompt: Any, response: Any) -> Scores:
        before = np.concatenate([prompt[-1:], response[:-1]]).astype(np.int64)
        mixed = (before * 1_000_003 + response * 7_919 + np.arange(len(response)) + self._seed) * 2_654_435_761
        scores: Scores = ((mixed % 2**32) / 2**32 * -10).astype(np.float32)
        return scores

    def close(self) -> None:
        """See `Engine.close`."""
