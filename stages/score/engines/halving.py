"""Finds the pairs that end the process of their engine, so that they cost themselves and not the run.

A part whose process died is scored again in halves; a pair is blamed only where it ended the process twice by itself
and other pairs were scored since the first death, so that a machine or an engine that is broken blames none.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ....data.tokenization import PairIds
from ....errors import ModelError
from ...console import log
from . import PairScores

Score = Callable[[Sequence[PairIds]], list[PairScores]]
"""Scores pairs, in a new process where the last one died. Raises EngineDeathError where the process dies."""

MOST_BLAMED = 4
"""So many pairs of one shard; more of them are no matter of pairs."""


class EngineDeathError(ModelError):
    """The process of an engine ended before it had answered."""


def score_halves(pairs: Sequence[PairIds], score: Score, death: EngineDeathError) -> list[PairScores]:
    """Scores of `pairs`, over which the process has just died; those of blamed pairs are not finite.

    Raises:
        EngineDeathError: the deaths are no matter of single pairs.
    """
    search = _Search(pairs, score, death)
    log(f"{death.problem}: scoring the {len(pairs)} pairs in halves, to find the one that does it")
    search.halve(range(len(pairs)))
    return search.results()


class _Search:
    def __init__(self, pairs: Sequence[PairIds], score: Score, death: EngineDeathError) -> None:
        self._pairs = pairs
        self._score = score
        self._death = death
        self._found: dict[int, PairScores] = {}
        self._suspects: list[int] = []
        self._deaths_in_vain = 0

    def halve(self, numbers: Sequence[int]) -> None:
        if len(numbers) == 1:
            self._suspects += numbers
            return
        middle = len(numbers) // 2
        for part in (numbers[:middle], numbers[middle:]):
            if not self._is_scored(part):
                self.halve(part)

    def _is_scored(self, part: Sequence[int]) -> bool:
        if len(self._suspects) > MOST_BLAMED or self._deaths_in_vain > len(self._pairs).bit_length():
            raise self._death
        try:
            scores = self._score([self._pairs[number] for number in part])
        except EngineDeathError as death:
            self._death = death
            self._deaths_in_vain += 1
            return False
        self._deaths_in_vain = 0
        self._found.update(zip(part, scores, strict=True))
        return True

    def results(self) -> list[PairScores]:
        """All scores; a suspect is tried once more."""
        if not self._found:
            raise self._death
        for number in self._suspects:
            self._deaths_in_vain = 0
            if not self._is_scored([number]):
                pair = self._pairs[number]
                log(f"a pair of {pair.tokens} tokens ended the process twice by itself and is set aside")
                self._found[number] = PairScores(_nothing(len(pair.chosen)), _nothing(len(pair.rejected)))
        return [self._found[number] for number in range(len(self._pairs))]


def _nothing(length: int) -> np.ndarray:
    return np.full(length, np.nan, np.float32)
