"""`tgdpo score --plan`: what a run will take, from token counts and the models' configurations. No weights are loaded.

A pass costs the matrix products of every token (2 FLOPs a parameter), of the head at response tokens alone, and of
attention (4 FLOPs a channel for every pair of tokens of which one attends to the other).
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ...data.cache import pair_ids_of
from ...data.preferences import Row
from ...data.schema import write_parquet
from ...data.tokenization import PairIds
from ...errors import DataError
from ..console import log, meter, quiet_libraries
from ..hardware import Gpu, ModelSize, forward_flops, gpu_named, size_of
from ..loading import auto_model, load_configuration, one_line
from ..models import ModelSource
from .config import ScoreConfig
from .engines import PairScores
from .folder import OutputFolder
from .plan import FreshPlan, ScorePlan, plan_score
from .prepare import ShardBuilder, attended, read_prepared
from .records import Prepared
from .reuse import ReusePlan
from .reused_pairs import tokens_table
from .samples import PairSamples, samples_table
from .shards import reference_table, rewards_table, shard_table

SAMPLE = 2000
"""Rows that are tokenised where the set is not prepared yet."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be scored."""

    pairs: int
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int
    attended: int
    """Pairs of tokens of which one attends to the other."""
    cache_bytes: int
    work_bytes: int
    """Files that go when the cache is finished."""
    source: str
    """Where the figures come from, for people."""

    @property
    def response_tokens(self) -> int:
        """Tokens that get a score."""
        return self.chosen_tokens + self.rejected_tokens

    def times(self, factor: float) -> "Load":
        """The same pairs, `factor` times as many."""
        numbers = {name: round(value * factor) for name, value in vars(self).items() if name != "source"}
        return replace(self, **numbers)


class Scorer(NamedTuple):
    """A model as a plan sees it."""

    name: str
    size: ModelSize
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return self.size.parameters * self.dtype.itemsize

    def flops(self, load: Load) -> float:
        """Of one pass over `load`."""
        tokens = load.prompt_tokens + load.response_tokens
        return forward_flops(self.size, tokens=tokens, head_tokens=load.response_tokens, attended=load.attended)


def gpu_hours(flops: float, gpu: Gpu, utilisation: float) -> float:
    """Hours of one GPU."""
    return flops / (gpu.flops * utilisation) / 3600


def scorer(source: ModelSource, dtype: torch.dtype) -> Scorer:
    """Counts the parameters of a model that is made without memory.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    config = load_configuration(source)
    with one_line(f"{source.name}: its size cannot be told", fix="check its config.json"), torch.device("meta"):
        model = auto_model(source.kind == "token-classification").from_config(
            config, trust_remote_code=source.trust_remote_code
        )
    return Scorer(source.name, size_of(model), dtype)


def estimate(config: ScoreConfig) -> str:
    """The plan as text.

    Raises:
        TgdpoError: a set or model is missing, or does not fit.
    """
    quiet_libraries()
    plan = plan_score(config, device=torch.device("cpu"), weights=False)
    load = _load(plan)
    scorers = {role: scorer(plan.engine_spec(role).source, plan.dtype) for role in plan.roles}
    return describe(load, scorers, plan.config)


def describe(load: Load, scorers: dict[str, Scorer], config: ScoreConfig) -> str:
    """One line per figure."""
    gpu = gpu_named(config.gpu)
    hours = {role: gpu_hours(model.flops(load), gpu, config.utilisation) for role, model in scorers.items()}
    total = sum(hours.values())
    lines = [
        ("pairs", f"{load.pairs:,} ({load.source})"),
        ("tokens", f"{load.prompt_tokens:,} prompt, {load.chosen_tokens:,} chosen, {load.rejected_tokens:,} rejected"),
        ("shards", f"{-(-load.pairs // config.pairs_per_shard):,} of {config.pairs_per_shard:,} rows"),
        ("disk", f"{byte_text(load.cache_bytes)} cache, {byte_text(load.work_bytes)} more until it is finished"),
    ]
    for role, model in scorers.items():
        fits = -(-model.weight_bytes // round(0.9 * gpu.memory))
        active = model.size.active_parameters + model.size.head
        lines.append(
            (
                role,
                f"{model.name}: {_count(active)} parameters a token, weights {byte_text(model.weight_bytes)} "
                f"({_plural(fits, 'GPU')} or more), {model.flops(load):.3g} FLOPs, {hours[role]:,.3g} GPU hours",
            )
        )
    lines.append(
        (
            "time",
            f"{_duration(total / config.gpus)} on {config.gpus} x {gpu.name} at {config.utilisation:.0%} of "
            f"{gpu.flops / 1e12:.0f} TFLOP/s, {total:,.3g} GPU hours",
        )
    )
    if config.gpu_price is not None:
        lines.append(("cost", f"{total * config.gpu_price:,.2f} at {config.gpu_price:g} a GPU hour"))
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


# Token counts


def _load(plan: ScorePlan) -> Load:
    if isinstance(plan, ReusePlan):
        return _reused_load(plan)
    assert isinstance(plan, FreshPlan)
    return _prepared_load(plan) or _sampled_load(plan)


def _reused_load(plan: ReusePlan) -> Load:
    """What the cache's manifest counts; attention and bytes from its first row group."""
    shards = plan.source.manifest.shards
    if not plan.source.row_groups:
        raise DataError(f"--reuse {plan.source.storage} holds no pairs", fix="name a cache with pairs")
    table = tokens_table(plan.source.read_row_group(plan.source.row_groups[0]))
    attends = sum(attended(*map(len, pair)) for pair in pair_ids_of(table))
    some = load_of(table, attends, "all of the cache", _names(plan), plan.samples)
    return replace(
        some.times(plan.source.manifest.rows / some.pairs),
        pairs=plan.source.manifest.rows,
        prompt_tokens=sum(shard.prompt_tokens for shard in shards),
        chosen_tokens=sum(shard.chosen_tokens for shard in shards),
        rejected_tokens=sum(shard.rejected_tokens for shard in shards),
    )


def _prepared_load(plan: FreshPlan) -> Load | None:
    """What a run in the output folder has prepared from the same set with the same options."""
    folder = OutputFolder(plan.config.output)
    if not folder.holds_tokens_of(plan.text_fingerprint):
        return None
    prepared = read_prepared(folder)
    table = folder.tokens(0).table().slice(0, SAMPLE)
    load = load_of(table, prepared.attended, "all prepared", _names(plan), plan.samples)
    scale = load.times(prepared.pairs / max(1, load.pairs))
    return replace(
        scale,
        pairs=prepared.pairs,
        prompt_tokens=prepared.prompt_tokens,
        chosen_tokens=prepared.chosen_tokens,
        rejected_tokens=prepared.rejected_tokens,
        attended=prepared.attended,
    )


def _sampled_load(plan: FreshPlan) -> Load:
    """Reads all rows and tokenises some of them, drawn at random."""
    rows, count = _draw(plan)
    renderer = plan.renderer()
    builder = ShardBuilder(renderer, plan.pair_tokenizer())
    builder.add(sorted(rows, key=lambda row: row.number))
    if not builder.record.pairs:
        Prepared([builder.record]).set_aside.require_few(len(rows), 0)
    for note in (*plan.notes, *renderer.notes):
        log(note)
    load = load_of(builder.table, builder.record.attended, "", _names(plan), plan.samples)
    usable = load.pairs / len(rows)
    source = (
        f"{count:,} rows" if len(rows) == count else f"tokens from {len(rows):,} of {count:,} rows, drawn at random"
    )
    if usable < 1:
        source += f", {1 - usable:.1%} set aside"
    return replace(load.times(count / len(rows)), source=source)


def _draw(plan: FreshPlan) -> tuple[list[Row], int]:
    """SAMPLE rows, each with equal chance, and the number of all rows (reservoir sampling)."""
    draw = random.Random(0)
    rows: list[Row] = []
    count = 0
    with meter("reading", len(plan.preferences) or None) as progress:
        for row in plan.preferences:
            count += 1
            if len(rows) < SAMPLE:
                rows.append(row)
            elif (place := draw.randrange(count)) < SAMPLE:
                rows[place] = row
            progress.advance(1)
    if not rows:
        raise DataError(f"--dataset {plan.preferences.name} has no rows", fix="name a file with preference pairs")
    return rows, count


def load_of(tokens: pa.Table, attended: int, source: str, guides: Sequence[str] = (), samples: int = 0) -> Load:
    """The load of some prepared pairs; their bytes on disk are those of shards with random scores, also of `guides`,
    and with so many random samples of the reference a token."""
    pairs = pair_ids_of(tokens)
    noise = np.random.default_rng(0)

    def scores() -> list[PairScores]:
        return [PairScores(*(noise.normal(-1, 1, len(ids)).astype(np.float32) for ids in pair[1:])) for pair in pairs]

    parts = [reference_table(scores())]
    parts += [rewards_table(parts[0], scores(), kind="log-ratio", guide=guide) for guide in (None, *guides)]
    if samples:
        parts.append(_random_samples(pairs, samples, noise))
    return Load(
        pairs=len(pairs),
        prompt_tokens=sum(len(pair.prompt) for pair in pairs),
        chosen_tokens=sum(len(pair.chosen) for pair in pairs),
        rejected_tokens=sum(len(pair.rejected) for pair in pairs),
        attended=attended,
        cache_bytes=_written_bytes(shard_table(tokens, parts, fingerprint={})),
        work_bytes=_written_bytes(tokens) + sum(map(_written_bytes, parts[:-1])),
        source=source,
    )


def _random_samples(pairs: Sequence[PairIds], samples: int, noise: np.random.Generator) -> pa.Table:
    def side(ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        drawn = noise.choice(ids, samples * len(ids)).astype(np.int32)
        return drawn, noise.normal(-1, 1, len(drawn)).astype(np.float32)

    made = [(side(pair.chosen), side(pair.rejected)) for pair in pairs]
    return samples_table([PairSamples(w[0], l[0], w[1], l[1]) for w, l in made])  # noqa: E741


def _names(plan: ScorePlan) -> list[str]:
    return [guide.name for guide in plan.listed_guides]


def _written_bytes(table: pa.Table) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        write_parquet(table, path)
        return path.stat().st_size


# For people


def byte_text(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KB", "MB", "GB", "TB"):  # noqa: B007
        if count < 1000:
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _count(number: float) -> str:
    unit, size = next((unit for unit in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if number >= unit[1]), ("", 1))
    return f"{number / size:.3g} {unit}".strip()


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
