"""A global batch divided among processes and passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgdpo.data.packing import Layout
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.train.split import Pass, split

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


def pairs_of(lengths: list[tuple[int, ...]]) -> list[PairIds]:
    return [PairIds(*(np.zeros(length, np.int32) for length in triple)) for triple in lengths]


def tokens_of(pair: PairIds, layout: Layout) -> int:
    longest = max(len(pair.chosen), len(pair.rejected))
    return pair.tokens - len(pair.prompt) if layout == "packed" else 2 * (len(pair.prompt) + longest)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@given(lengths=LENGTHS, processes=st.integers(1, 9), budget=st.integers(1, 400))
def test_every_pair_once_in_equally_many_passes_within_the_budget(
    layout: Layout, lengths: list[tuple[int, ...]], processes: int, budget: int
) -> None:
    pairs = pairs_of(lengths)
    found = split(pairs, processes=processes, batch_tokens=budget, layout=layout)
    assert len(found) == processes
    assert len({len(passes) for passes in found}) == 1
    flat = [one for passes in found for one in passes]
    assert sorted(i for one in flat if one.counts for i in one.pairs) == list(range(len(pairs)))
    for one in flat:
        sizes = [tokens_of(pairs[i], layout) for i in one.pairs]
        total = sum(sizes) if layout == "packed" else len(sizes) * max(sizes)
        assert total <= budget or len(sizes) == 1
    assert all(len(one.pairs) == 1 for one in flat if not one.counts)


@given(lengths=LENGTHS, processes=st.integers(1, 9))
def test_tokens_are_balanced(lengths: list[tuple[int, ...]], processes: int) -> None:
    """No process has more than another by more than a pair."""
    pairs = pairs_of(lengths)
    sizes = [tokens_of(pair, "packed") for pair in pairs]
    found = split(pairs, processes=processes, batch_tokens=10_000, layout="packed")
    shares = [sum(sizes[i] for one in passes if one.counts for i in one.pairs) for passes in found]
    assert max(shares) - min(shares) <= max(sizes)


def test_who_has_fewer_passes_halves_one_or_runs_a_pair_that_does_not_count() -> None:
    long_and_short = pairs_of([(10, 10, 10), (4, 3, 3), (4, 3, 3), (4, 3, 3)])
    assert split(long_and_short, processes=2, batch_tokens=20, layout="packed") == [
        [Pass([0], True), Pass([1], False)],
        [Pass([1, 2], True), Pass([3], True)],
    ]
    assert split(pairs_of([(1, 1, 1)]), processes=2, batch_tokens=9, layout="packed")[1] == [Pass([0], False)]
    four = pairs_of([(6, 2, 2), (6, 2, 2), (2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)])
    for passes in split(four, processes=2, batch_tokens=12, layout="packed"):
        assert all(one.counts for one in passes)
