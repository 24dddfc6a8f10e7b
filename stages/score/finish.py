"""The end of a scoring run: what each finished shard holds, and the manifest of them all."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from ...data.manifest import Counts, Manifest, Shard
from ...data.rendering import Reason
from ...data.schema import ROW_GROUP_PAIRS
from ...data.store import StoredFile
from .check import check_engines
from .folder import OutputFolder
from .plan import ScorePlan
from .prepare import count_duplicates, read_records
from .records import Prepared, SetAsideCount, SetAsideRow


class FinishedShard(BaseModel):
    """What the manifest says of a shard, and the rows that it lost to scores that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    lost: list[SetAsideRow]


def finished_shard(folder: OutputFolder, shard: int, count: int) -> FinishedShard:
    """Describes a finished shard, from its file or from what was noted when it was published."""
    return next(finished_shards(folder, [shard], count))


def finished_shards(folder: OutputFolder, shards: Sequence[int], count: int) -> Iterator[FinishedShard]:
    """As `finished_shard`, the notes read together."""
    notes = folder.contents([folder.entry(shard) for shard in shards])
    for shard, note in zip(shards, notes, strict=True):
        if note is None:
            yield _note_finished(folder, shard, count)
        else:
            yield folder.entry(shard).record(note, FinishedShard)


def publish_manifest(plan: ScorePlan, prepared: Prepared, folder: OutputFolder) -> Manifest:
    """Writes the list of rows set aside and the manifest, and removes what only an unfinished run needs.

    Several workers may do this at once: they write the same.

    Raises:
        DataError: more rows are set aside than the plan allows.
    """
    count = len(prepared.shard_pairs)
    finished = list(finished_shards(folder, range(count), count))
    set_aside = SetAsideCount()
    for rows in _set_aside(folder, finished):
        set_aside.add(rows)
    set_aside.require_few(prepared.rows_read, plan.config.max_set_aside, plan.model_names)
    folder.set_aside.replace(lambda path: _write_lines(path, _set_aside(folder, finished)))
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reward_kind=plan.reward_kind,
        dataset=str(plan.config.dataset),
        reference=plan.reference.name,
        guidance=plan.guidance_name,
        added_guides=plan.listed_guides,
        reference_samples=plan.samples,
        tokenizer=plan.tokenizer_name,
        tokenizer_vocabulary_sha256=plan.vocabulary_sha256,
        conversational=prepared.conversational,
        row_group_pairs=ROW_GROUP_PAIRS,
        settings={"batch_tokens": plan.config.batch_tokens, "max_set_aside": plan.config.max_set_aside},
        fingerprint=plan.fingerprint,
        counts=Counts(
            read=prepared.rows_read,
            scored=sum(each.shard.rows for each in finished),
            set_aside=set_aside.reasons.total(),
            duplicates=count_duplicates(folder, prepared.pairs),
            truncated=prepared.truncated,
        ),
        set_aside_reasons=dict(set_aside.reasons),
        set_aside_sha256=folder.set_aside.size_and_sha256()[1],
        shards=[each.shard for each in finished],
        engine_check=check_engines(plan, [folder.shard(shard, count) for shard in range(count)]),
    )
    manifest.write(folder.store)
    folder.clean()
    return manifest


def _set_aside(folder: OutputFolder, finished: list[FinishedShard]) -> Iterator[list[SetAsideRow]]:
    """Shard by shard, the rows that preparation set aside and those that were lost, in the source's order."""
    for record, each in zip(read_records(folder), finished, strict=True):
        yield sorted(record.set_aside + each.lost, key=lambda row: row.source_row)


def _write_lines(path: Path, shards: Iterator[list[SetAsideRow]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row.model_dump_json() + "\n" for rows in shards for row in rows)


def _note_finished(folder: OutputFolder, shard: int, count: int) -> FinishedShard:
    file = folder.shard(shard, count)
    described = _describe(file)
    tokens = folder.tokens(shard)
    lost = [] if described.rows == tokens.rows() else _lost_rows(tokens, file)
    finished = FinishedShard(shard=described, lost=lost)
    folder.entry(shard).write_record(finished)
    return finished


def _lost_rows(tokens: StoredFile, shard: StoredFile) -> list[SetAsideRow]:
    prepared, scored = (file.table(["source_row"])["source_row"].to_pylist() for file in (tokens, shard))
    return [
        SetAsideRow(source_row=row, reason=Reason.NON_FINITE, detail="") for row in sorted(set(prepared) - set(scored))
    ]


def _describe(file: StoredFile) -> Shard:
    parts = ("prompt", "chosen", "rejected")
    ids = file.table([f"{part}_ids" for part in parts])
    tokens = {f"{part}_tokens": pc.sum(pc.list_value_length(ids[f"{part}_ids"])).as_py() or 0 for part in parts}
    size, sha256 = file.size_and_sha256()
    return Shard(name=file.name, rows=len(ids), bytes=size, sha256=sha256, **tokens)
