"""What runs inside a Ray actor: one model, scoring the shards that it is handed."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

from ..data.tokenization import PairIds
from ..stages.console import quiet_libraries
from ..stages.models import ModelSource, resolve
from ..stages.score.engines import Engine, EngineSpec, engine_class
from ..stages.score.engines.isolated import DEATHS, isolated
from ..stages.score.engines.process import ProcessEngine
from ..stages.score.finish import finished_shard
from ..stages.score.passes import Pass, Results
from ..stages.score.records import SetAsideRow


class Done(NamedTuple):
    """How far a shard is."""

    shard: int = -1
    pairs: int = 0
    tokens: int = 0


class ShardWorker:
    """One engine for the passes of a job: one pass, or two where guidance is an adapter on the reference."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._passes = passes
        self._engine: Engine | None = None
        self._turn = Lock()
        self._done = Done()

    def load(self) -> None:
        """Loads the model. Apart from the constructor, so that its errors arrive as they are."""
        quiet_libraries()
        work = self._passes[0]
        self._engine = engine_class(work.engine)(_at_hand(work.spec))

    def score(self, shard: int, deaths: int = 0) -> tuple[Done, list[SetAsideRow]]:
        """Scores a shard and publishes it, unless somebody else has.

        Two calls at a time overlap: one shard is read, and another written, while a third is computed.

        Args:
            shard: its number.
            deaths: how many workers have died over it.

        Returns:
            What was done, and the rows that were lost to scores that are not finite.
        """
        done = Done(shard)
        for work in self._passes:
            if work.missing([shard]):
                pairs = work.pairs(shard)
                with self._turn:
                    if deaths >= DEATHS and not work.samples:
                        self._isolate()
                    self._done = done
                    results = self._results(work, shard, pairs)
                    done = self._done
                work.write(shard, results)
        last = self._passes[-1]
        lost = finished_shard(last.folder, shard, last.shards).lost if last.is_last else []
        return done, lost

    def _isolate(self) -> None:
        """From now on the engine has a process of its own: the pair that ends it is found, and this worker lives."""
        work = self._passes[0]
        engine = isolated(engine_class(work.engine))
        if not isinstance(self._engine, ProcessEngine):
            assert self._engine is not None
            self._engine.close()
            self._engine = engine(_at_hand(work.spec))

    def progress(self) -> Done:
        """How far the shard is that is being computed; answered while `score` runs."""
        return self._done

    def _results(self, work: Pass, shard: int, pairs: list[PairIds]) -> Results:
        assert self._engine is not None
        self._engine.adapter_on = work.role != "reference"
        return work.compute(self._engine, shard, pairs, self._count)

    def _count(self, pairs: int, tokens: int) -> None:
        done = self._done
        self._done = Done(done.shard, done.pairs + pairs, done.tokens + tokens)


def _at_hand(spec: EngineSpec) -> EngineSpec:
    """The spec with models on this machine: a hub model that the launcher's machine has is fetched here too."""
    return replace(spec, source=_local(spec.source), adapter=_local(spec.adapter) if spec.adapter else None)


def _local(source: ModelSource) -> ModelSource:
    if source.folder.is_dir():
        return source
    # In the hub's cache the folder is named by the commit, and it must be the same here.
    name = f"{source.name.partition('@')[0]}@{source.folder.name}"
    return replace(source, folder=resolve(name, "model", trust_remote_code=source.trust_remote_code).folder)
