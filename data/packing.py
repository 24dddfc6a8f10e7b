"""Lays pairs out in rows and groups them into batches under a token budget.

Legend: N rows, T tokens of the longest row, R response tokens of all rows together.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .tokenization import PairIds

Int64s = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Pairs as padded rows, two a pair: prompt + chosen, prompt + rejected, in the pairs' order.

    For the pairs (prompt [5, 6], chosen [7, 2], rejected [8, 9, 2]) and padding 0:

        input_ids       [[5, 6, 7, 2, 0],
                         [5, 6, 8, 9, 2]]
        attention_mask  [[1, 1, 1, 1, 0],
                         [1, 1, 1, 1, 1]]
        response_index  [2, 3,  7, 8, 9]     flat places of the response tokens in input_ids
        response_lengths [2, 3]

    The token at flat place i is predicted by the hidden state at i - 1 (a prompt is never empty).
    """

    input_ids: Int64s
    """[N, T]"""
    attention_mask: Int64s
    """[N, T], 1 where there is a token"""
    response_index: Int64s
    """[R]"""
    response_lengths: Int64s
    """[N]"""


def collate(pairs: Sequence[PairIds], pad_id: int) -> Batch:
    """Padded rows of `pairs`; see `Batch`."""
    rows = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    attention_mask = np.zeros((len(rows), width), np.int64)
    response_index = []
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : end] = response
        attention_mask[row, :end] = 1
        response_index.append(np.arange(row * width + len(prompt), row * width + end))
    lengths = np.array([len(response) for _, response in rows], np.int64)
    return Batch(input_ids, attention_mask, np.concatenate(response_index), lengths)


def padded_tokens(pair: PairIds) -> int:
    """Tokens of the pair's two rows once padded to the same width."""
    return 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))


def batches(sizes: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Groups pairs, longest first, so that a batch padded to its longest pair stays within `batch_tokens`.

    A pair that is longer than the budget makes a batch of its own.

    Args:
        sizes: padded tokens of each pair.
        batch_tokens: the budget.

    Yields:
        indices into `sizes`; each index once.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // sizes[order[start]])
        yield order[start : start + count]
        start += count
