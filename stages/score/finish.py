"""The end of a scoring run: what each finished shard holds, and the manifest of them all."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ...data.files import replace, sha256_file
from ...data.manifest import Counts, Manifest, Shard
from ...data.rendering import Reason
from ...data.schema import ROW_GROUP_PAIRS
from .check import check_engines
from .folder import OutputFolder
from .plan import ScorePlan
from .prepare import count_duplicates, read_record
from .records import Prepared, SetAsideCount, SetAsideRow


class FinishedShard(BaseModel):
    """What the manifest says of a shard, and the rows that it lost to scores that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    lost: list[SetAsideRow]


def finished_shard(folder: OutputFolder, shard: int, count: int) -> FinishedShard:
    """Describes a finished shard, from its file or from what was noted when it was published."""
    note = folder.entry(shard)
    if note.is_file():
        return FinishedShard.model_validate_json(note.read_bytes())
    path = folder.shard(shard, count)
    described = FinishedShard(shard=_describe(path), lost=_lost_rows(folder.tokens(shard), path))
    replace(note, lambda file: file.write_text(described.model_dump_json()), mode=0o600)
    return described


def publish_manifest(plan: ScorePlan, prepared: Prepared, folder: OutputFolder) -> Manifest:
    """Writes the list of rows set aside and the manifest, and removes what only an unfinished run needs.

    Several workers may do this at once: they write the same.

    Raises:
        DataError: more rows are set aside than the plan allows.
    """
    count = len(prepared.shard_pairs)
    finished = [finished_shard(folder, shard, count) for shard in range(count)]
    set_aside = SetAsideCount()
    for rows in _set_aside(folder, finished):
        set_aside.add(rows)
    set_aside.require_few(prepared.rows_read, plan.config.max_set_aside)
    replace(folder.set_aside, lambda path: _write_lines(path, _set_aside(folder, finished)), mode=0o600)
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
        set_aside_sha256=sha256_file(folder.set_aside),
        shards=[each.shard for each in finished],
        engine_check=check_engines(plan, [folder.shard(shard, count) for shard in range(count)]),
    )
    manifest.write(folder.path)
    folder.clean()
    return manifest


def _set_aside(folder: OutputFolder, finished: list[FinishedShard]) -> Iterator[list[SetAsideRow]]:
    """Shard by shard, the rows that preparation set aside and those that were lost, in the source's order."""
    for number, each in enumerate(finished):
        yield sorted(read_record(folder, number).set_aside + each.lost, key=lambda row: row.source_row)


def _write_lines(path: Path, shards: Iterator[list[SetAsideRow]]) -> None:
    with path.open("w") as file:
        file.writelines(row.model_dump_json() + "\n" for rows in shards for row in rows)


def _lost_rows(tokens: Path, shard: Path) -> list[SetAsideRow]:
    if pq.read_metadata(shard).num_rows == pq.read_metadata(tokens).num_rows:
        return []
    prepared, scored = (
        pq.read_table(path, columns=["source_row"])["source_row"].to_pylist() for path in (tokens, shard)
    )
    return [
        SetAsideRow(source_row=row, reason=Reason.NON_FINITE, detail="") for row in sorted(set(prepared) - set(scored))
    ]


def _describe(path: Path) -> Shard:
    tokens = {
        f"{part}_tokens": pc.sum(pc.list_value_length(column)).as_py() or 0
        for part, column in (
            (part, pq.read_table(path, columns=[f"{part}_ids"])[f"{part}_ids"])
            for part in ("prompt", "chosen", "rejected")
        )
    }
    return Shard(
        name=path.name,
        rows=pq.read_metadata(path).num_rows,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        **tokens,
    )
