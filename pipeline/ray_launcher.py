"""`tgdpo score --launcher ray`: shards handed to a pool of actors, on one machine or a cluster.

An actor loads one model once and scores shard after shard. One that dies is started again and its shard handed out
again; publishing is first-wins, so that a shard that was scored twice is there once. All state is files in the output
folder: if this process dies, the same command goes on.
"""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from ..data.manifest import Manifest
from ..errors import ModelError, TgdpoError
from ..stages.console import log, meter, quiet_libraries
from ..stages.score.config import ScoreConfig
from ..stages.score.finish import publish_manifest
from ..stages.score.folder import OutputFolder
from ..stages.score.passes import Progress
from ..stages.score.plan import FreshPlan, ScorePlan
from ..stages.score.prepare import prepare_share
from ..stages.score.records import Prepared, SetAsideRow
from ..stages.score.run import (
    finished_already,
    jobs_of,
    on_recorded_day,
    or_finished_elsewhere,
    passes_of,
    plan_in,
    prepare_checked,
    say_engine,
)
from ..stages.score.share import WHOLE, Share
from .handout import DEATHS_ALLOWED, Handout
from .ray_cluster import Pool, cluster, device_of, gpus_at_hand, gpus_of_worker, import_ray, last_line, pool_of
from .ray_worker import Done, ShardWorker

SECONDS_BETWEEN_POLLS = 1.0
IN_HAND = 2
"""Shards that a worker has got at a time: one to compute, one to read or write meanwhile."""


def score_with_ray(config: ScoreConfig) -> Manifest:
    """Makes the reward cache, or finishes one that the same settings began.

    Raises:
        TgdpoError: what was asked for cannot work, or a shard lets every worker die; finished shards stay.
    """
    ray = import_ray()
    quiet_libraries()
    with closing(OutputFolder(config.output)) as folder, cluster(ray, config.address):
        at_hand = gpus_at_hand(ray, config)
        plan = plan_in(folder, config, device=device_of(config, at_hand))
        gpus = gpus_of_worker(config, plan.engine.name, plan.engine_arguments, at_hand)
        pool = pool_of(ray, config, gpus)

        def work(plan: ScorePlan) -> Manifest:
            finished = finished_already(plan, folder)
            if finished is not None:
                return finished
            return or_finished_elsewhere(plan, folder, lambda: _finish(ray, plan, folder, pool))

        return on_recorded_day(plan, folder, work)


def _finish(ray: Any, plan: ScorePlan, folder: OutputFolder, pool: Pool) -> Manifest:
    def help_out() -> None:
        if isinstance(plan, FreshPlan):
            _prepare_everywhere(ray, plan, folder, pool)

    prepared = prepare_checked(plan, folder, WHOLE, help_out)
    say_engine(plan)
    RayRun(ray, plan, folder, prepared, pool).finish()
    return publish_manifest(plan, prepared, folder)


def _prepare_everywhere(ray: Any, plan: FreshPlan, folder: OutputFolder, pool: Pool) -> None:
    """Tokenises on the cluster where several workers are there to share it."""
    if pool.workers == 1 or (folder.shard_count() and not folder.unprepared()):
        return
    log(f"tokenising in {pool.workers} shares")
    task = ray.remote(prepare_share).options(num_cpus=1)
    shared = ray.put(plan)
    waiting = [task.remote(shared, folder, Share(number, pool.workers)) for number in range(pool.workers)]
    while waiting:
        ready, waiting = ray.wait(waiting)
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            for left in waiting:
                ray.cancel(left, force=True)
            if isinstance(error.cause, TgdpoError | OSError):
                raise error.cause from None
            raise


@dataclass(eq=False)
class Worker:
    """An actor, as the launcher sees it. `held` are the shards that it has got, and how far they are."""

    number: int
    job: int
    actor: Any
    is_loaded: bool = False
    held: dict[int, Done] = field(default_factory=dict)
    asked: bool = False

    def __str__(self) -> str:
        return f"worker {self.number}"


class RayRun:
    """The passes of a prepared run on a pool of actors."""

    def __init__(self, ray: Any, plan: ScorePlan, folder: OutputFolder, prepared: Prepared, pool: Pool) -> None:
        self.ray = ray
        self.plan = plan
        self.prepared = prepared
        self.pool = pool
        self.jobs = jobs_of(plan, passes_of(plan, folder, prepared))
        self.missing = [job[-1].missing(range(len(prepared.shard_pairs))) for job in self.jobs]
        self.handout = Handout(self.missing)
        self.workers: list[Worker] = []
        self._answers: dict[Any, tuple[Worker, str]] = {}
        self._deaths_while_loading = 0
        self._stop: TgdpoError | None = None

    def finish(self) -> None:
        """Scores what is missing."""
        if self.handout.is_finished:
            return
        pairs = sum(
            self.prepared.shard_pairs[shard] * len(job)
            for job, shards in zip(self.jobs, self.missing, strict=True)
            for shard in shards
        )
        with meter("scoring", pairs) as bar:
            self.progress = Progress(bar)
            for number in range(min(self.pool.workers, self.handout.left)):
                self._start(number)
            try:
                while not self.handout.is_finished and self._answers:
                    self._wait()
            finally:
                for worker in self.workers:
                    self.ray.kill(worker.actor)
            log(f"{self.progress.tokens:,} tokens in {bar.seconds:.1f} s, {self.progress.speed} over all workers")
        if self._stop:
            raise self._stop

    # Workers

    def _start(self, number: int, job: int | None = None) -> None:
        """A new worker, for `job` or for the one that needs it most."""
        job = self.handout.first_job(self._holders()) if job is None else job
        actor_class = self.ray.remote(ShardWorker).options(
            num_gpus=self.pool.gpus, num_cpus=self.pool.cpus, max_restarts=0, max_concurrency=IN_HAND + 1
        )
        worker = Worker(number, job, actor_class.remote(self.jobs[job]))
        self.workers.append(worker)
        self._answers[worker.actor.load.remote()] = (worker, "load")

    def _holders(self) -> Counter[int]:
        return Counter(worker.job for worker in self.workers)

    def _retire(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.ray.kill(worker.actor)
        self._answers = {ref: answer for ref, answer in self._answers.items() if answer[0] is not worker}

    def _give(self, worker: Worker) -> None:
        """The next shards for a worker; where its job has none left, it may change to the other."""
        if self._stop:
            return
        while self._may_hold_more(worker):
            shard = self.handout.take(worker.job, suspects=not worker.held)
            if shard is None:
                break
            worker.held[shard] = Done(shard)
            self._answers[worker.actor.score.remote(shard, self.handout.deaths(shard))] = (worker, "score")
        job = worker.job if worker.held else self.handout.next_job(worker.job, self._holders())
        if job != worker.job:
            self._retire(worker)
            self._start(worker.number, job)

    def _may_hold_more(self, worker: Worker) -> bool:
        if not worker.held:
            return True
        # A second one only while there are enough for all, and none beside a shard that may kill its worker.
        is_suspect = any(self.handout.is_suspect(shard) for shard in worker.held)
        enough = self.handout.waiting(worker.job) > self._holders()[worker.job]
        return len(worker.held) < IN_HAND and enough and not is_suspect

    # Answers

    def _wait(self) -> None:
        ready, _ = self.ray.wait(list(self._answers), timeout=SECONDS_BETWEEN_POLLS)
        for ref in ready:
            if ref in self._answers:
                self._answered(ref)
        if not ready:
            self._ask_for_progress()

    def _ask_for_progress(self) -> None:
        for worker in self.workers:
            if worker.held and not worker.asked:
                worker.asked = True
                self._answers[worker.actor.progress.remote()] = (worker, "progress")

    def _answered(self, ref: Any) -> None:
        worker, kind = self._answers.pop(ref)
        try:
            result = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, TgdpoError | OSError):
                raise cause from None
            self._died(worker, error)
            return
        if kind == "progress":
            worker.asked = False
            self._count(worker, result)
            return
        worker.is_loaded = True
        if kind == "score":
            self._scored(worker, *result)
        else:
            self._deaths_while_loading = 0
        for each in self.workers:
            if each is worker or (each.is_loaded and not each.held):
                self._give(each)

    def _scored(self, worker: Worker, done: Done, lost: list[SetAsideRow]) -> None:
        self._count(worker, done)
        del worker.held[done.shard]
        self.handout.done(worker.job, done.shard)
        if lost:
            log(f"{len(lost)} pairs of shard {done.shard} have scores that are not finite and are set aside")
            self.prepared.set_aside.add(lost)
            self.prepared.set_aside.require_few(
                self.prepared.rows_read, self.plan.config.max_set_aside, self.plan.model_names
            )

    def _count(self, worker: Worker, done: Done) -> None:
        """Moves the bar from what was known of the worker's shard to `done`."""
        known = worker.held.get(done.shard)
        if known is not None:
            self.progress.add(done.pairs - known.pairs, done.tokens - known.tokens)
            worker.held[done.shard] = done

    # Deaths

    def _died(self, worker: Worker, error: Exception) -> None:
        self._retire(worker)
        role = " and ".join(each.role for each in self.jobs[worker.job])
        reason = last_line(error)
        if not worker.held:
            self._deaths_while_loading += 1
            log(f"{worker} died without a shard ({role}): {reason}")
            if self._deaths_while_loading >= DEATHS_ALLOWED:
                self._stop_with(f"workers for the {role} died {DEATHS_ALLOWED} times before they had a shard: {reason}")
        for shard in worker.held:
            self._count(worker, Done(shard))
            deaths = self.handout.died(worker.job, shard)
            log(f"{worker} died with shard {shard} ({role}), death {deaths} of {DEATHS_ALLOWED}: {reason}")
            if deaths >= DEATHS_ALLOWED:
                self._stop_with(f"{self._name(shard)} let {deaths} workers die ({role}), the last by: {reason}")
        if not self._stop:
            self._start(worker.number)

    def _stop_with(self, problem: str) -> None:
        """Hands nothing out any more; what is being scored is waited for."""
        fix = "look at the workers' output above; what is scored stays, the same command goes on from there"
        self._stop = self._stop or ModelError(problem, fix=fix)
        for worker in [each for each in self.workers if not each.held]:
            self._retire(worker)

    def _name(self, shard: int) -> str:
        first = shard * self.plan.config.pairs_per_shard
        return f"shard {shard} (source rows {first} to {first + self.plan.config.pairs_per_shard - 1})"
