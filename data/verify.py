"""Checks a reward cache against its manifest: every byte, every row, every count."""

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import CacheError
from .cache import RewardCache, ids_problems, shard_problem
from .schema import SAMPLES_SCHEMA, SET_ASIDE_NAME

# Text is for people, and its bytes are covered by the shard's hash.
_UNREAD = ("source_row", "prompt", "chosen", "rejected")


def verify(cache: RewardCache) -> list[str]:
    """One line per problem; empty where the cache is what its manifest says."""
    problems = _check_files(cache)
    seen: set[str] = set()
    for number, shard in enumerate(cache.manifest.shards):
        problem = shard_problem(cache.storage, shard)
        problems += [problem] if problem else _check_rows(cache, number, seen)
    return problems + _check_counts(cache)


def _check_files(cache: RewardCache) -> list[str]:
    listed = {shard.name for shard in cache.manifest.shards}
    problems = [f"the manifest lists {name} twice" for name in _repeated([s.name for s in cache.manifest.shards])]
    found = sorted(name for name in cache.storage.files if name.endswith(".parquet"))
    return problems + [f"{name} is not in the manifest" for name in found if name not in listed]


def _repeated(names: list[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _check_rows(cache: RewardCache, number: int, seen: set[str]) -> list[str]:
    try:
        return cache.read_file(number, lambda file: _check_file(cache, number, file, seen))
    except CacheError as error:  # what does not decode, though its bytes are those that the manifest names
        return [error.problem.removeprefix(f"{cache.storage}: ")]


def _check_file(cache: RewardCache, number: int, file: pq.ParquetFile, seen: set[str]) -> list[str]:
    shard = cache.manifest.shards[number]
    if file.metadata.num_rows != shard.rows:
        return [f"{shard.name} has {file.metadata.num_rows} rows, the manifest says {shard.rows}"]
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups) if shard.rows]
    if groups != [group.rows for group in cache.row_groups_of(number)]:
        return [f"{shard.name} has row groups of {groups} rows, the manifest says {cache.manifest.row_group_pairs}"]
    problems, own = [], set[str]()
    columns = [name for name in cache.schema.names if name not in _UNREAD]
    tokens = dict.fromkeys(("prompt", "chosen", "rejected"), 0)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns)
        problems += [
            f"{shard.name}, row group {group}: {line}"
            for line in table_problems(table, cache.manifest.reference_samples)
        ]
        ids = table["pair_id"].to_pylist()
        doubled = len(ids) - len(set(ids) - seen - own)
        own.update(ids)
        if doubled:
            problems.append(f"{shard.name}, row group {group}: {doubled} pair_id not unique")
        for name in tokens:
            tokens[name] += pc.sum(pc.list_value_length(table[f"{name}_ids"])).as_py() or 0
    for name, count in tokens.items():
        if count != getattr(shard, f"{name}_tokens"):
            problems.append(f"{shard.name} has {count} {name} tokens, the manifest says otherwise")
    seen |= own
    return problems


def table_problems(table: pa.Table, samples: int) -> list[str]:
    """What is wrong with ids and scores of some rows, of which each token has so many samples of the reference."""
    problems = ids_problems(table)
    for field in table.schema:
        side, _, what = field.name.partition("_")
        if not pa.types.is_list(field.type) or what == "ids":
            continue
        is_sample, lengths = field.name in SAMPLES_SCHEMA.names, pc.list_value_length(table[f"{side}_ids"]).to_numpy()
        if not np.array_equal(
            pc.list_value_length(table[field.name]).to_numpy(), lengths * (samples if is_sample else 1)
        ):
            differ = f"differ in length by another factor than {samples}" if is_sample else "differ in length"
            problems.append(f"{field.name} and {side}_ids {differ}")
        if not np.isfinite(pc.list_flatten(table[field.name]).to_numpy()).all():
            problems.append(f"{field.name} holds a value that is not finite")
    return problems


def _check_counts(cache: RewardCache) -> list[str]:
    counts = cache.manifest.counts
    problems = []
    if cache.manifest.rows != counts.scored:
        problems.append(f"the shards hold {cache.manifest.rows} rows, the manifest counts {counts.scored} scored")
    if counts.read != counts.scored + counts.set_aside:
        problems.append(f"{counts.read} rows read is not {counts.scored} scored + {counts.set_aside} set aside")
    return problems + set_aside_problems(cache)


def set_aside_problems(cache: RewardCache) -> list[str]:
    """What is wrong with the list of rows set aside."""
    content = cache.storage.read(SET_ASIDE_NAME) if SET_ASIDE_NAME in cache.storage.files else b""
    lines, expected = content.count(b"\n"), cache.manifest.counts.set_aside
    if lines != expected:
        return [f"{SET_ASIDE_NAME} has {lines} rows, the manifest counts {expected}"]
    sha256 = cache.manifest.set_aside_sha256
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        return [f"{SET_ASIDE_NAME} has changed (its SHA-256 is not the manifest's)"]
    return []
