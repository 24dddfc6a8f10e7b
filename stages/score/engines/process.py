"""An engine in a process of its own, so that its memory is really free when the process has ended.

The parent sends pairs down a pipe and gets scores, progress and errors back. The child leads a session of its own: it
gets no Ctrl-C from the terminal, and all that it starts (an engine's workers) ends with it. It watches its standard
input, which closes when the parent is gone however that came about. What it prints goes to a log file, which is kept
where something failed.
"""

import _thread
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, ClassVar

from .... import errors
from ....data.tokenization import PairIds
from ....errors import ModelError, TgdpoError
from ...console import log
from . import Engine, EngineSpec, OnBatch, PairScores, class_at
from .halving import EngineDeathError, score_halves

SECONDS_TO_END = 60.0
"""How long a child may take to end by itself."""

SECONDS_BETWEEN_REPORTS = 0.2
"""How often a child tells its progress."""

_CHILD = "from tgdpo.stages.score.engines.process import serve; serve()"


class ProcessEngine(Engine):
    """Runs the engine at `inner` in a process of its own. See `Engine`.

    The inner engine may have `notes`, lines for people that are logged once it is loaded.
    """

    inner: ClassVar[str]
    """Dotted path of the engine that the child runs."""

    def __init__(self, spec: EngineSpec) -> None:
        self.name = spec.name
        self._spec = spec
        self._start()

    def _start(self) -> None:
        spec = self._spec
        descriptor, self._log_path = _new_log(self.inner)
        try:
            self._connection, theirs = Pipe()
            os.set_inheritable(theirs.fileno(), True)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
                | {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # of its log, whatever the locale
                | self.environment(spec),
            )  # fmt: skip
        finally:
            os.close(descriptor)
        theirs.close()
        self._end = weakref.finalize(self, _end_child, self._process, self._connection)
        self._send((self.inner, spec))
        for note in self._receive("ready"):
            log(note)

    @staticmethod
    def environment(spec: EngineSpec) -> dict[str, str]:  # noqa: ARG004
        """Environment variables that the child gets beside the parent's."""
        return {}

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """See `Engine.score`. A pair over which the process dies gets scores that are not finite (see `halving`).

        Raises:
            TgdpoError: what the inner engine raised, or the process died and no single pair is to blame; the engine is
                closed then.
        """
        try:
            return self._score(pairs, on_batch)
        except EngineDeathError as death:
            if len(pairs) == 1:
                raise
            return score_halves(pairs, lambda part: self._score(part, on_batch), death)

    def _score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        if not self._end.alive:
            self._log_path.unlink(missing_ok=True)
            self._start()
        self._send((self.adapter_on, list(pairs)))
        found: list[PairScores] = self._receive("scores", on_batch)
        return found

    def close(self) -> None:
        """Ends the process and waits for its end; its log goes."""
        if self._end.alive:
            with contextlib.suppress(OSError):
                self._connection.send(None)
            _exited(self._process, SECONDS_TO_END)
            self._end()
            self._log_path.unlink(missing_ok=True)

    def _send(self, content: object) -> None:
        try:
            self._connection.send(content)
        except OSError:
            raise self._death() from None

    def _receive(self, wanted: str, on_batch: OnBatch | None = None) -> Any:
        """What comes with the message `wanted`; progress on the way goes to `on_batch`."""
        try:
            while True:
                kind, content = self._connection.recv()
                if kind == wanted:
                    return content
                if kind == "batch" and on_batch:
                    on_batch(*content)
                elif kind == "error":
                    raise self._error(*content)
                elif kind == "failed":
                    self._end()
                    raise EngineDeathError(
                        f"{self.name} failed ({content})", fix=f"the whole story is in {self._log_path}"
                    )
        except (EOFError, OSError):
            raise self._death() from None
        except KeyboardInterrupt:
            self._end()
            self._log_path.unlink(missing_ok=True)
            raise

    def _error(self, kind: str, problem: str, fix: str) -> TgdpoError:
        error: type[TgdpoError] = getattr(errors, kind)
        _exited(self._process, SECONDS_TO_END)
        self._end()
        if issubclass(error, ModelError):
            return error(problem, fix=f"{fix}; its log is {self._log_path}")
        self._log_path.unlink(missing_ok=True)
        return error(problem, fix=fix)

    def _death(self) -> TgdpoError:
        _exited(self._process, SECONDS_TO_END)
        self._end()
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        cause = ", most likely by the system, for want of memory" if code == -signal.SIGKILL else ""
        return EngineDeathError(
            f"the process of {self.name} died ({how}{cause})",
            fix=f"finished shards are kept; its log is {self._log_path}",
        )


def _new_log(inner: str) -> tuple[int, Path]:
    descriptor, name = tempfile.mkstemp(prefix=f"tgdpo-{inner.rpartition('.')[2]}-", suffix=".log")
    return descriptor, Path(name)


def _exited(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the child ends within `seconds`. It is not reaped, so that its number still names its session."""
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _end_child(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    """Ends the child and everything in its session, whatever state they are in."""
    with contextlib.suppress(OSError):
        connection.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


# The child


def serve() -> None:
    """The child's main: loads the engine that the parent names, scores what it sends, ends with it."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    code = 1
    try:
        # threading.Thread.start could wait for ever where memory is short.
        _thread.start_new_thread(_end_with_parent, ())
        _serve_on(connection)
        connection.close()
        code = 0
    finally:
        # Libraries' threads and exit handlers have nothing left to do, and some wait for ever.
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve_on(connection: Connection) -> None:
    try:
        dotted, spec = connection.recv()
        engine = class_at(dotted)(spec)
        connection.send(("ready", getattr(engine, "notes", [])))
        while (work := connection.recv()) is not None:
            engine.adapter_on, pairs = work
            reporter = _Reporter(connection)
            scores = engine.score(pairs, reporter)
            reporter.send()
            connection.send(("scores", scores))
        engine.close()
    except TgdpoError as error:
        traceback.print_exc()
        connection.send(("error", (type(error).__name__, error.problem, error.fix)))
    except (EOFError, ConnectionError):
        _end_session()  # the parent is gone
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {first_line(error)}"))


class _Reporter:
    """Sends progress now and then: a message wakes the parent, which has better things to do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pairs = self._tokens = 0
        self._last = time.monotonic()

    def __call__(self, pairs: int, tokens: int) -> None:
        self._pairs += pairs
        self._tokens += tokens
        if time.monotonic() - self._last >= SECONDS_BETWEEN_REPORTS:
            self.send()

    def send(self) -> None:
        self._connection.send(("batch", (self._pairs, self._tokens)))
        self._pairs = self._tokens = 0
        self._last = time.monotonic()


def _end_with_parent() -> None:
    """Returns never: standard input ends when the parent does."""
    sys.stdin.buffer.read()
    _end_session()


def _end_session() -> None:
    """Ends this process and all that it started."""
    os.killpg(0, signal.SIGKILL)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
