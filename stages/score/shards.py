"""The tables of a shard: what the reference pass leaves, and the finished rows."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...data.manifest import Fingerprint, RewardKind
from ...data.schema import FORMAT_VERSION, METADATA_KEY, REFERENCE_SCHEMA, SHARD_SCHEMA, list_column
from .engines import PairScores

SIDES = ("chosen", "rejected")


def reference_table(scores: Sequence[PairScores]) -> pa.Table:
    """Reference log-probabilities of a shard, a row per prepared pair; they may hold values that are not finite."""
    columns = [list_column([getattr(score, side) for score in scores], pa.float32()) for side in SIDES]
    return pa.table(columns, schema=REFERENCE_SCHEMA)


def shard_table(
    tokens: pa.Table,
    reference: pa.Table,
    guidance: Sequence[PairScores] | None,
    *,
    kind: RewardKind,
    fingerprint: Fingerprint,
) -> pa.Table:
    """The finished rows of a shard. A pair with a score that is not finite is left out.

    Args:
        tokens: the prepared pairs.
        reference: their reference log-probabilities (`reference_table`).
        guidance: the guidance model's scores, None for kind "none".
        kind: how scores become rewards: log pi_guide - log pi_ref (the paper's token reward per unit of beta), the
            reward model's output as it is, or zeros.
    """
    columns: dict[str, Any] = {name: tokens[name] for name in tokens.column_names}
    for side in SIDES:
        ref_logps = reference[f"{side}_ref_logps"].combine_chunks()
        flat_ref = ref_logps.values.to_numpy()
        rewards = np.zeros_like(flat_ref)
        if guidance is not None:
            flat_guide = list_column([getattr(score, side) for score in guidance], pa.float32()).values.to_numpy()
            rewards = flat_guide - flat_ref if kind == "log-ratio" else flat_guide
        columns[f"{side}_ref_logps"] = ref_logps
        columns[f"{side}_rewards"] = pa.ListArray.from_arrays(ref_logps.offsets, pa.array(rewards))
    metadata = {
        METADATA_KEY: json.dumps({"format_version": FORMAT_VERSION, "fingerprint": fingerprint}, sort_keys=True)
    }
    table = pa.table({name: columns[name] for name in SHARD_SCHEMA.names}, schema=SHARD_SCHEMA.with_metadata(metadata))
    return table.filter(pa.array(_finite_rows(table)))


def _finite_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    keep = np.ones(len(table), np.bool_)
    for column in (f"{side}_{score}" for side in SIDES for score in ("ref_logps", "rewards")):
        bad = ~np.isfinite(pc.list_flatten(table[column]).to_numpy())
        keep[pc.list_parent_indices(table[column]).to_numpy()[bad]] = False
    return keep
