"""A pass: one model over shards. What it reads, what it writes, and the loop that does all of it in this process."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import pyarrow as pa

from ...data.cache import pair_ids_of
from ...data.manifest import Fingerprint, RewardKind
from ...data.tokenization import PairIds
from ..console import Meter
from .engines import Engine, EngineSpec, OnBatch, PairScores, score_pairs
from .folder import OutputFolder
from .overlap import Writer, ahead
from .run_file import RunFile
from .samples import PairSamples, draws_of, samples_table
from .shards import reference_table, rewards_table, shard_table

Results = list[PairScores] | list[PairSamples]

GUIDE = "guide-"
"""Begins the role of an added guide; its name follows."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One model over the shards of a run; picklable, so that it can be done in another process or machine.

    The last pass of a run writes the finished shards, from what it has made and what the others have left.
    """

    role: str
    """reference, guidance, samples, or `GUIDE` and the name of an added guide."""
    parts: tuple[str, ...]
    """Roles whose columns a finished shard has, this one's among them."""
    is_last: bool
    engine: str
    spec: EngineSpec
    folder: OutputFolder
    shards: int
    """Shards of the run."""
    reward_kind: RewardKind
    """What this pass's scores are; "none" of the reference."""
    fingerprint: Fingerprint
    samples: int = 0
    """Tokens to draw for each response token; 0 for a pass that scores."""

    def output(self, shard: int) -> RunFile:
        """The file that says that a shard needs this pass no more."""
        return self.folder.shard(shard, self.shards) if self.is_last else self.folder.scores(self.role, shard)

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those of `shards` that still need this pass."""
        needed = {shard: {self.output(shard), self.folder.shard(shard, self.shards)} for shard in shards}
        there = self.folder.existing(file for files in needed.values() for file in files)
        return [shard for shard, files in needed.items() if not files & there]

    def pairs(self, shard: int) -> list[PairIds]:
        """The prepared pairs of a shard."""
        columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
        return pair_ids_of(self.folder.tokens(shard).table(columns))

    def compute(self, engine: Engine, shard: int, pairs: Sequence[PairIds], on_batch: OnBatch) -> Results:
        """What the model gives for the pairs of a shard."""
        if not self.samples:
            return score_pairs(engine, pairs, on_batch)
        names = self.folder.tokens(shard).table(["pair_id"])["pair_id"].to_pylist()
        return engine.sample(pairs, draws_of(names, pairs, self.samples), on_batch)

    def write(self, shard: int, scores: Results) -> None:
        """Publishes what the pass makes of a shard, unless another worker was first."""
        for model in filter(None, (self.spec.source, self.spec.adapter)):
            model.require_unchanged()
        table = self._columns(shard, scores)
        if self.is_last:
            others = {role: self.folder.scores(role, shard) for role in self.parts if role != self.role}
            parts = [table if role == self.role else others[role].table() for role in self.parts]
            table = shard_table(self.folder.tokens(shard).table(), parts, fingerprint=self.fingerprint)
        is_ours = self.output(shard).publish_table(table)
        if is_ours and self.is_last:
            self.folder.entry(shard).remove()  # of a file that somebody removed

    def _columns(self, shard: int, results: Results) -> pa.Table:
        if self.samples:
            return samples_table(cast(list[PairSamples], results))
        scores = cast(list[PairScores], results)
        if self.role == "reference":
            return reference_table(scores)
        guide = self.role.removeprefix(GUIDE) if self.role.startswith(GUIDE) else None
        reference = self.folder.scores("reference", shard).table()
        return rewards_table(reference, scores, kind=self.reward_kind, guide=guide)


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

    def write(shard: int, scores: Results) -> None:
        work.write(shard, scores)
        written(shard)

    with Writer() as writer:

        def on_batch(pairs: int, tokens: int) -> None:
            progress.add(pairs, tokens)
            writer.check()

        for shard, pairs in ahead((shard, work.pairs(shard)) for shard in shards):
            with work.folder.begun(shard):
                scores = work.compute(engine, shard, pairs, on_batch)
            writer.submit(partial(write, shard, scores))
