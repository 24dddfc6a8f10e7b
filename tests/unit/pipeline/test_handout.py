"""Which worker scores which shard, played through without workers."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdpo.pipeline.handout import Handout


class Pool:
    """Workers that end their shards in any order, and die now and then."""

    def __init__(self, missing: list[list[int]], workers: int, seed: int, deaths: int) -> None:
        self.handout = Handout(missing)
        self.random = random.Random(seed)
        self.deaths = deaths
        self.loads = 0
        self.scored: list[tuple[int, int]] = []
        self.jobs: list[int] = []
        self.busy: dict[int, int] = {}
        for _ in range(workers):
            self.jobs.append(self.load(self.handout.first_job(Counter(self.jobs))))

    def load(self, job: int) -> int:
        self.loads += 1
        return job

    def give(self, worker: int) -> None:
        for _ in range(2):
            shard = self.handout.take(self.jobs[worker])
            if shard is not None:
                self.busy[worker] = shard
                return
            job = self.handout.next_job(self.jobs[worker], Counter(self.jobs))
            if job == self.jobs[worker]:
                return
            self.jobs[worker] = self.load(job)

    def run(self) -> None:
        while not self.handout.is_finished:
            for worker in range(len(self.jobs)):
                if worker not in self.busy:
                    self.give(worker)
            assert self.busy, "shards are left and nobody has one"
            worker = self.random.choice(list(self.busy))
            shard = self.busy.pop(worker)
            if self.deaths and self.random.random() < 0.3:
                self.deaths -= 1
                self.handout.died(self.jobs[worker], shard)
                others = Counter(job for number, job in enumerate(self.jobs) if number != worker)
                self.jobs[worker] = self.load(self.handout.first_job(others))
            else:
                self.handout.done(self.jobs[worker], shard)
                self.scored.append((self.jobs[worker], shard))


@given(
    first=st.sets(st.integers(0, 30)),
    second=st.sets(st.integers(0, 30)),
    workers=st.integers(1, 9),
    seed=st.integers(0, 1000),
    deaths=st.integers(0, 10),
)
@settings(deadline=None)
def test_every_shard_once_per_job_and_the_reference_before_guidance(
    first: set[int], second: set[int], workers: int, seed: int, deaths: int
) -> None:
    """A restart may find any reference shards missing; their guidance shards are then missing too."""
    pool = Pool([sorted(first), sorted(first | second)], workers, seed, deaths)
    pool.run()
    assert sorted(pool.scored) == sorted([(0, shard) for shard in first] + [(1, shard) for shard in first | second])
    assert all(pool.scored.index((0, shard)) < pool.scored.index((1, shard)) for shard in first)


def test_one_job() -> None:
    pool = Pool([list(range(10))], 3, 0, 0)
    pool.run()
    assert pool.loads == 3


def test_models_are_loaded_about_once_a_worker() -> None:
    pool = Pool([list(range(200)), list(range(200))], 8, 0, 0)
    assert Counter(pool.jobs) == {0: 4, 1: 4}
    pool.run()
    assert pool.loads <= 12


def test_one_worker_changes_once() -> None:
    pool = Pool([list(range(20)), list(range(20))], 1, 0, 0)
    pool.run()
    assert pool.loads == 2


@pytest.mark.parametrize(
    ("ready", "holders", "changes"),
    [(3, 2, True), (2, 2, False), (1, 0, True), (0, 0, False)],
)
def test_a_model_is_changed_where_more_shards_are_ready_than_workers_hold_it(
    ready: int, holders: int, changes: bool
) -> None:
    handout = Handout([list(range(ready)), list(range(ready))])
    for _ in range(ready):
        shard = handout.take(0)
        assert shard is not None
        handout.done(0, shard)
    assert handout.next_job(0, Counter({0: 1, 1: holders})) == (1 if changes else 0)


@pytest.mark.parametrize("holders", [0, 1])
def test_a_worker_waits_for_its_own_shards_where_others_hold_the_model(holders: int) -> None:
    """Its guidance shards come once the reference's are scored; meanwhile those are the other worker's to score."""
    handout = Handout([[0, 1, 2], [0, 1, 2]])
    assert handout.take(1) is None
    assert handout.next_job(1, Counter({0: holders, 1: 1})) == (1 if holders else 0)


def test_deaths_are_counted_per_shard() -> None:
    handout = Handout([[4, 7]])
    assert handout.take(0) == 4
    assert handout.died(0, 4) == 1
    assert handout.take(0) == 7
    assert handout.take(0, suspects=False) is None
    assert handout.take(0) == 4
    assert handout.died(0, 4) == 2
    assert handout.died(0, 7) == 1
    assert handout.is_suspect(7)
