"""The command line in processes of its own that start at once: forked from one that has imported torch already.

As with torchrun, each of several processes finds its rank in the environment.
"""

import errno
import fcntl
import gc
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "preloaded",
        "tgdpo.cli",
        "tgdpo.pipeline.launch",
        "tgdpo.stages.score.run",
        "tgdpo.stages.train.run",
        "datasets",
        "s3fs",
        "peft",
        "transformers.models.llama",
    ]
)


@cache
def start_server() -> None:
    """The process that is forked; a process has one. It imports from the folders that this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()


@dataclass(frozen=True)
class Launch:
    """Processes of one call of the command line; all write to `log`."""

    processes: Sequence[ForkServerProcess]
    log: Path

    def wait(self, seconds: float = 900) -> list[int]:
        """Exit codes; as with torchrun, one that fails ends the others."""
        until = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes) and time.monotonic() < until:
            if any(process.exitcode for process in self.processes):
                time.sleep(0.5)
                break
            time.sleep(0.005)
        self.kill()
        return [process.exitcode or 0 for process in self.processes]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Returns at the moment at which something is so, while all of them are at work."""
        until = time.monotonic() + seconds
        while not condition():
            assert all(process.is_alive() for process in self.processes), self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL to those that are left."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def send(self, number: int) -> None:
        """A signal to each that is left. One may have ended without its parent having been told yet."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    @property
    def output(self) -> str:
        """What they printed."""
        return self.log.read_text()


def launch(
    *arguments: object,
    processes: int = 1,
    log: Path,
    environment: dict[str, str] | None = None,
    machines: Sequence[Path] = (),
) -> Launch:
    """Starts `tgdpo ARGUMENTS` as so many processes, or as one on each machine, which is known by its temporary folder
    here."""
    start_server()
    processes = len(machines) or processes
    words, port = list(map(str, arguments)), _free_port()
    log.touch()
    started = []
    for rank in range(processes):
        settings = {"OMP_NUM_THREADS": "1"} | (environment or {})
        if processes > 1:
            settings |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        if machines:
            settings |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TMPDIR": str(machines[rank])}
        process = _CONTEXT.Process(target=_run, args=(words, settings, str(log)))
        process.start()
        started.append(process)
    return Launch(started, log)


def strike(started: Launch, number: int, chance: random.Random, seconds: float) -> bool:
    """Sends the signal at a random moment; returns whether the run was still at work."""
    (process,) = started.processes
    process.join(chance.uniform(0, seconds))
    if not process.is_alive():
        return False
    started.send(number)
    process.join(60)
    return process.exitcode != 0


HELD_BY = "TGDPO_TEST_HELD_BY"
"""Environment variable with a file's name: the command begins when the file is gone."""


NO_LOCKS = "TGDPO_TEST_NO_LOCKS"
"""Environment variable: the process sees a file system without locks."""


def _refuse_lock(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _run(words: list[str], environment: dict[str, str], log: str) -> None:
    gc.freeze()  # what was imported before is not searched for garbage
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # it may be known from before
    # Tests may be started in a shell's background, where Ctrl-C is ignored. Until the program begins, below, it ends
    # the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    from tgdpo import cli
    from tgdpo.stages import console

    if os.environ.get(NO_LOCKS):
        fcntl.flock = _refuse_lock
    while os.path.exists(os.environ.get(HELD_BY, "")):
        time.sleep(0.002)
    torch.set_num_threads(1)
    console.stderr.quiet = not console.is_main_process()
    sys.argv = ["tgdpo", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
