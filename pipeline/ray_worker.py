"""What runs inside a Ray actor: one model, scoring the shards that it is handed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..stages.console import quiet_libraries
from ..stages.models import ModelSource, resolve
from ..stages.score.engines import Engine, EngineSpec, engine_class
from ..stages.score.finish import finished_shard
from ..stages.score.passes import Pass
from ..stages.score.records import SetAsideRow


class Done(NamedTuple):
    """How far a shard is."""

    pairs: int = 0
    tokens: int = 0


class ShardWorker:
    """One engine for the passes of a job: one pass, or two where guidance is an adapter on the reference."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._passes = passes
        self._engine: Engine | None = None
        self._done = Done()

    def load(self) -> None:
        """Loads the model. Apart from the constructor, so that its errors arrive as they are."""
        quiet_libraries()
        work = self._passes[0]
        self._engine = engine_class(work.engine)(_at_hand(work.spec))

    def score(self, shard: int) -> tuple[Done, list[SetAsideRow]]:
        """Scores a shard and publishes it, unless somebody else has.

        Returns:
            What was done, and the rows that were lost to scores that are not finite.
        """
        assert self._engine is not None
        self._done = Done()
        for work in self._passes:
            if work.missing([shard]):
                self._engine.adapter_on = work.role == "guidance"
                work.write(shard, self._engine.score(work.pairs(shard), self._count))
        last = self._passes[-1]
        lost = finished_shard(last.folder, shard, last.shards).lost if last.is_last else []
        return self._done, lost

    def progress(self) -> Done:
        """How far the current shard is; answered while `score` runs."""
        return self._done

    def _count(self, pairs: int, tokens: int) -> None:
        self._done = Done(self._done.pairs + pairs, self._done.tokens + tokens)


def _at_hand(spec: EngineSpec) -> EngineSpec:
    """The spec with models on this machine: a hub model that the launcher's machine has is fetched here too."""
    return replace(spec, source=_local(spec.source), adapter=_local(spec.adapter) if spec.adapter else None)


def _local(source: ModelSource) -> ModelSource:
    if source.folder.is_dir():
        return source
    # In the hub's cache the folder is named by the commit, and it must be the same here.
    name = f"{source.name.partition('@')[0]}@{source.folder.name}"
    return replace(source, folder=resolve(name, "model", trust_remote_code=source.trust_remote_code).folder)
