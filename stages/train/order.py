"""Which pairs a step trains on, computed from (seed, epoch, step) and the manifest's sizes: nothing to save, nothing
to shuffle in a buffer, and a resumed run reads one row group to be where it was. In memory are the row group in work
and the next, which a thread reads meanwhile.

An epoch goes through the row groups in a seeded order and through each group's pairs in a seeded order. Held-out pairs
are a seeded choice inside every row group, so their number is known without reading.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...data.cache import RewardCache, ScoredPair
from ...data.read_ahead import read_ahead

Rows = npt.NDArray[np.int64]


class PairOrder:
    """The order of training and evaluation pairs.

    Args:
        cache: the reward cache.
        seed: decides order and held-out pairs.
        eval_fraction: share of every row group that is held out.
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
        # Rounding the running total, not each group, keeps the overall share right for small groups.
        ends = np.cumsum([group.rows for group in self._groups])
        held_until = np.round(ends * eval_fraction).astype(int)
        self._held_counts = np.diff(held_until, prepend=0)
        self.eval_pairs = int(held_until[-1]) if len(ends) else 0
        self.train_pairs = len(cache) - self.eval_pairs

    def _split(self, number: int) -> tuple[Rows, Rows]:
        """Rows of row group `number` that are trained on, and those that are held out."""
        rows = np.random.default_rng([self._seed, 0, number]).permutation(self._groups[number].rows)
        held = self._held_counts[number]
        return np.sort(rows[held:]), np.sort(rows[:held])

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
            rows, _ = self._split(number)
            yield number, np.random.default_rng([self._seed, 2, epoch, number]).permutation(rows)[skip:]
            skip = 0

    def held_out(self) -> Iterator[ScoredPair]:
        """Evaluation pairs in the cache's order."""
        held = ((n, self._split(n)[1]) for n in range(len(self._groups)) if self._held_counts[n])
        for pairs in read_ahead(self._read, held):
            yield from pairs

    def _read(self, group_and_rows: tuple[int, Rows]) -> list[ScoredPair]:
        number, rows = group_and_rows
        pairs = self._cache.read_pairs(self._groups[number], self._further, self._vocabulary)
        taken = [pairs[row] for row in rows]
        return [pair.without_rejected() for pair in taken] if self._chosen_only else taken
