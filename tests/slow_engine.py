"""An engine without a model, for tests of what runs around one: `--engine slow_engine.SlowEngine`.

Scores follow from the token ids and the model's name. The JSON file of SLOW_ENGINE_SETTINGS may tell it how slow to be
(`seconds` a shard), where to note what it does (`log`), and at which length of a chosen response to kill its process
(`poison`), and where it has one of its own, the one that has started that as well (`deadly`); it is read anew for every
shard, since the workers of a running cluster keep their environment.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.score.engines import Engine, EngineSpec, OnBatch, PairScores


class SlowEngine(Engine):
    """See `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        self.adapter_on = True
        self.name = spec.name
        self._seed = sum(map(ord, Path(spec.name).name))
        self._note("load")

    @staticmethod
    def versions() -> dict[str, str]:
        """Nothing."""
        return {}

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """A value for every response id."""
        self._note("score")
        settings = _settings()
        for pair in pairs:
            if settings.get("deadly") == len(pair.chosen) and sys.argv[0] == "-c":
                os.kill(os.getppid(), signal.SIGKILL)
            if len(pair.chosen) in (settings.get("poison"), settings.get("deadly")):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(settings.get("seconds", 0) / len(pairs))
            on_batch(1, pair.tokens)
        self._note("scored")
        return [PairScores(self._values(pair.chosen), self._values(pair.rejected)) for pair in pairs]

    def _values(self, ids: np.ndarray) -> np.ndarray:
        return -((ids * self._seed) % 97 / 10).astype(np.float32)

    def _note(self, what: str) -> None:
        if log := _settings().get("log"):
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()} {what} {Path(self.name).name} {time.time()}\n")

    def close(self) -> None:
        """Nothing to give back."""


def _settings() -> dict[str, Any]:
    path = os.environ.get("SLOW_ENGINE_SETTINGS")
    content: dict[str, Any] = json.loads(Path(path).read_text()) if path and Path(path).is_file() else {}
    return content
