"""Batches: every pair once, within the budget, laid out as the slow way does it."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgdpo.data.packing import Layout, batches, collate
from tgdpo.data.tokenization import PairIds

ids = st.lists(st.integers(1, 99), min_size=1, max_size=9).map(lambda values: np.array(values, np.int32))
pair_lists = st.lists(st.builds(PairIds, ids, ids, ids), min_size=1, max_size=9)
layouts = st.sampled_from(["packed", "padded"])


@given(pair_lists, st.integers(1, 400), layouts)
def test_batches_hold_every_pair_once_within_the_budget(pairs: list[PairIds], budget: int, layout: Layout) -> None:
    groups = list(batches(pairs, lambda: budget, layout))
    assert sorted(index for group in groups for index in group) == list(range(len(pairs)))
    sizes = [collate([pairs[index] for index in group], layout).input_ids.size for group in groups]
    assert all(size <= budget or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    # Longest first, so that what does not fit in memory fails at once and not after hours.
    alone = [collate([pairs[index]], layout).input_ids.size for group in groups for index in group]
    assert alone == sorted(alone, reverse=True)


@given(pair_lists)
def test_a_packed_row_has_no_padding_and_every_prompt_once(pairs: list[PairIds]) -> None:
    batch = collate(pairs, "packed")
    assert batch.attention_mask is None
    assert batch.spans is not None
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    assert row == [token for pair in pairs for part in pair for token in part]
    expected_positions: list[int] = []
    for pair in pairs:
        prompt, chosen, rejected = map(len, pair)
        expected_positions += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
    assert positions == expected_positions
    for pair, span in zip(pairs, batch.spans, strict=True):
        edges = (span.prompt, span.chosen, span.rejected, span.end)
        parts = [row[start:end] for start, end in itertools.pairwise(edges)]
        assert parts == [part.tolist() for part in pair]


@given(pair_lists, layouts)
def test_each_response_token_is_predicted_by_the_one_before_it_in_its_sequence(
    pairs: list[PairIds], layout: Layout
) -> None:
    batch = collate(pairs, layout)
    tokens, positions = batch.input_ids.ravel(), batch.position_ids.ravel()
    responses = [response for pair in pairs for response in (pair.chosen, pair.rejected)]
    assert tokens[batch.places].tolist() == [token for response in responses for token in response]
    assert batch.response_lengths.tolist() == [len(response) for response in responses]
    before = [token for pair in pairs for r in (pair.chosen, pair.rejected) for token in [pair.prompt[-1], *r[:-1]]]
    assert tokens[batch.predicting].tolist() == before
    assert (positions[batch.predicting] + 1 == positions[batch.places]).all()


@given(pair_lists)
def test_padded_rows_are_the_naive_construction(pairs: list[PairIds]) -> None:
    rows = [[*pair.prompt, *response] for pair in pairs for response in (pair.chosen, pair.rejected)]
    width = max(map(len, rows))
    batch = collate(pairs, "padded")
    assert batch.spans is None
    assert batch.attention_mask is not None
    assert batch.input_ids.tolist() == [row + [0] * (width - len(row)) for row in rows]
    assert batch.attention_mask.tolist() == [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    assert batch.position_ids.tolist() == [list(range(width))] * len(rows)


EXAMPLE = PairIds(*(np.array(part, np.int32) for part in ([5, 6], [7, 2], [8, 9, 2])))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "packed",
            {
                "input_ids": [[5, 6, 7, 2, 8, 9, 2]],
                "position_ids": [[0, 1, 2, 3, 2, 3, 4]],
                "attention_mask": None,
                "spans": ((0, 2, 4, 7),),
                "places": [2, 3, 4, 5, 6],
                "predicting": [1, 2, 1, 4, 5],
                "response_lengths": [2, 3],
            },
        ),
        (
            "padded",
            {
                "input_ids": [[5, 6, 7, 2, 0], [5, 6, 8, 9, 2]],
                "position_ids": [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]],
                "attention_mask": [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
                "spans": None,
                "places": [2, 3, 7, 8, 9],
                "predicting": [1, 2, 6, 7, 8],
                "response_lengths": [2, 3],
            },
        ),
    ],
)
def test_the_example_of_the_docstring(layout: Layout, expected: dict[str, Any]) -> None:
    batch = collate([EXAMPLE], layout)._asdict()
    assert {name: part.tolist() if isinstance(part, np.ndarray) else part for name, part in batch.items()} == expected
