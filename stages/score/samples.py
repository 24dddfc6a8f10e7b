"""Tokens drawn from the reference at each response position: what is drawn depends on the pair, its side and the
position alone, not on the order of pairs, their packing, or a restart."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...data.cache import Scores
from ...data.schema import SAMPLES_SCHEMA, list_column
from ...data.tokenization import PairIds

SAMPLES = "samples"
"""The role of the pass."""

Uniforms = npt.NDArray[np.float64]
"""[response tokens, K], in [0, 1)."""


class PairSamples(NamedTuple):
    """K tokens for each response token, one after the other, and their log pi, float32, in nats."""

    chosen_ids: npt.NDArray[np.int32]
    rejected_ids: npt.NDArray[np.int32]
    chosen_logps: Scores
    rejected_logps: Scores

    @property
    def finite(self) -> bool:
        """Whether every log-probability is finite."""
        return bool(np.isfinite(self.chosen_logps).all() and np.isfinite(self.rejected_logps).all())


Draws = Callable[[int], Uniforms]
"""Where to invert the distribution functions of the pair of that number: chosen, then rejected tokens."""


def draws_of(pair_ids: Sequence[str], pairs: Sequence[PairIds], per_token: int) -> Draws:
    """The uniform numbers of some pairs, made when they are asked for."""

    def draws(number: int) -> Uniforms:
        pair, name = pairs[number], pair_ids[number]
        sides = (("chosen", len(pair.chosen)), ("rejected", len(pair.rejected)))
        return np.concatenate([_generator(name, side).random((tokens, per_token)) for side, tokens in sides])

    return draws


def samples_table(samples: Sequence[PairSamples]) -> pa.Table:
    """The columns of a shard, a row per prepared pair; they may hold values that are not finite."""
    columns = zip(*samples, strict=True) if samples else [()] * len(SAMPLES_SCHEMA)
    types = [field.type.value_type for field in SAMPLES_SCHEMA]
    return pa.table([list_column(rows, kind) for rows, kind in zip(columns, types, strict=True)], schema=SAMPLES_SCHEMA)


def _generator(pair_id: str, side: str) -> np.random.Generator:
    seed = hashlib.blake2b(f"{pair_id}/{side}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
