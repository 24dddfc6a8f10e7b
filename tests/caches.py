"""Reward caches from given rows, without models."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Counts, Manifest, Shard
from tgdpo.data.schema import SHARD_SCHEMA, shard_metadata, shard_name, write_parquet
from tgdpo.data.tokenization import vocabulary_hash

Row = dict[str, Any]

FINGERPRINT = dict.fromkeys(("dataset_sha256", "reference_sha256", "guidance_sha256"), "0" * 64)


def random_rows(count: int, *, vocabulary: int = 300, seed: int = 0) -> list[Row]:
    """Rows with responses of 1 to 40 tokens; chosen is liked a little better."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row: Row = {"pair_id": f"{number:032x}", "source_row": number, "prompt": f"prompt {number}"}
        row["prompt_ids"] = rng.integers(5, vocabulary, 6).tolist()
        for side, shift in (("chosen", 0.1), ("rejected", -0.1)):
            length = int(rng.integers(1, 41))
            row |= {
                side: f"{side} {number}",
                f"{side}_ids": rng.integers(5, vocabulary, length).tolist(),
                f"{side}_ref_logps": (-rng.exponential(size=length)).astype(np.float32).tolist(),
                f"{side}_rewards": rng.normal(shift, 1, length).astype(np.float32).tolist(),
            }
        rows.append(row)
    return rows


def write_cache(folder: Path, rows: list[Row], tokenizer: Any, *, name: str = "", pairs_per_shard: int = 2048) -> Path:
    """A cache of `rows`; `name` is the tokenizer's in the manifest."""
    folder.mkdir()
    parts = [rows[n : n + pairs_per_shard] for n in range(0, len(rows), pairs_per_shard)]
    shards = []
    for number, part in enumerate(parts):
        path = folder / shard_name(number, len(parts))
        schema = SHARD_SCHEMA.with_metadata(shard_metadata(FINGERPRINT))
        write_parquet(pa.Table.from_pylist(part, schema=schema), path)
        tokens = {f"{s}_tokens": sum(len(row[f"{s}_ids"]) for row in part) for s in ("prompt", "chosen", "rejected")}
        size, sha256 = path.stat().st_size, sha256_file(path)
        shards.append(Shard(name=path.name, rows=pq.read_metadata(path).num_rows, bytes=size, sha256=sha256, **tokens))
    Manifest(
        created="2026-01-01T00:00:00+00:00",
        reward_kind="log-ratio",
        dataset="made",
        reference="reference",
        guidance="guide",
        tokenizer=name,
        tokenizer_vocabulary_sha256=vocabulary_hash(tokenizer),
        conversational=False,
        row_group_pairs=512,
        settings={},
        fingerprint=FINGERPRINT,
        counts=Counts(read=len(rows), scored=len(rows), set_aside=0, duplicates=0, truncated=0),
        set_aside_reasons={},
        shards=shards,
    ).write(folder)
    return folder
