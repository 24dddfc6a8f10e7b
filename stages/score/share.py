"""Which shards a worker takes where several share a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Worker `index` of `count`: every `count`-th shard from `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads "i/n", i from 0 to n - 1. Raises ValueError for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError("write i/n for worker i of n, with i from 0 to n-1")
        return cls(int(index), int(count))

    def owns(self, shard: int) -> bool:
        """Whether the shard is this worker's."""
        return shard % self.count == self.index


WHOLE = Share()
"""All shards: a run without other workers."""
