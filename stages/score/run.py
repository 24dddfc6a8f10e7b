"""Stage one from start to end: prepare, reference pass, guidance pass, manifest.

Each pass goes shard by shard through one model, the only one in memory (two passes of one model where guidance is an
adapter on the reference). What a pass has finished lies in files, so the same command goes on where a run stopped, and
workers that share an output folder need nothing else to share.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

import torch

from ...data.manifest import Fingerprint, Manifest
from ...errors import CacheError, StorageError, TgdpoError
from ..console import log, meter, quiet_libraries
from .check import check_engines, other_plan
from .config import TEXT_OPTIONS, ScoreConfig
from .engines import Engine, engine_class
from .engines.isolated import DEATHS, isolated
from .finish import finished_shard, publish_manifest
from .folder import OutputFolder
from .passes import Pass, Progress, run_pass
from .plan import SHARED_ROLES, FreshPlan, ScorePlan, plan_score
from .prepare import prepare
from .records import Prepared
from .reuse import ReusePlan
from .reused_pairs import prepare_reused
from .samples import SAMPLES
from .share import WHOLE, Share
from .template_day import as_recorded

Outcome = TypeVar("Outcome")


def score(config: ScoreConfig) -> Manifest | None:
    """Makes the reward cache, or finishes one that the same settings began.

    Returns:
        The manifest of the finished cache; None where `config.worker` has done its share and others have not.

    Raises:
        TgdpoError: what was asked for cannot work; finished shards stay.
    """
    quiet_libraries()
    # What is wrong with the address is said before models are read.
    with closing(OutputFolder(config.output)) as folder:
        plan = plan_in(folder, config)
        share = Share.parse(config.worker) if config.worker else WHOLE

        def work(plan: ScorePlan) -> Manifest | None:
            finished = finished_already(plan, folder)
            if finished is not None:
                return finished
            return or_finished_elsewhere(plan, folder, lambda: ScoreRun(plan, folder, share).finish())

        return on_recorded_day(plan, folder, work)


def plan_in(folder: OutputFolder, config: ScoreConfig, *, device: torch.device | None = None) -> ScorePlan:
    """The plan of a run in `folder`; arguments and errors as in `plan_score`.

    Work that an earlier version began there is finished under the fingerprint that it was begun with, so that all its
    files say the same; where it read some rows in another way and has not prepared them all, it is started over.
    """
    recorded = _recorded(folder)
    plan = plan_score(config if recorded is None else config.as_begun(recorded, TEXT_OPTIONS), device=device)
    recorded = _recorded(folder)  # again: another worker may have begun while models were hashed
    return plan if recorded is None else as_recorded(plan, recorded)


def _recorded(folder: OutputFolder) -> Fingerprint | None:
    return None if folder.is_begun_with_other_text() else folder.recorded()


def on_recorded_day(plan: ScorePlan, folder: OutputFolder, work: Callable[[ScorePlan], Outcome]) -> Outcome:
    """What `work` returns for the plan. Where another worker began the run on another day after the plan was made, for
    the plan on that day."""
    try:
        return work(plan)
    except CacheError:
        again = as_recorded(plan, folder.recorded() or {})
        if again.fingerprint == plan.fingerprint:
            raise
        return work(again)


def finished_already(plan: ScorePlan, folder: OutputFolder) -> Manifest | None:
    """The manifest where the cache is finished already.

    Raises:
        TgdpoError: the cache there has other settings, or an engine cannot do what is asked of it.
    """
    other_plan(plan)
    finished = folder.finished(plan.fingerprint)
    return finished and _checked(finished, plan, folder)


def _checked(finished: Manifest, plan: ScorePlan, folder: OutputFolder) -> Manifest:
    """The finished cache, with the engine check that is asked for and was not made yet."""
    if plan.config.check_against is None or finished.engine_check is not None:
        log(f"{folder} is finished already, nothing to do")
        return finished
    check = check_engines(plan, [folder.store.file(shard.name) for shard in finished.shards])
    manifest = finished.model_copy(update={"engine_check": check})
    manifest.write(folder.store)
    return manifest


class ScoreRun:
    """A scoring run on its output folder; `finish` does what is missing of this worker's share."""

    def __init__(self, plan: ScorePlan, folder: OutputFolder, share: Share) -> None:
        self.plan = plan
        self.folder = folder
        self.prepared = prepare_checked(plan, folder, share)
        self.shards = [shard for shard in range(len(self.prepared.shard_pairs)) if share.owns(shard)]
        self._shared_engine: Engine | None = None
        self._has_said_engine = False

    def finish(self) -> Manifest | None:
        """Scores the missing shards; publishes the manifest if none is missing then, here or elsewhere."""
        passes = passes_of(self.plan, self.folder, self.prepared)
        missing = passes[-1].missing(self.shards)
        if len(missing) < len(self.shards):
            log(f"going on: {len(self.shards) - len(missing)} of {len(self.shards)} shards are there")
        for each in passes:
            self._run(each)
        left = passes[-1].missing(range(passes[-1].shards))
        if left:
            log(f"this worker's {len(self.shards)} shards are scored; {len(left)} of others are not there yet")
            return None
        return publish_manifest(self.plan, self.prepared, self.folder)

    def _run(self, work: Pass) -> None:
        shards = work.missing(self.shards)
        if not shards:
            return
        engine = self._engine(work, shards)
        self._say_engine()
        with meter(work.role, sum(self.prepared.shard_pairs[shard] for shard in shards)) as bar:
            progress = Progress(bar)
            run_pass(work, shards, engine, progress, lambda shard: self._note(work, shard))
            log(f"{work.role}: {progress.tokens:,} tokens in {bar.seconds:.1f} s, {progress.speed}")
        if engine is not self._shared_engine:
            engine.close()

    def _engine(self, work: Pass, shards: Sequence[int]) -> Engine:
        load = engine_class(work.engine)
        if not work.samples and self.folder.deaths(shards) >= DEATHS:
            log(f"{DEATHS} processes died at one shard: {work.engine} gets one of its own, to find out at which pair")
            self._close_shared()
            engine = isolated(load)(work.spec)
            engine.adapter_on = work.role != "reference"
            return engine
        if not self.plan.shares_base or work.role not in SHARED_ROLES:
            self._close_shared()
            return load(work.spec)
        if self._shared_engine is None:
            self._shared_engine = load(work.spec)
        self._shared_engine.adapter_on = work.role != "reference"
        return self._shared_engine

    def _close_shared(self) -> None:
        if self._shared_engine is not None:
            self._shared_engine.close()
            self._shared_engine = None

    def _say_engine(self) -> None:
        """Once, after a model is loaded, so that the line of a run that cannot start stands alone."""
        if not self._has_said_engine:
            say_engine(self.plan)
        self._has_said_engine = True

    def _note(self, work: Pass, shard: int) -> None:
        if work.is_last:
            note_finished(self.plan, self.prepared, self.folder, shard)


def prepare_checked(
    plan: ScorePlan, folder: OutputFolder, share: Share, help_out: Callable[[], None] = lambda: None
) -> Prepared:
    """The prepared rows of the folder; refuses what cannot be scored before any model is loaded.

    `help_out` may have others prepare shards first.

    Raises:
        TgdpoError: too many rows are set aside, or rows and models do not fit together.
    """
    alone = share == WHOLE
    is_new = folder.claim(plan.fingerprint, alone=alone)
    try:
        prepared = _prepared(plan, folder, share, help_out)
        prepared.set_aside.require_few(prepared.rows_read, plan.config.max_set_aside)
        plan.require_same_tokenizers(conversational=prepared.conversational)
        plan.require_ids_known(prepared.largest_id)
    except StorageError:
        raise  # nothing is wrong with the rows, and what is prepared of them stays
    except TgdpoError:
        if is_new and alone:
            folder.abandon()
        raise
    for note in plan.notes:  # not before, so that the line of a run that cannot start stands alone
        log(note)
    return prepared


def _prepared(plan: ScorePlan, folder: OutputFolder, share: Share, help_out: Callable[[], None]) -> Prepared:
    if isinstance(plan, ReusePlan):
        return prepare_reused(plan, folder, share)
    assert isinstance(plan, FreshPlan)
    help_out()
    return prepare(plan, folder, share)


def or_finished_elsewhere(plan: ScorePlan, folder: OutputFolder, work: Callable[[], Outcome]) -> Outcome | Manifest:
    """What `work` returns. Where its files are gone since another worker has ended the run meanwhile, the manifest."""
    try:
        return work()
    except FileNotFoundError as error:
        finished = folder.finished(plan.fingerprint)
        if finished is None:
            folder.explain_missing(error)
            raise
        return finished


def say_engine(plan: ScorePlan) -> None:
    """Logs which engine the run has and why, where that was left open."""
    if plan.engine.reason:
        log(f"engine: {plan.engine.name} ({plan.engine.reason})")


def passes_of(plan: ScorePlan, folder: OutputFolder, prepared: Prepared) -> list[Pass]:
    """The passes of a run, in their order."""
    return [
        Pass(
            role=role,
            parts=plan.parts,
            is_last=role == plan.roles[-1],
            engine=plan.engine.name,
            spec=plan.engine_spec(role, prepared.longest),
            folder=folder,
            shards=len(prepared.shard_pairs),
            reward_kind=plan.reward_kind_of(role),
            fingerprint=plan.fingerprint,
            samples=plan.config.reference_samples if role == SAMPLES else 0,
        )
        for role in plan.roles
    ]


def jobs_of(plan: ScorePlan, passes: list[Pass]) -> list[list[Pass]]:
    """The passes by the model that does them: two where guidance is an adapter on the reference."""
    shared = [each for each in passes if plan.shares_base and each.role in SHARED_ROLES]
    return ([shared] if shared else []) + [[each] for each in passes if each not in shared]


def note_finished(plan: ScorePlan, prepared: Prepared, folder: OutputFolder, shard: int) -> None:
    """Notes what the manifest will say of a shard; raises DataError where it makes too many rows set aside."""
    lost = finished_shard(folder, shard, len(prepared.shard_pairs)).lost
    if lost:
        log(f"{len(lost)} pairs of shard {shard} have scores that are not finite and are set aside")
        prepared.set_aside.add(lost)
        prepared.set_aside.require_few(prepared.rows_read, plan.config.max_set_aside, plan.model_names)
