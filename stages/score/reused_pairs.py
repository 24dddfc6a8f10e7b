"""The pairs and scores of a finished cache, laid out as preparation and passes of a run would leave them.

A shard of the new run is a shard of the old one, so what follows goes on as in any run that was stopped in between.
"""

import random
from collections import defaultdict
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from ...data.cache import RewardCache, pair_ids_of
from ...data.rendering import Form
from ...data.schema import PAIR_SCHEMA, REFERENCE_SCHEMA, SAMPLES_SCHEMA, SET_ASIDE_NAME, rewards_columns, write_parquet
from ...data.verify import set_aside_problems, table_problems
from ...errors import CacheError
from ..console import meter
from .folder import OutputFolder
from .passes import GUIDE
from .prepare import TOKENS_SCHEMA, attended, content_hash_number, read_prepared
from .records import Prepared, SetAsideRow, ShardRecord
from .reuse import ReusePlan
from .samples import SAMPLES
from .share import Share

_PARTS = ("prompt", "chosen", "rejected")


def prepare_reused(plan: ReusePlan, folder: OutputFolder, share: Share) -> Prepared:
    """Lays out this worker's shards, then those that other workers have not, and adds the records up.

    Raises:
        CacheError: a shard has changed or is damaged.
        ModelError: rows are longer than a model reads.
    """
    set_aside = _set_aside_by_shard(plan)
    if folder.shard_count() is None:
        folder.set_shard_count(len(plan.source.manifest.shards))
    missing = folder.unprepared()
    # Others' shards last and at random, so that several workers seldom take the same.
    random.shuffle(missing)
    with meter("taking over", len(missing)) as progress:
        for shard in sorted(missing, key=lambda shard: not share.owns(shard)):
            if not folder.record(shard).exists():
                lay_out(plan, folder, shard, set_aside.get(shard, []))
            progress.advance(1)
    prepared = read_prepared(folder)
    plan.require_context_fits(prepared.longest)
    return prepared


def lay_out(plan: ReusePlan, folder: OutputFolder, shard: int, set_aside: list[SetAsideRow]) -> None:
    """Publishes tokens and scores of a shard, then the record, whose presence means that all are there."""
    table = _sound_table(plan.source, shard)
    folder.tokens(shard).publish(partial(write_parquet, tokens_table(table)))
    for role in plan.kept:
        folder.scores(role, shard).publish(partial(write_parquet, columns_of(role, table)))
    record = _record(plan, shard, table, set_aside)
    folder.record(shard).replace(lambda path: path.write_text(record.model_dump_json(), encoding="utf-8"), mode=0o600)


def _sound_table(source: RewardCache, shard: int) -> pa.Table:
    """The rows of a shard, which may be anybody's."""
    table, name = source.read_shard(shard), source.manifest.shards[shard].name
    problems = table_problems(table, source.manifest.reference_samples)
    if problems:
        raise CacheError(f"{source.storage}: {name}: {problems[0]}", fix="look at it with tgdpo verify")
    return table


def tokens_table(table: pa.Table) -> pa.Table:
    """Scored rows as they were prepared."""
    hashes = pa.array([content_hash_number(ids) for ids in pair_ids_of(table)], pa.uint64())
    return table.select(PAIR_SCHEMA.names).append_column("content_hash", hashes).cast(TOKENS_SCHEMA)


def columns_of(role: str, table: pa.Table) -> pa.Table:
    """What the pass of this role has made of scored rows."""
    if role == "reference":
        return table.select(REFERENCE_SCHEMA.names).cast(REFERENCE_SCHEMA)
    if role == SAMPLES:
        return table.select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA)
    columns = table.select(rewards_columns(role.removeprefix(GUIDE) if role.startswith(GUIDE) else None))
    return columns.replace_schema_metadata(None)


def _set_aside_by_shard(plan: ReusePlan) -> dict[int, list[SetAsideRow]]:
    source = plan.source
    problems = set_aside_problems(source)
    if problems:
        raise CacheError(f"{source.storage}: {problems[0]}", fix="restore the file from a copy, or score again")
    by_shard: dict[int, list[SetAsideRow]] = defaultdict(list)
    lines = source.storage.read(SET_ASIDE_NAME).splitlines() if SET_ASIDE_NAME in source.storage.files else []
    shards = range(len(source.manifest.shards))
    try:
        for row in map(SetAsideRow.model_validate_json, lines):
            by_shard[shards[row.source_row // plan.config.pairs_per_shard]].append(row)
    except (ValidationError, IndexError) as error:
        raise CacheError(
            f"{source.storage}: {SET_ASIDE_NAME} names rows that the cache cannot have", fix="score again"
        ) from error
    return by_shard


def _record(plan: ReusePlan, shard: int, table: pa.Table, set_aside: list[SetAsideRow]) -> ShardRecord:
    manifest = plan.source.manifest
    prompt, chosen, rejected = (_lengths(table, part) for part in _PARTS)
    is_last = shard == len(manifest.shards) - 1
    full = plan.config.pairs_per_shard
    return ShardRecord(
        rows=manifest.counts.read - full * shard if is_last else full,
        pairs=len(table),
        prompt_tokens=int(prompt.sum()),
        chosen_tokens=int(chosen.sum()),
        rejected_tokens=int(rejected.sum()),
        attended=sum(map(attended, prompt.tolist(), chosen.tolist(), rejected.tolist())),
        # The manifest knows their sum alone, and nothing else is made of them.
        truncated=0 if shard else manifest.counts.truncated,
        largest_id=max(
            (pc.max(pc.list_flatten(table[f"{part}_ids"])).as_py() for part in _PARTS if len(table)), default=0
        ),
        longest=int((prompt + np.maximum(chosen, rejected)).max(initial=0)),
        form=Form(table["source_row"][0].as_py(), manifest.conversational) if len(table) else None,
        set_aside=set_aside,
    )


def _lengths(table: pa.Table, part: str) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = pc.list_value_length(table[f"{part}_ids"]).to_numpy().astype(np.int64)
    return lengths
