"""Which pairs a step trains on, computed from (seed, epoch, step) and the manifest's sizes: nothing to save, nothing
to shuffle in a buffer, and a resumed run reads one row group to be where it was. In memory are the row group in work
and the next, which a thread reads meanwhile.

An epoch goes through the row groups in a seeded order and through each group's pairs in a seeded order, those left out
that are held out (see held_out.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...data.cache import RewardCache, ScoredPair
from ...data.read_ahead import read_ahead
from .held_out import Split, held_out

Rows = npt.NDArray[np.int64]


class PairOrder:
    """The order of training and evaluation pairs.

    Args:
        cache: the reward cache.
        seed: decides order and held-out pairs.
        eval_fraction: share of the prompts, or rows, that is held out.
        eval_split: which of the two, see `held_out`.
        chosen_only: give pairs without their rejected responses.
        further: columns to give as well, see `ScoredPair`.
        vocabulary: the number of token ids that the policy knows, where that is known.
    """

    def __init__(
        self,
        cache: RewardCache,
        *,
        seed: int,
        eval_fraction: float,
        eval_split: Split = "prompt",
        chosen_only: bool = False,
        further: Sequence[str] = (),
        vocabulary: int | None = None,
    ) -> None:
        self._cache = cache
        self._seed = seed
        self._chosen_only = chosen_only
        self._further = further
        self._vocabulary = vocabulary
        self._groups = cache.row_groups
        self._is_held, self.eval_prompts = held_out(cache, seed=seed, fraction=eval_fraction, split=eval_split)
        self._held_counts = [int(held.sum()) for held in self._is_held]
        self.eval_pairs = sum(self._held_counts)
        self.train_pairs = len(cache) - self.eval_pairs

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[ScoredPair]:
        """Training pairs of an epoch (from 0) in their order, the first `skip` left out without reading them."""
        for pairs in read_ahead(self._read, self._rows_of_epoch(epoch, skip)):
            yield from pairs

    def _rows_of_epoch(self, epoch: int, skip: int) -> Iterator[tuple[int, Rows]]:
        """Row groups and the rows to take of each."""
        for number in np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._groups)).tolist():
            count = self._groups[number].rows - self._held_counts[number]
            if skip >= count:
                skip -= count
                continue
            rows = np.flatnonzero(~self._is_held[number])
            yield number, np.random.default_rng([self._seed, 2, epoch, number]).permutation(rows)[skip:]
            skip = 0

    def held_out(self) -> Iterator[ScoredPair]:
        """Evaluation pairs in the cache's order."""
        held = ((n, np.flatnonzero(self._is_held[n])) for n, count in enumerate(self._held_counts) if count)
        for pairs in read_ahead(self._read, held):
            yield from pairs

    def _read(self, group_and_rows: tuple[int, Rows]) -> list[ScoredPair]:
        number, rows = group_and_rows
        pairs = self._cache.read_pairs(self._groups[number], self._further, self._vocabulary)
        taken = [pairs[row] for row in rows]
        return [pair.without_rejected() for pair in taken] if self._chosen_only else taken
