"""Who scores which shard next: the plan of a pool of workers, without the pool.

A job is a model's pass over its shards. A second job's shard waits for the first job's (guidance needs the reference's
scores of the same shard, of no other), so that both run at once on different workers.
"""

from collections import Counter, deque
from collections.abc import Sequence

DEATHS_ALLOWED = 3
"""A shard whose worker has died so often is not tried again."""


class Handout:
    """What is left to do.

    Args:
        missing: the shards that each job still has to score, in the order of the jobs.
    """

    def __init__(self, missing: Sequence[Sequence[int]]) -> None:
        self._waiting = [deque(shards) for shards in missing]
        self._unfinished = [set(shards) for shards in missing]
        self._deaths: Counter[int] = Counter()

    @property
    def is_finished(self) -> bool:
        """Whether every job has scored every shard."""
        return not any(self._unfinished)

    @property
    def left(self) -> int:
        """Shards that are not scored yet, counted once per job."""
        return sum(map(len, self._unfinished))

    def take(self, job: int) -> int | None:
        """The next shard of `job`, None where none is ready."""
        for shard in self._waiting[job]:
            if self._is_ready(job, shard):
                self._waiting[job].remove(shard)
                return shard
        return None

    def done(self, job: int, shard: int) -> None:
        """`shard` is scored."""
        self._unfinished[job].discard(shard)

    def died(self, job: int, shard: int) -> int:
        """The worker that scored `shard` died. The shard is handed out again, last.

        Returns:
            How often that has happened to this shard.
        """
        self._deaths[shard] += 1
        self._waiting[job].append(shard)
        return self._deaths[shard]

    def first_job(self, holders: Counter[int]) -> int:
        """The job for a new worker: one that nobody holds, else the one with the most shards per worker.

        Args:
            holders: the number of workers that hold each job's model.
        """
        return max(
            range(len(self._waiting)),
            key=lambda job: (
                bool(self._waiting[job]) and holders[job] == 0,
                len(self._waiting[job]) / (holders[job] + 1),
                -job,
            ),
        )

    def next_job(self, job: int, holders: Counter[int]) -> int:
        """The job of a worker that has got none of `job`'s shards: another only where loading its model pays, that is
        where more shards are ready than workers hold it."""
        for other, waiting in enumerate(self._waiting):
            if other == job or (self._waiting[job] and holders[other]):
                continue
            if sum(self._is_ready(other, shard) for shard in waiting) > holders[other]:
                return other
        return job

    def _is_ready(self, job: int, shard: int) -> bool:
        return job == 0 or shard not in self._unfinished[job - 1]
