"""A pass: one model over shards. What it reads, what it writes, and the loop that does all of it in this process."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ...data.cache import pair_ids_of
from ...data.manifest import Fingerprint, RewardKind
from ...data.schema import write_parquet
from ...data.store import StoredFile
from ...data.tokenization import PairIds
from ..console import Meter
from .engines import Engine, EngineSpec, PairScores, score_pairs
from .folder import OutputFolder
from .overlap import Writer, ahead
from .shards import reference_table, shard_table

Role = Literal["reference", "guidance"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One model over the shards of a run; picklable, so that it can be done in another process or machine.

    The last pass of a run writes the finished shards: that of guidance, or that of the reference without one.
    """

    role: Role
    engine: str
    spec: EngineSpec
    folder: OutputFolder
    shards: int
    """Shards of the run."""
    reward_kind: RewardKind
    fingerprint: Fingerprint

    @property
    def is_last(self) -> bool:
        """Whether this pass writes the finished shards."""
        return self.role == "guidance" or self.reward_kind == "none"

    def output(self, shard: int) -> StoredFile:
        """The file that says that a shard needs this pass no more."""
        return self.folder.shard(shard, self.shards) if self.is_last else self.folder.reference(shard)

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those of `shards` that still need this pass."""
        needed = {shard: {self.output(shard), self.folder.shard(shard, self.shards)} for shard in shards}
        there = self.folder.existing(file for files in needed.values() for file in files)
        return [shard for shard, files in needed.items() if not files & there]

    def pairs(self, shard: int) -> list[PairIds]:
        """The prepared pairs of a shard."""
        columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
        return pair_ids_of(self.folder.tokens(shard).table(columns))

    def write(self, shard: int, scores: Sequence[PairScores]) -> None:
        """Publishes what the pass makes of a shard, unless another worker was first."""
        table = reference_table(scores)
        if self.is_last:
            table = shard_table(
                self.folder.tokens(shard).table(),
                table if self.role == "reference" else self.folder.reference(shard).table(),
                scores if self.role == "guidance" else None,
                kind=self.reward_kind,
                fingerprint=self.fingerprint,
            )
        is_ours = self.output(shard).publish(lambda path: write_parquet(table, path))
        if is_ours and self.is_last:
            self.folder.entry(shard).remove()  # of a file that somebody removed


class Progress:
    """Counts tokens and shows them beside the bar."""

    def __init__(self, bar: Meter) -> None:
        self.bar = bar
        self.tokens = 0

    def add(self, pairs: int, tokens: int) -> None:
        """So much more is done."""
        self.tokens += tokens
        self.bar.advance(pairs, self.speed)

    @property
    def speed(self) -> str:
        """Tokens per second so far."""
        return f"{self.tokens / self.bar.seconds:,.0f} tokens/s"


def run_pass(
    work: Pass, shards: Sequence[int], engine: Engine, progress: Progress, written: Callable[[int], None]
) -> None:
    """Scores `shards`: the next one's tokens are read ahead, the last one's results are written behind.

    `written` is called in the writer's thread after each shard; an error there, or of the writing itself, stops the
    pass after the batch that is being computed.
    """

    def write(shard: int, scores: list[PairScores]) -> None:
        work.write(shard, scores)
        written(shard)

    with Writer() as writer:

        def on_batch(pairs: int, tokens: int) -> None:
            progress.add(pairs, tokens)
            writer.check()

        for shard, pairs in ahead((shard, work.pairs(shard)) for shard in shards):
            writer.submit(partial(write, shard, score_pairs(engine, pairs, on_batch)))
