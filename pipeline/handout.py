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
        self._unfinished = [set(shards) for shards in missing]
        before = [set[int](), *self._unfinished]
        self._blocked = [set(shards) & earlier for shards, earlier in zip(missing, before, strict=False)]
        self._ready = [
            deque(shard for shard in shards if shard not in blocked)
            for shards, blocked in zip(missing, self._blocked, strict=True)
        ]
        self._deaths: Counter[int] = Counter()

    @property
    def is_finished(self) -> bool:
        """Whether every job has scored every shard."""
        return not any(self._unfinished)

    @property
    def left(self) -> int:
        """Shards that are not scored yet, counted once per job."""
        return sum(map(len, self._unfinished))

    def waiting(self, job: int) -> int:
        """Shards of `job` that nobody has been given yet."""
        return len(self._ready[job]) + len(self._blocked[job])

    def deaths(self, shard: int) -> int:
        """How many workers have died over it."""
        return self._deaths[shard]

    def is_suspect(self, shard: int) -> bool:
        """Whether a worker has died over it. Alone with the next one, it shows whose fault that is."""
        return self._deaths[shard] > 0

    def take(self, job: int, *, suspects: bool = True) -> int | None:
        """The next shard of `job`, None where none is ready; without `suspects` none that a worker has died over."""
        ready = self._ready[job]
        if not ready or (self.is_suspect(ready[0]) and not suspects):
            return None
        return ready.popleft()

    def done(self, job: int, shard: int) -> None:
        """`shard` is scored."""
        self._unfinished[job].discard(shard)
        if job + 1 < len(self._ready) and shard in self._blocked[job + 1]:
            self._blocked[job + 1].discard(shard)
            self._ready[job + 1].append(shard)

    def died(self, job: int, shard: int) -> int:
        """The worker that had `shard` died. The shard is handed out again, last.

        Returns:
            How often that has happened to this shard.
        """
        self._deaths[shard] += 1
        self._ready[job].append(shard)
        return self._deaths[shard]

    def first_job(self, holders: Counter[int]) -> int:
        """The job for a new worker: one that nobody holds, else the one with the most shards per worker.

        Args:
            holders: the number of workers that hold each job's model.
        """
        return max(
            range(len(self._ready)),
            key=lambda job: (
                self.waiting(job) > 0 and holders[job] == 0,
                self.waiting(job) / (holders[job] + 1),
                -job,
            ),
        )

    def next_job(self, job: int, holders: Counter[int]) -> int:
        """The job of a worker that has got none of `job`'s shards: another only where loading its model pays, that is
        where more shards are ready than workers hold it."""
        for other, ready in enumerate(self._ready):
            if other != job and not (self.waiting(job) and holders[other]) and len(ready) > holders[other]:
                return other
        return job
