"""Which pairs are held out: a seeded choice of whole prompts, the same on any number of processes.

A prompt with several pairs is on one side with all of them, else training sees the prompts that it is evaluated on. The
choice is made among the first pairs of the prompts, inside every row group, so a set without repeated prompts is split
as if by rows.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...data.cache import RewardCache
from ...errors import CacheError

Mask = npt.NDArray[np.bool_]
Split = Literal["prompt", "row"]
_READERS = 4
"""Shards that are read at once; a store answers slowly."""


class HeldOut(NamedTuple):
    """What is held out of a cache."""

    rows: list[Mask]
    """For every row group, which of its rows."""
    prompts: int | None
    """How many prompts; None where single rows are held out."""


def held_out(cache: RewardCache, *, seed: int, fraction: float, split: Split) -> HeldOut:
    """Chooses the rows that are evaluated and not trained on.

    Args:
        seed: decides which.
        fraction: share of the prompts, or of the rows.
        split: prompt holds out all rows of at least one prompt, for which the prompts of all rows are read; row holds
            out rows, none where the share rounds to none.

    Raises:
        CacheError: a shard is damaged.
    """
    groups = cache.row_groups
    ends = np.cumsum([group.rows for group in groups])
    if not fraction or not len(cache):
        return HeldOut([np.zeros(group.rows, bool) for group in groups], None)
    first_rows = _first_rows(cache) if split == "prompt" else np.arange(len(cache))
    is_first = np.split(first_rows == np.arange(len(cache)), ends[:-1])
    # Rounding the running total, not each group, keeps the overall share right for small groups.
    candidates = np.cumsum([mask.sum() for mask in is_first])
    held_until = np.round(candidates * fraction).astype(int)
    if split == "prompt":
        held_until = np.maximum(held_until, candidates == candidates[-1])
    is_held = np.zeros(len(cache), bool)
    for number, count in enumerate(np.diff(held_until, prepend=0)):
        rows = np.random.default_rng([seed, 0, number]).permutation(groups[number].rows)
        chosen = rows[is_first[number][rows]][:count]
        is_held[ends[number] - groups[number].rows + chosen] = True
    return HeldOut(np.split(is_held[first_rows], ends[:-1]), int(is_held.sum()) if split == "prompt" else None)


def _first_rows(cache: RewardCache) -> npt.NDArray[np.int64]:
    """For every row of the cache, the first row with the same prompt."""
    with ThreadPoolExecutor(_READERS) as readers:
        digests = np.concatenate(list(readers.map(partial(_digests, cache), range(len(cache.manifest.shards)))))
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    return first[which]


def _digests(cache: RewardCache, number: int) -> npt.NDArray[np.uint64]:
    """64 bits for the prompt of every row of a shard. Two prompts that share them would share a side, no more."""
    with cache.open_shard(number) as file:
        digests = b"".join(
            hashlib.blake2b(prompt, digest_size=8).digest()
            for batch in file.iter_batches(columns=["prompt"], use_threads=False)
            for prompt in batch["prompt"].cast(pa.binary()).to_pylist()
        )
    shard = cache.manifest.shards[number]
    if len(digests) != 8 * shard.rows:
        raise CacheError(
            f"{cache.storage.path(shard.name)} has {len(digests) // 8} rows, the manifest says {shard.rows}",
            fix="restore the file from a copy, or delete the cache and score again",
        )
    return np.frombuffer(digests, np.uint64)
