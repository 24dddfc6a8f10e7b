"""An engine that does what its arguments say, in a process of its own. It imports no more than it needs: each such
process does so anew.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tgdpo.data.tokenization import PairIds
from tgdpo.errors import ModelError, UsageError
from tgdpo.stages.score.engines import EngineSpec, OnBatch, PairScores
from tgdpo.stages.score.engines.dummy import DummyEngine
from tgdpo.stages.score.engines.process import ProcessEngine

DEADLY_PROMPT = 7
"""Tokens of the prompt that kills the process with `then="killed-over-one"`."""


class OddEngine(DummyEngine):
    """`then` says what it does instead of scoring; the file `pids` gets the numbers of its process and of one that it
    starts."""

    notes: ClassVar[list[str]] = ["a line for people"]

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(EngineSpec(source=spec.source, dtype=spec.dtype, device=spec.device, batch_tokens=1))
        self._then = spec.arguments.get("then")
        if pids := spec.arguments.get("pids"):
            grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(pids).write_text(f"{os.getpid()} {grandchild.pid}")
        if self._then == "refuse":
            raise UsageError("the option cannot work", fix="leave it out")

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        sys.stdout.write("noise on stdout\n")
        sys.stdout.flush()
        if self._then == "raise":
            raise ZeroDivisionError("division of something")
        if self._then == "model-error":
            raise ModelError("the model cannot", fix="take another")
        if self._then == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._then == "exit":
            os._exit(3)
        if self._then == "killed-over-one" and any(len(pair.prompt) == DEADLY_PROMPT for pair in pairs):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._then == "hang":
            while True:
                on_batch(0, 0)
                time.sleep(0.1)
        return super().score(pairs, on_batch)


class InItsOwnProcess(ProcessEngine):
    """The wrapper under test."""

    inner = f"{__name__}.OddEngine"

    @staticmethod
    def versions() -> dict[str, str]:
        """Nothing."""
        return {}
