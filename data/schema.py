"""The columns of a shard and how they are encoded: the public contract that pandas, pyarrow, datasets, polars and
DuckDB read.

Lists are stored flat and without dictionaries: float32 as BYTE_STREAM_SPLIT, ids as PLAIN (BYTE_STREAM_SPLIT of int32
cannot be read by DuckDB <= 1.4.1).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1
ROW_GROUP_PAIRS = 512
"""Rows of a row group: the unit that training reads and resumes by."""
METADATA_KEY = b"tgdpo"

MANIFEST_NAME = "_manifest.json"
SET_ASIDE_NAME = "_set_aside.jsonl"
SHARD_PATTERN = re.compile(r"part-(\d{5})-of-(\d{5})\.parquet")

_IDS = pa.list_(pa.int32())
_SCORES = pa.list_(pa.float32())

PAIR_FIELDS = [
    pa.field("pair_id", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("chosen", pa.string(), nullable=False),
    pa.field("rejected", pa.string(), nullable=False),
    pa.field("prompt_ids", _IDS, nullable=False),
    pa.field("chosen_ids", _IDS, nullable=False),
    pa.field("rejected_ids", _IDS, nullable=False),
]
SCORE_FIELDS = [
    pa.field("chosen_ref_logps", _SCORES, nullable=False),
    pa.field("rejected_ref_logps", _SCORES, nullable=False),
    pa.field("chosen_rewards", _SCORES, nullable=False),
    pa.field("rejected_rewards", _SCORES, nullable=False),
]
REFERENCE_SCHEMA = pa.schema(SCORE_FIELDS[:2])
"""What the reference pass leaves for the guidance pass."""
PAIR_SCHEMA = pa.schema(PAIR_FIELDS)
"""Columns of a pair before it is scored."""
SHARD_SCHEMA = pa.schema(PAIR_FIELDS + SCORE_FIELDS)
"""Columns of a shard of the reward cache, as far as every cache has them."""
SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("chosen_sampled_ids", _IDS, nullable=False),
        pa.field("rejected_sampled_ids", _IDS, nullable=False),
        pa.field("chosen_sampled_ref_logps", _SCORES, nullable=False),
        pa.field("rejected_sampled_ref_logps", _SCORES, nullable=False),
    ]
)
"""Tokens drawn from the reference, the same number for each response token, one after the other."""


def rewards_columns(guide: str | None = None) -> tuple[str, str]:
    """The columns of a guide's rewards, chosen and rejected: of guidance itself, or of a guide that was added."""
    middle = f"_{guide}" if guide else ""
    return f"chosen{middle}_rewards", f"rejected{middle}_rewards"


def shard_schema(guides: Iterable[str] = (), *, has_samples: bool = False) -> pa.Schema:
    """Columns of a shard of a cache to which these guides were added, and perhaps samples of the reference."""
    added = [pa.field(name, _SCORES, nullable=False) for guide in guides for name in rewards_columns(guide)]
    return pa.schema([*SHARD_SCHEMA, *added, *(SAMPLES_SCHEMA if has_samples else ())])


def shard_metadata(fingerprint: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What a shard's Parquet metadata says of the run that made it."""
    content = json.dumps({"format_version": FORMAT_VERSION, "fingerprint": fingerprint}, sort_keys=True)
    return {METADATA_KEY: content.encode()}


def shard_name(index: int, count: int) -> str:
    """File name of shard `index` of `count`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def list_column(rows: Iterable[npt.NDArray[np.generic]], value_type: pa.DataType) -> pa.ListArray:
    """One list per array of `rows`."""
    arrays = list(rows)
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, value_type))


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes `table` with the contract's encodings; the bytes depend on the table and the pyarrow version alone."""
    encodings = {}
    for field in table.schema:
        if pa.types.is_list(field.type):
            is_float = pa.types.is_floating(field.type.value_type)
            encodings[f"{field.name}.list.element"] = "BYTE_STREAM_SPLIT" if is_float else "PLAIN"
        else:
            encodings[field.name] = "PLAIN"
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP_PAIRS,
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        column_encoding=encodings,
        data_page_version="1.0",
        write_page_index=True,
        write_page_checksum=True,
    )
