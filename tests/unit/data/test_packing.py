"""Batches: every pair once, within the budget, laid out as the slow way does it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tgdpo.data.packing import Batch, batches, collate, padded_tokens
from tgdpo.data.tokenization import PairIds

ids = st.lists(st.integers(1, 99), min_size=1, max_size=9).map(lambda values: np.array(values, np.int32))
pair_lists = st.lists(st.builds(PairIds, ids, ids, ids), min_size=1, max_size=9)


@given(st.lists(st.integers(1, 60)), st.integers(1, 200))
def test_batches_hold_every_pair_once_within_the_budget(sizes: list[int], budget: int) -> None:
    groups = list(batches(sizes, budget))
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        longest = max(sizes[index] for index in group)
        assert len(group) * longest <= budget or len(group) == 1
    # Longest first, so that what does not fit in memory fails at once and not after hours.
    in_order = [sizes[index] for group in groups for index in group]
    assert in_order == sorted(sizes, reverse=True)


@given(pair_lists, st.integers(8, 400))
def test_the_budget_is_that_of_the_padded_rows(pairs: list[PairIds], budget: int) -> None:
    for group in batches([padded_tokens(pair) for pair in pairs], budget):
        batch = collate([pairs[index] for index in group], pad_id=0)
        assert batch.input_ids.size <= budget or len(group) == 1


@given(pair_lists, st.integers(100, 105))
def test_collate_is_the_naive_construction(pairs: list[PairIds], pad_id: int) -> None:
    rows = [
        ([*pair.prompt, *response], len(pair.prompt)) for pair in pairs for response in (pair.chosen, pair.rejected)
    ]
    width = max(len(row) for row, _ in rows)
    batch = collate(pairs, pad_id)
    assert batch.input_ids.tolist() == [row + [pad_id] * (width - len(row)) for row, _ in rows]
    assert batch.attention_mask.tolist() == [[1] * len(row) + [0] * (width - len(row)) for row, _ in rows]
    assert batch.response_lengths.tolist() == [len(row) - start for row, start in rows]
    assert {part.dtype for part in batch} == {np.dtype(np.int64)}
    flat = batch.input_ids.ravel()[batch.response_index].tolist()
    assert flat == [token for row, start in rows for token in row[start:]]
    # The token before each response token lies in the same row: it predicts it.
    assert np.array_equal((batch.response_index - 1) // width, batch.response_index // width)


def test_the_example_of_the_docstring() -> None:
    pair = PairIds(*(np.array(part, np.int32) for part in ([5, 6], [7, 2], [8, 9, 2])))
    expected = Batch(
        np.array([[5, 6, 7, 2, 0], [5, 6, 8, 9, 2]]),
        np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        np.array([2, 3, 7, 8, 9]),
        np.array([2, 3]),
    )
    for ours, theirs in zip(collate([pair], pad_id=0), expected, strict=True):
        assert np.array_equal(ours, theirs)
