"""Lays pairs out in rows and groups them into batches under a token budget.

Two layouts. *Packed*: all pairs of a batch in one row, each as prompt | chosen | rejected; rejected's positions go on
from the prompt and it must not see chosen, so the prompt is computed once and nothing is padding. *Padded*: two rows a
pair, prompt + chosen and prompt + rejected, for models whose layers cannot run a packed row. A rejected response may be
empty, and then has no row.

Legend: N rows, T tokens of a row, R response tokens of all pairs together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .tokenization import Ids, PairIds

Int64s = npt.NDArray[np.int64]
Layout = Literal["packed", "padded"]


class Span(NamedTuple):
    """Where a pair's parts begin in a packed row: prompt | chosen | rejected, up to `end`."""

    prompt: int
    chosen: int
    rejected: int
    end: int


class Batch(NamedTuple):
    """Pairs laid out for one forward pass.

    For the pair (prompt [5, 6], chosen [7, 2], rejected [8, 9, 2]):

                          packed                       padded
        input_ids         [[5, 6, 7, 2, 8, 9, 2]]      [[5, 6, 7, 2, 0], [5, 6, 8, 9, 2]]
        position_ids      [[0, 1, 2, 3, 2, 3, 4]]      [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
        attention_mask    None                         [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
        spans             ((0, 2, 4, 7),)              None
        places            [2, 3,  4, 5, 6]             [2, 3,  7, 8, 9]
        predicting        [1, 2,  1, 4, 5]             [1, 2,  6, 7, 8]
        response_lengths  [2, 3]                       [2, 3]

    In both, responses come in the order chosen, rejected, next pair's chosen …
    """

    input_ids: Int64s
    """[N, T]"""
    position_ids: Int64s
    """[N, T]"""
    attention_mask: Int64s | None
    """[N, T], 1 where there is a token"""
    spans: tuple[Span, ...] | None
    places: Int64s
    """[R], flat places of the response tokens"""
    predicting: Int64s
    """[R], flat places of the hidden states that predict them"""
    response_lengths: Int64s
    """[2 * pairs]"""


def collate(pairs: Sequence[PairIds], layout: Layout) -> Batch:
    """`pairs` in one batch; see `Batch`. A prompt is never empty."""
    return _packed(pairs) if layout == "packed" else _padded(pairs)


def _packed(pairs: Sequence[PairIds]) -> Batch:
    ids: list[Ids] = []
    spans: list[Span] = []
    positions, places, predicting, lengths = [], [], [], []
    start = 0
    for pair in pairs:
        prompt, chosen, rejected = map(len, pair)
        span = Span(start, start + prompt, start + prompt + chosen, start + prompt + chosen + rejected)
        ids += pair
        positions += [np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)]
        places.append(np.arange(span.chosen, span.end))
        # Both first tokens are predicted by the prompt's last.
        before = np.arange(span.chosen - 1, span.end - 1)
        before[chosen : chosen + 1] = span.chosen - 1
        predicting.append(before)
        lengths += [chosen, rejected]
        spans.append(span)
        start = span.end
    return Batch(
        input_ids=np.concatenate(ids).astype(np.int64)[None],
        position_ids=np.concatenate(positions)[None],
        attention_mask=None,
        spans=tuple(spans),
        places=np.concatenate(places),
        predicting=np.concatenate(predicting),
        response_lengths=np.array(lengths, np.int64),
    )


def _padded(pairs: Sequence[PairIds]) -> Batch:
    responses = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    rows = [(prompt, response) for prompt, response in responses if len(response)]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    attention_mask = np.zeros((len(rows), width), np.int64)
    places = []
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : end] = response
        attention_mask[row, :end] = 1
        places.append(np.arange(row * width + len(prompt), row * width + end))
    flat_places = np.concatenate(places)
    return Batch(
        input_ids=input_ids,
        position_ids=np.broadcast_to(np.arange(width), input_ids.shape).copy(),
        attention_mask=attention_mask,
        spans=None,
        places=flat_places,
        predicting=flat_places - 1,
        response_lengths=np.array([len(response) for _, response in responses], np.int64),
    )


def batches(pairs: Sequence[PairIds], limit: Callable[[], int], layout: Layout) -> Iterator[list[int]]:
    """Groups pairs, longest first, so that a batch's row or rows stay within a budget of tokens, padding included.

    A pair that is longer than the budget makes a batch of its own.

    Args:
        limit: the budget, asked for when a batch begins.

    Yields:
        indices into `pairs`; each index once.
    """
    size = _packed_tokens if layout == "packed" else _padded_tokens
    sizes = [size(pair) for pair in pairs]
    batch: list[int] = []
    tokens, budget = 0, limit()
    for i in sorted(range(len(pairs)), key=lambda i: (-sizes[i], i)):
        # Padded rows are as wide as the batch's first pair, the longest.
        more = sizes[i] if layout == "packed" or not batch else sizes[batch[0]]
        if batch and tokens + more > budget:
            yield batch
            batch, tokens, more, budget = [], 0, sizes[i], limit()
        batch.append(i)
        tokens += more
    if batch:
        yield batch


def _packed_tokens(pair: PairIds) -> int:
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _padded_tokens(pair: PairIds) -> int:
    return (2 if len(pair.rejected) else 1) * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
