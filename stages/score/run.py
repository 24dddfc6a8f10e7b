"""Stage one from start to end: prepare, reference pass, guidance pass, manifest.

Each pass goes shard by shard through one model, the only one in memory (two passes of one model where guidance is an
adapter on the reference). What a pass has finished lies in files, so the same command goes on where a run stopped.
"""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...data.cache import pair_ids_of
from ...data.files import publish, replace, sha256_file
from ...data.manifest import Counts, Manifest, Shard
from ...data.rendering import Reason
from ...data.schema import ROW_GROUP_PAIRS, write_parquet
from ...data.tokenization import PairIds
from ..console import log, meter, quiet_libraries
from .check import check_engines, other_plan
from .config import ScoreConfig
from .engines import Engine, PairScores, score_pairs
from .folder import OutputFolder
from .plan import ScorePlan, plan_score
from .prepare import Prepared, SetAsideRow, prepare, read_prepared, require_few_set_aside
from .shards import reference_table, shard_table

Role = Literal["reference", "guidance"]


def score(config: ScoreConfig) -> Manifest:
    """Makes the reward cache, or finishes one that the same settings began.

    Returns:
        The manifest of the finished cache.

    Raises:
        TgdpoError: what was asked for cannot work; finished shards stay.
    """
    quiet_libraries()
    plan = plan_score(config)
    folder = OutputFolder(Path(config.output).expanduser())
    other_plan(plan)
    finished = folder.finished(plan.fingerprint)
    if finished is not None:
        return _checked(finished, plan, folder)
    return ScoreRun(plan, folder).finish()


def _checked(finished: Manifest, plan: ScorePlan, folder: OutputFolder) -> Manifest:
    """The finished cache, with the engine check that is asked for and was not made yet."""
    if plan.config.check_against is None or finished.engine_check is not None:
        log(f"{folder.path} is finished already, nothing to do")
        return finished
    check = check_engines(plan, [folder.path / shard.name for shard in finished.shards])
    manifest = finished.model_copy(update={"engine_check": check})
    manifest.write(folder.path)
    return manifest


class ScoreRun:
    """A scoring run on its output folder; `finish` does what is missing there."""

    def __init__(self, plan: ScorePlan, folder: OutputFolder) -> None:
        self.plan = plan
        self.folder = folder
        self.prepared = _prepared(plan, folder)
        self.shards = len(self.prepared.shard_rows)
        self._shared_engine: Engine | None = None
        self._has_said_engine = False

    def finish(self) -> Manifest:
        """Scores the missing shards and publishes the manifest."""
        missing = [n for n in range(self.shards) if not self._shard_path(n).exists()]
        if len(missing) < self.shards:
            log(f"going on: {self.shards - len(missing)} of {self.shards} shards are there")
        self._pass("reference", [n for n in missing if not self.folder.reference(n).exists()], self._write_reference)
        if self.plan.guidance is not None:
            self._pass("guidance", missing, self._write_shard)
        else:
            for shard in missing:
                self._write_shard(shard, None)
        return self._publish_manifest()

    def _shard_path(self, shard: int) -> Path:
        return self.folder.shard(shard, self.shards)

    def _pass(self, role: Role, shards: list[int], write: Callable[[int, list[PairScores]], None]) -> None:
        """One model over `shards`; `write` gets each shard's scores as they are ready."""
        if not shards:
            return
        engine = self._engine(role)
        self._say_which_engine()
        tokens = 0
        with meter(role, sum(self.prepared.shard_rows[n] for n in shards)) as progress:

            def on_batch(pairs: int, batch_tokens: int) -> None:
                nonlocal tokens
                tokens += batch_tokens
                progress.advance(pairs, f"{tokens / progress.seconds:,.0f} tokens/s")

            for shard in shards:
                write(shard, score_pairs(engine, self._pairs(shard), on_batch))
            log(f"{role}: {tokens:,} tokens in {progress.seconds:.1f} s, {tokens / progress.seconds:,.0f} tokens/s")
        if engine is not self._shared_engine:
            engine.close()

    def _engine(self, role: Role) -> Engine:
        load, longest = self.plan.engine_class, self.prepared.longest
        if not self.plan.shares_base:
            return load(self.plan.engine_spec(role, longest))
        if self._shared_engine is None:
            self._shared_engine = load(self.plan.engine_spec("reference", longest))
        self._shared_engine.adapter_on = role == "guidance"
        return self._shared_engine

    def _say_which_engine(self) -> None:
        """Once, where it was left open; after a model is loaded, so that what went wrong before stands alone."""
        if self.plan.engine.reason and not self._has_said_engine:
            log(f"engine: {self.plan.engine.name} ({self.plan.engine.reason})")
        self._has_said_engine = True

    def _pairs(self, shard: int) -> list[PairIds]:
        columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
        return pair_ids_of(pq.read_table(self.folder.tokens(shard), columns=columns))

    def _write_reference(self, shard: int, scores: list[PairScores]) -> None:
        publish(self.folder.reference(shard), lambda path: write_parquet(reference_table(scores), path))

    def _write_shard(self, shard: int, guidance: list[PairScores] | None) -> None:
        table = shard_table(
            pq.read_table(self.folder.tokens(shard)),
            pq.read_table(self.folder.reference(shard)),
            guidance,
            kind=self.plan.reward_kind,
            fingerprint=self.plan.fingerprint,
        )
        publish(self._shard_path(shard), lambda path: write_parquet(table, path))
        lost = self.prepared.shard_rows[shard] - len(table)
        if lost:
            log(f"{lost} pairs of shard {shard} have scores that are not finite and are set aside")
            self._require_few_set_aside()

    # The end

    def _set_aside(self) -> list[SetAsideRow]:
        """Rows set aside so far: those of the preparation, and those missing from the finished shards."""
        rows = list(self.prepared.set_aside)
        for shard, expected in enumerate(self.prepared.shard_rows):
            path = self._shard_path(shard)
            if path.exists() and pq.read_metadata(path).num_rows < expected:
                prepared, scored = (
                    pq.read_table(file, columns=["source_row"])["source_row"].to_pylist()
                    for file in (self.folder.tokens(shard), path)
                )
                lost = sorted(set(prepared) - set(scored))
                rows += [SetAsideRow(source_row=row, reason=Reason.NON_FINITE, detail="") for row in lost]
        return sorted(rows, key=lambda row: row.source_row)

    def _require_few_set_aside(self) -> None:
        require_few_set_aside(self._set_aside(), self.prepared.rows_read, self.plan.config.max_set_aside)

    def _publish_manifest(self) -> Manifest:
        plan, prepared = self.plan, self.prepared
        self._require_few_set_aside()
        set_aside = self._set_aside()
        lines = "".join(row.model_dump_json() + "\n" for row in set_aside)
        replace(self.folder.set_aside, lambda path: path.write_text(lines), mode=0o600)
        shards = [_describe_shard(self._shard_path(n)) for n in range(self.shards)]
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reward_kind=plan.reward_kind,
            dataset=plan.config.dataset,
            reference=plan.reference.name,
            guidance=plan.guidance.name if plan.guidance else None,
            tokenizer=plan.tokenizer_name,
            tokenizer_vocabulary_sha256=plan.vocabulary_sha256,
            conversational=prepared.conversational,
            row_group_pairs=ROW_GROUP_PAIRS,
            settings={"batch_tokens": plan.config.batch_tokens, "max_set_aside": plan.config.max_set_aside},
            fingerprint=plan.fingerprint,
            counts=Counts(
                read=prepared.rows_read,
                scored=sum(shard.rows for shard in shards),
                set_aside=len(set_aside),
                duplicates=prepared.duplicates,
                truncated=prepared.truncated,
            ),
            set_aside_reasons=dict(Counter(str(row.reason) for row in set_aside)),
            shards=shards,
            engine_check=check_engines(plan, [self._shard_path(n) for n in range(self.shards)]),
        )
        manifest.write(self.folder.path)
        self.folder.clean()
        return manifest


def _prepared(plan: ScorePlan, folder: OutputFolder) -> Prepared:
    """The prepared rows of the folder, made now unless an earlier run came to the end of it."""
    is_new = folder.claim(plan.fingerprint)
    prepared = read_prepared(folder)
    try:
        if prepared is None:
            prepared = prepare(
                plan.preferences,
                plan.renderer(),
                plan.pair_tokenizer(),
                pairs_per_shard=plan.config.pairs_per_shard,
                folder=folder,
            )
        require_few_set_aside(prepared.set_aside, prepared.rows_read, plan.config.max_set_aside)
        plan.require_same_tokenizers(conversational=prepared.conversational)
        plan.require_ids_known(prepared.largest_id)
    except BaseException:
        if is_new:
            folder.abandon()
        raise
    return prepared


def _describe_shard(path: Path) -> Shard:
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
