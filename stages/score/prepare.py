"""Before any model is loaded: every row is rendered, tokenised and checked, and lies ready by shard.

A shard holds the usable ones of `pairs_per_shard` consecutive source rows. Workers that share a run prepare every n-th
shard each. Reading, rendering with tokenising, and writing run side by side, a few batches at a time, so that memory
holds a shard or two whatever the set's size.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from ...data.preferences import Row
from ...data.rendering import Renderer, SetAside
from ...data.schema import PAIR_SCHEMA, list_column
from ...data.tokenization import PairIds, PairTokenizer, TokenizedPair
from ...errors import DataError, UsageError
from ..console import log, meter
from .folder import OutputFolder
from .overlap import Writer, ahead
from .plan import FreshPlan
from .records import Prepared, SetAsideRow, ShardRecord
from .share import Share

TOKENIZER_BATCH = 256
BATCHES_AHEAD = 4
MAX_SHARDS = 99_999
"""As many as their names have room for."""
RECORDS_AT_ONCE = 256
"""Records that are read together; each may list thousands of rows."""
HASHES_AT_ONCE = 16_000_000
"""Content hashes that are sorted together to count duplicates, 8 bytes each."""

TOKENS_SCHEMA = PAIR_SCHEMA.append(pa.field("content_hash", pa.uint64(), nullable=False))


def prepare(plan: FreshPlan, folder: OutputFolder, share: Share) -> Prepared:
    """Prepares this worker's shards, then those that other workers have not prepared, and adds the records up.

    Waiting for the others instead would be in vain where they are not started yet, as in a job array that is larger
    than the part of the cluster that it gets.

    Raises:
        DataError: no rows, mixed forms, or a missing column.
    """
    prepare_share(plan, folder, share)
    if missing := folder.unprepared():
        log(f"{len(missing)} shards are not prepared by other workers yet: preparing them here")
    while missing := folder.unprepared():
        # A few at random, so that several workers that do this seldom take the same.
        some = random.sample(missing, -(-len(missing) // 8))
        _prepare_shards(plan, folder, some.__contains__)
    return read_prepared(folder)


def prepare_share(plan: FreshPlan, folder: OutputFolder, share: Share) -> None:
    """Prepares those of this worker's shards that are not there."""
    if folder.shard_count() is None or any(share.owns(shard) for shard in folder.unprepared()):
        _prepare_shards(plan, folder, share.owns)


def read_prepared(folder: OutputFolder) -> Prepared:
    """The totals of a whole preparation."""
    return Prepared(read_records(folder))


def read_records(folder: OutputFolder) -> Iterator[ShardRecord]:
    """What the preparation of each shard found. Raises FileNotFoundError where one is not there."""
    shards = folder.all_shards()
    for start in shards[::RECORDS_AT_ONCE]:
        files = [folder.record(shard) for shard in shards[start : start + RECORDS_AT_ONCE]]
        for file, content in zip(files, folder.contents(files), strict=True):
            if content is None:
                raise FileNotFoundError(str(file))
            yield file.record(content, ShardRecord)


def count_duplicates(folder: OutputFolder, pairs: int) -> int:
    """Pairs whose token ids another pair has too, the first of them not counted.

    They are told by 64-bit hashes; a range of the hashes at a time, so that memory does not grow with the set.
    """
    ranges = -(-pairs // HASHES_AT_ONCE)
    shards = folder.all_shards()
    duplicates = 0
    for part in range(ranges):
        files = (folder.tokens(shard).table(["content_hash"])["content_hash"] for shard in shards)
        hashes = np.concatenate([some[some % ranges == part] for some in (file.to_numpy() for file in files)])
        duplicates += len(hashes) - len(np.unique(hashes))
    return duplicates


def _prepare_shards(plan: FreshPlan, folder: OutputFolder, wanted: Callable[[int], bool]) -> None:
    """Reads the whole set once; prepares those `wanted` shards that are not there."""
    renderer, tokenizer = plan.renderer(), plan.pair_tokenizer()
    batches = ahead(_batches(plan.preferences, plan.config.pairs_per_shard), BATCHES_AHEAD)
    rows = 0
    with meter("tokenising", len(plan.preferences) or None) as progress, Writer() as writer:
        for shard, numbered in groupby(batches, itemgetter(0)):
            if shard >= MAX_SHARDS:
                raise UsageError(
                    f"--pairs-per-shard {plan.config.pairs_per_shard} makes more than {MAX_SHARDS} shards",
                    fix="make them larger",
                )
            is_needed = wanted(shard) and not folder.record(shard).exists()
            builder = ShardBuilder(renderer, tokenizer) if is_needed else None
            for _, batch in numbered:
                _learn_columns(renderer, batch)
                if builder:
                    builder.add(batch)
                rows += len(batch)
                progress.advance(len(batch))
                writer.check()
            if builder:
                plan.preferences.require_unchanged()
                writer.submit(partial(builder.write, folder, shard))
    if rows == 0:
        raise DataError(f"--dataset {plan.preferences.name} has no rows", fix="name a file with preference pairs")
    folder.set_shard_count(-(-rows // plan.config.pairs_per_shard))
    plan.notes.extend(note for note in renderer.notes if note not in plan.notes)


def _batches(preferences: Iterable[Row], pairs_per_shard: int) -> Iterator[tuple[int, list[Row]]]:
    """The rows in batches, each with the number of its shard."""
    rows = iter(preferences)
    for shard in count():
        left = pairs_per_shard
        while left:
            batch = list(islice(rows, min(left, TOKENIZER_BATCH)))
            if not batch:
                return
            left -= len(batch)
            yield shard, batch


def _learn_columns(renderer: Renderer, batch: list[Row]) -> None:
    """The set's first readable row decides the columns, whoever prepares its shard."""
    first = next((row for row in batch if not row.problem), None)
    if first:
        renderer.require_columns(first.value)


class ShardBuilder:
    """The tokens and the record of one shard, batch by batch."""

    def __init__(self, renderer: Renderer, tokenizer: PairTokenizer) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._tables = [TOKENS_SCHEMA.empty_table()]
        self.record = ShardRecord()

    def add(self, batch: list[Row]) -> None:
        """Renders and tokenises `batch`."""
        numbers, rendered = [], []
        verdicts: list[tuple[int, SetAside]] = []
        for row in batch:
            try:
                rendered.append(self._renderer.render(row))
                numbers.append(row.number)
            except SetAside as verdict:
                verdicts.append((row.number, verdict))
        pairs: list[tuple[int, TokenizedPair]] = []
        for number, result in zip(numbers, self._tokenizer.encode(rendered), strict=True):
            if isinstance(result, SetAside):
                verdicts.append((number, result))
            else:
                pairs.append((number, result))
        self._tables.append(_table(pairs))
        self._count(len(batch), [pair for _, pair in pairs], verdicts)

    def _count(self, rows: int, pairs: list[TokenizedPair], verdicts: list[tuple[int, SetAside]]) -> None:
        record = self.record
        record.rows += rows
        record.pairs += len(pairs)
        record.form = self._renderer.form
        for number, why in sorted(verdicts, key=itemgetter(0)):
            record.set_aside.append(SetAsideRow(source_row=number, reason=why.reason, detail=why.detail))
        for pair in pairs:
            record.prompt_tokens += len(pair.ids.prompt)
            record.chosen_tokens += len(pair.ids.chosen)
            record.rejected_tokens += len(pair.ids.rejected)
            record.attended += attended(*map(len, pair.ids))
            record.truncated += pair.truncated
            record.largest_id = max(record.largest_id, *(int(ids.max()) for ids in pair.ids))
            record.longest = max(record.longest, len(pair.ids.prompt) + max(map(len, pair.ids[1:])))

    @property
    def table(self) -> pa.Table:
        """The pairs so far."""
        return pa.concat_tables(self._tables)

    def write(self, folder: OutputFolder, shard: int) -> None:
        """Publishes the tokens, then the record, whose presence means that both are there."""
        folder.require_ours()
        folder.tokens(shard).publish_table(self.table)
        folder.record(shard).write_record(self.record)


def attended(prompt: int, chosen: int, rejected: int) -> int:
    """Pairs of tokens of which one attends to the other, the prompt laid out once."""
    return (prompt**2 + chosen**2 + rejected**2) // 2 + prompt * (chosen + rejected)


def _content_hash(ids: PairIds) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in ids:
        digest.update(len(part).to_bytes(4, "little") + part.tobytes())
    return digest.digest()


def content_hash_number(ids: PairIds) -> int:
    """The 64 bits of the hash of a pair's token ids by which duplicates are told."""
    return int.from_bytes(_content_hash(ids)[:8], "little")


def pair_id(content_hash: bytes, source_row: int) -> str:
    """Stable, unique name of a pair: hash of its token ids and its place in the source."""
    return hashlib.blake2b(content_hash + source_row.to_bytes(8, "little"), digest_size=16).hexdigest()


def _table(pairs: list[tuple[int, TokenizedPair]]) -> pa.Table:
    hashes = [_content_hash(pair.ids) for _, pair in pairs]
    columns: dict[str, Any] = {
        "pair_id": [pair_id(content, row) for content, (row, _) in zip(hashes, pairs, strict=True)],
        "source_row": [row for row, _ in pairs],
        "prompt": [pair.text.prompt for _, pair in pairs],
        "chosen": [pair.text.chosen for _, pair in pairs],
        "rejected": [pair.text.rejected for _, pair in pairs],
        "prompt_ids": list_column([pair.ids.prompt for _, pair in pairs], pa.int32()),
        "chosen_ids": list_column([pair.ids.chosen for _, pair in pairs], pa.int32()),
        "rejected_ids": list_column([pair.ids.rejected for _, pair in pairs], pa.int32()),
        "content_hash": [int.from_bytes(content[:8], "little") for content in hashes],
    }
    return pa.table(columns, schema=TOKENS_SCHEMA)
