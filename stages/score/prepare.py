"""Before any model is loaded: every row is rendered, tokenised and checked, and lies ready by shard.

A preparation that was stopped is done again from the start: it costs seconds where a model's pass costs hours.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ...data.files import replace
from ...data.preferences import PreferenceSet, Row
from ...data.rendering import Renderer, SetAside
from ...data.schema import PAIR_SCHEMA, list_column, write_parquet
from ...data.tokenization import PairIds, PairTokenizer, TokenizedPair
from ...errors import DataError
from ..console import meter
from .folder import OutputFolder

TOKENIZER_BATCH = 256


class SetAsideRow(BaseModel):
    """A line of `_set_aside.jsonl`. Says where and why, never the row's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_row: int
    reason: str
    detail: str


class Prepared(BaseModel):
    """What preparation found; `prepared.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_read: int
    shard_rows: list[int]
    duplicates: int
    truncated: int
    conversational: bool
    largest_id: int
    longest: int
    """Tokens of the longest row, prompt and response together."""
    set_aside: list[SetAsideRow]

    @property
    def pairs(self) -> int:
        """Rows that can be scored."""
        return sum(self.shard_rows)


class _Shard(NamedTuple):
    pairs: list[tuple[int, TokenizedPair]]
    set_aside: list[SetAsideRow]


def prepare(
    preferences: PreferenceSet,
    renderer: Renderer,
    tokenizer: PairTokenizer,
    *,
    pairs_per_shard: int,
    folder: OutputFolder,
) -> Prepared:
    """Writes the tokens of every shard; a shard holds the usable ones of `pairs_per_shard` consecutive source rows.

    Raises:
        DataError: no rows, mixed forms, or a missing column.
    """
    seen: set[bytes] = set()
    set_aside: list[SetAsideRow] = []
    shard_rows: list[int] = []
    rows_read = duplicates = truncated = largest_id = longest = 0
    with meter("tokenising", len(preferences) or None) as progress:
        for number, rows in enumerate(_chunks(preferences, pairs_per_shard)):
            shard = _Shard([], [])
            for batch in _chunks(rows, TOKENIZER_BATCH):
                _prepare_batch(batch, renderer, tokenizer, shard)
                progress.advance(len(batch))
            for _, pair in shard.pairs:
                content = _content_hash(pair.ids)
                duplicates += content in seen
                seen.add(content)
                truncated += pair.truncated
                largest_id = max(largest_id, *(int(ids.max()) for ids in pair.ids))
                longest = max(longest, len(pair.ids.prompt) + max(len(pair.ids.chosen), len(pair.ids.rejected)))
            replace(folder.tokens(number), lambda path, pairs=shard.pairs: write_parquet(_table(pairs), path))  # type: ignore[misc]
            rows_read += len(rows)
            shard_rows.append(len(shard.pairs))
            set_aside += shard.set_aside
    if rows_read == 0:
        raise DataError(f"--dataset {preferences.name} has no rows", fix="name a file with preference pairs")
    prepared = Prepared(
        rows_read=rows_read,
        shard_rows=shard_rows,
        duplicates=duplicates,
        truncated=truncated,
        conversational=renderer.conversational,
        largest_id=largest_id,
        longest=longest,
        set_aside=set_aside,
    )
    replace(folder.prepared, lambda path: path.write_text(prepared.model_dump_json()), mode=0o600)
    return prepared


def read_prepared(folder: OutputFolder) -> Prepared | None:
    """What an earlier run prepared, if it came to the end of it."""
    return Prepared.model_validate_json(folder.prepared.read_bytes()) if folder.prepared.is_file() else None


def require_few_set_aside(rows: Iterable[SetAsideRow], rows_read: int, limit: float) -> None:
    """Raises DataError where more than `limit` of the rows read are set aside."""
    rows = list(rows)
    if len(rows) / rows_read <= limit:
        return
    raise DataError(
        f"{len(rows)} of {rows_read} rows cannot be used ({_summary(rows)})",
        fix=f"mend them, or allow more than {limit * 100:.4g}% with --max-set-aside {_round_up(len(rows) / rows_read)}",
    )


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _summary(rows: list[SetAsideRow]) -> str:
    """The reasons with their counts and the first rows: '3 empty response (rows 4, 9, 17), 1 …'."""
    parts = []
    for reason, count in Counter(row.reason for row in rows).most_common():
        examples = [row for row in rows if row.reason == reason][:3]
        detail = f": {examples[0].detail}" if examples[0].detail else ""
        numbers = ", ".join(str(row.source_row) for row in examples) + (" …" if count > 3 else "")
        parts.append(f"{count} {reason}, row {numbers}{detail}")
    return "; ".join(parts)


def _round_up(share: float) -> float:
    return min(1.0, math.ceil(share * 100) / 100)


def _prepare_batch(rows: Iterable[Row], renderer: Renderer, tokenizer: PairTokenizer, shard: _Shard) -> None:
    numbers, rendered = [], []
    verdicts: list[tuple[int, SetAside]] = []
    for row in rows:
        try:
            rendered.append(renderer.render(row))
            numbers.append(row.number)
        except SetAside as verdict:
            verdicts.append((row.number, verdict))
    for number, result in zip(numbers, tokenizer.encode(rendered), strict=True):
        if isinstance(result, SetAside):
            verdicts.append((number, result))
        else:
            shard.pairs.append((number, result))
    for number, why in sorted(verdicts, key=lambda entry: entry[0]):
        shard.set_aside.append(SetAsideRow(source_row=number, reason=why.reason, detail=why.detail))


def _content_hash(ids: PairIds) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in ids:
        digest.update(len(part).to_bytes(4, "little") + part.tobytes())
    return digest.digest()


def pair_id(ids: PairIds, source_row: int) -> str:
    """Stable, unique name of a pair: hash of its token ids and its place in the source."""
    return hashlib.blake2b(_content_hash(ids) + source_row.to_bytes(8, "little"), digest_size=16).hexdigest()


def _table(pairs: list[tuple[int, TokenizedPair]]) -> pa.Table:
    columns: dict[str, Any] = {
        "pair_id": [pair_id(pair.ids, row) for row, pair in pairs],
        "source_row": [row for row, _ in pairs],
        "prompt": [pair.text.prompt for _, pair in pairs],
        "chosen": [pair.text.chosen for _, pair in pairs],
        "rejected": [pair.text.rejected for _, pair in pairs],
        "prompt_ids": list_column([pair.ids.prompt for _, pair in pairs], pa.int32()),
        "chosen_ids": list_column([pair.ids.chosen for _, pair in pairs], pa.int32()),
        "rejected_ids": list_column([pair.ids.rejected for _, pair in pairs], pa.int32()),
    }
    return pa.table(columns, schema=PAIR_SCHEMA)
