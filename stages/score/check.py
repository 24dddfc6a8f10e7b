"""`--check-against`: pairs of a finished cache are scored with another engine as well, and the scores compared.

What is checked is what the cache holds, not a rehearsal. Only the other engine is loaded, once per model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ...data.cache import pair_ids_of
from ...data.manifest import Difference, EngineCheck
from ...data.tokenization import PairIds
from ...errors import UsageError
from ..console import log, meter, warn
from .engines import Engine, score_pairs
from .engines.choice import Choice
from .plan import ScorePlan

PAIRS = 32
"""Pairs that are compared unless N is given."""

BOUNDS = {torch.float32: 1e-3}
"""Mean difference per token, in nats, above which there is a warning; `HALF_BOUND` for other dtypes."""
HALF_BOUND = 0.1

Floats = npt.NDArray[np.float32]


class _Sample(NamedTuple):
    """Pairs of the cache with their scores, flat over all response tokens."""

    pairs: list[PairIds]
    reference: Floats
    rewards: Floats


def other_plan(plan: ScorePlan) -> ScorePlan | None:
    """The plan with the engine of `--check-against`, None where nothing is to be checked.

    Raises:
        UsageError, ModelError: that engine cannot do it, or is the one that scores.
    """
    if plan.config.check_against is None:
        return None
    name = plan.config.check_against.partition(":")[0]
    if name == plan.engine.name:
        raise UsageError(f"--check-against {name}: the pairs are scored with {name} already", fix="name another engine")
    config = plan.config.model_copy(update={"attn_implementation": None})
    other = replace(plan, config=config, engine=Choice(name), engine_arguments={})
    other.require_engine_fits()
    return other


def check_engines(plan: ScorePlan, shards: Sequence[Path]) -> EngineCheck | None:
    """Compares scores in `shards` with those of the engine of `--check-against`, and reports the difference."""
    other = other_plan(plan)
    count = int((plan.config.check_against or "").partition(":")[2] or PAIRS)
    sample = _sample(shards, count)
    if other is None or not sample.pairs:
        return None
    scores = _scores(other, sample.pairs)
    check = _compare(plan, other.engine.name, sample, scores)
    _report(check, plan.config.check_bound or BOUNDS.get(plan.dtype, HALF_BOUND))
    return check


def _sample(shards: Sequence[Path], count: int) -> _Sample:
    """Up to `count` rows, one at random from each of as many stretches of the cache; the same ones every time."""
    rows = [pq.read_metadata(path).num_rows for path in shards]
    total = sum(rows)
    edges = np.linspace(0, total, min(count, total) + 1)
    rng = np.random.default_rng(0)
    picked = np.array([rng.integers(int(a), int(b)) for a, b in pairwise(edges)], np.int64)
    tables, start = [], 0
    for path, in_shard in zip(shards, rows, strict=True):
        here = picked[(picked >= start) & (picked < start + in_shard)] - start
        start += in_shard
        if len(here):
            tables.append(pq.read_table(path).take(pa.array(here)))
    if not tables:
        return _Sample([], np.empty(0, np.float32), np.empty(0, np.float32))
    table = pa.concat_tables(tables)
    return _Sample(pair_ids_of(table), _flat(table, "ref_logps"), _flat(table, "rewards"))


def _flat(table: pa.Table, column: str) -> Floats:
    sides = (table[f"chosen_{column}"].to_pylist(), table[f"rejected_{column}"].to_pylist())
    return np.concatenate([np.asarray(scores, np.float32) for row in zip(*sides, strict=True) for scores in row])


def _scores(plan: ScorePlan, pairs: list[PairIds]) -> dict[str, Floats]:
    """Scores of each model with the plan's engine, flat; one model in memory at a time."""
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    roles = ["reference", "guidance"] if plan.guidance else ["reference"]
    found: dict[str, Floats] = {}
    engine: Engine | None = None
    for role in roles:
        if engine is None or not plan.shares_base:
            engine = plan.engine_class(plan.engine_spec(role, longest))
        engine.adapter_on = role == "guidance"
        with meter(f"checking {role}", len(pairs)) as progress:
            scores = score_pairs(engine, pairs, lambda done, _, bar=progress: bar.advance(done))  # type: ignore[misc]
        found[role] = np.concatenate([side for pair in scores for side in pair])
        if role == roles[-1] or not plan.shares_base:
            engine.close()
    return found


def _compare(plan: ScorePlan, against: str, sample: _Sample, scores: dict[str, Floats]) -> EngineCheck:
    ours = {"reference": sample.reference}
    guidance = rewards = size = None
    if plan.reward_kind != "none":
        is_difference = plan.reward_kind == "log-ratio"
        ours["guidance"] = sample.rewards + sample.reference if is_difference else sample.rewards
        theirs = scores["guidance"] - scores["reference"] if is_difference else scores["guidance"]
        guidance = _difference(ours["guidance"], scores["guidance"])
        rewards = _difference(sample.rewards, theirs)
        size = float(np.abs(sample.rewards).mean())
    return EngineCheck(
        against=against,
        pairs=len(sample.pairs),
        tokens=len(sample.reference),
        reference=_difference(ours["reference"], scores["reference"]),
        guidance=guidance,
        rewards=rewards,
        reward_size=size,
    )


def _difference(ours: Floats, theirs: Floats) -> Difference:
    gap = np.abs(ours.astype(np.float64) - theirs)
    # Scores that are not finite with the other engine count as a difference without bound, which JSON has not.
    gap = np.nan_to_num(gap, nan=1e9, posinf=1e9)
    return Difference(mean=float(gap.mean()), max=float(gap.max()))


def _report(check: EngineCheck, bound: float) -> None:
    found = {"reference": check.reference, "guidance": check.guidance, "rewards": check.rewards}
    shown = [f"{name} {gap.mean:.2g} (at most {gap.max:.2g})" for name, gap in found.items() if gap]
    size = f"; the rewards' own size is {check.reward_size:.2g}" if check.reward_size is not None else ""
    log(
        f"{check.pairs} pairs, {check.tokens:,} tokens, also scored with {check.against}; mean difference per token in "
        f"nats: {', '.join(shown)}{size}"
    )
    over = [name for name, gap in found.items() if gap and gap.mean > bound]
    if over:
        warn(
            f"the engines differ by more than {bound:g} nats per token in {' and '.join(over)}: check the model with "
            "--dtype float32, or raise --check-bound"
        )
