"""Which pairs are blamed for the deaths of their engine's process, and that broken machines blame none."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.score.engines import PairScores
from tgdpo.stages.score.engines.halving import MOST_BLAMED, EngineDeathError, score_halves

DEATH = EngineDeathError("the process died", fix="look at its log")


def pairs_of(count: int) -> list[PairIds]:
    return [PairIds(*(np.full(length, n, np.int32) for length in (2, 3, 4))) for n in range(count)]


def scores_of(pairs: Sequence[PairIds]) -> list[PairScores]:
    return [PairScores(pair.chosen.astype(np.float32), pair.rejected.astype(np.float32)) for pair in pairs]


class Mortal:
    """Dies over some pairs, and by chance for the first so many calls."""

    def __init__(self, poison: set[int], deaths: int = 0) -> None:
        self.poison = poison
        self.deaths = deaths
        self.calls = 0

    def __call__(self, pairs: Sequence[PairIds]) -> list[PairScores]:
        self.calls += 1
        if self.calls <= self.deaths or any(int(pair.prompt[0]) in self.poison for pair in pairs):
            raise DEATH
        return scores_of(pairs)


@given(count=st.integers(2, 200), data=st.data())
@settings(max_examples=60, deadline=None)
def test_those_that_do_it_and_no_others(count: int, data: st.DataObject) -> None:
    most = min(2, count - 1)
    poison = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=most))
    engine = Mortal(poison)
    try:
        found = score_halves(pairs_of(count), engine, DEATH)
    except EngineDeathError:
        # Two neighbours may let so many parts die in a row that it looks like a broken machine.
        assert len(poison) > 1
        return
    assert {n for n, scores in enumerate(found) if not scores.finite} == poison
    for ours, theirs in zip(found, scores_of(pairs_of(count)), strict=True):
        assert not ours.finite or np.array_equal(ours.chosen, theirs.chosen)
    assert engine.calls <= len(poison) * (2 * count.bit_length() + 1)


def test_an_accident_blames_nobody() -> None:
    found = score_halves(pairs_of(50), Mortal(set(), deaths=2), DEATH)
    assert all(scores.finite for scores in found)


@pytest.mark.parametrize("count", [2, 3, 50, 8192])
def test_a_broken_machine_is_told_soon(count: int) -> None:
    engine = Mortal(set(range(count)))
    with pytest.raises(EngineDeathError):
        score_halves(pairs_of(count), engine, DEATH)
    assert engine.calls <= count.bit_length() + 2


def test_too_many_are_no_matter_of_pairs() -> None:
    with pytest.raises(EngineDeathError):
        score_halves(pairs_of(64), Mortal(set(range(0, 64, 64 // (MOST_BLAMED + 4)))), DEATH)
