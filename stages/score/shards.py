"""The tables of a shard: what each pass leaves, and the finished rows."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...data.additions import GUIDE_NAME
from ...data.manifest import Fingerprint, RewardKind
from ...data.schema import (
    PAIR_SCHEMA,
    REFERENCE_SCHEMA,
    SAMPLES_SCHEMA,
    list_column,
    rewards_columns,
    shard_metadata,
    shard_schema,
)
from .engines import PairScores

SIDES = ("chosen", "rejected")


def reference_table(scores: Sequence[PairScores]) -> pa.Table:
    """Reference log-probabilities of a shard, a row per prepared pair; they may hold values that are not finite."""
    columns = [list_column([getattr(score, side) for score in scores], pa.float32()) for side in SIDES]
    return pa.table(columns, schema=REFERENCE_SCHEMA)


def rewards_table(
    reference: pa.Table, scores: Sequence[PairScores], *, kind: RewardKind, guide: str | None = None
) -> pa.Table:
    """A guide's rewards of a shard, a row per prepared pair; they may hold values that are not finite.

    Args:
        reference: the pairs' reference log-probabilities (`reference_table`).
        scores: the guide's scores.
        kind: how scores become rewards: log pi_guide - log pi_ref (the paper's token reward per unit of beta), or the
            reward model's output as it is.
        guide: name of a guide that is added, None for guidance itself.
    """
    columns = {}
    for side, name in zip(SIDES, rewards_columns(guide), strict=True):
        rewards = list_column([getattr(score, side) for score in scores], pa.float32())
        if kind == "log-ratio":
            ref_logps = reference[f"{side}_ref_logps"].combine_chunks().values.to_numpy()
            rewards = _with_values(rewards, rewards.values.to_numpy() - ref_logps)
        columns[name] = rewards
    return pa.table(columns)


def shard_table(tokens: pa.Table, parts: Sequence[pa.Table], *, fingerprint: Fingerprint) -> pa.Table:
    """The finished rows of a shard. A pair with a score that is not finite is left out.

    Args:
        tokens: the prepared pairs.
        parts: what the passes made of them, the reference's columns first. Rewards that none has made are zeros.
    """
    scores: dict[str, Any] = {name: part[name].combine_chunks() for part in parts for name in part.column_names}
    for side, name in zip(SIDES, rewards_columns(), strict=True):
        ref_logps = scores[f"{side}_ref_logps"]
        scores.setdefault(name, _with_values(ref_logps, np.zeros(len(ref_logps.values), np.float32)))
    schema = shard_schema(_guides(scores), has_samples=SAMPLES_SCHEMA.names[0] in scores)
    columns = {name: tokens[name] if name in PAIR_SCHEMA.names else scores[name] for name in schema.names}
    table = pa.table(columns, schema=schema.with_metadata(shard_metadata(fingerprint)))
    return table.filter(pa.array(_finite_rows(table)))


def _with_values(lists: pa.ListArray, values: npt.NDArray[np.float32]) -> pa.ListArray:
    return pa.ListArray.from_arrays(lists.offsets, pa.array(values))


def _guides(columns: Iterable[str]) -> list[str]:
    """The names of the guides that were added, in the columns' order."""
    found = (re.fullmatch(f"chosen_({GUIDE_NAME.pattern})_rewards", name) for name in columns)
    return [match[1] for match in found if match]


def _finite_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    keep = np.ones(len(table), np.bool_)
    for field in table.schema:
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            column = table[field.name]
            bad = ~np.isfinite(pc.list_flatten(column).to_numpy())
            keep[pc.list_parent_indices(column).to_numpy()[bad]] = False
    return keep
