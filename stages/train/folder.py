"""The run folder: whose it is, how far it came, its metrics. Of a run in an object store it is a copy (see remote.py).

OUTPUT/config.yaml         the resolved configuration
OUTPUT/metrics.jsonl       one object per logged step
OUTPUT/pairs.jsonl         by option, the pairs of every step
OUTPUT/checkpoints/step-N/
OUTPUT/model.safetensors, config.json, tokenizer.json, README.md …   the trained policy
OUTPUT/run.json            cache and model it was made from, what trained it; with `finished` written last
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ...data.addresses import is_url
from ...data.files import follow_umask, remove_temporaries, replace, sync
from ...data.lock import Lock
from ...errors import TrainingError
from ..console import log, warn
from .checkpoint import Checkpoints
from .config import TrainConfig
from .history import History, require_same_steps
from .lock import LOCK, lock_run
from .logs import JsonLines, another_at_work, parse_lines
from .marker import problem_of, read_state
from .parallel import Parallel
from .recorded import options_in, require_same_settings
from .remote import CHECKPOINTS, CONFIG, METRICS, PAIRS, RECORD, RemoteRun, working_folder


class Start(NamedTuple):
    """How a run starts."""

    step: int = 0
    """The step of the checkpoint that it goes on from; 0 without."""
    is_own: bool = True
    """Whether that checkpoint is the run's own, and not one that --resume names."""
    summary: dict[str, Any] | None = None
    """The last metrics of a run that is finished; None of one that is not."""


class RunFolder:
    """Paths and records of one training run. Only the main process may call what writes.

    Args:
        config: its `output` is the folder, or the address of a run in an object store.

    Raises:
        UsageError: the address cannot be opened.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path = working_folder(config.output)
        self.output: Path | str = config.output if is_url(config.output) else self.path
        self._remote = RemoteRun(config.output, self.path) if is_url(config.output) else None
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS, self._remote)
        self._config = config
        self._identity: dict[str, Any] = {}
        self._id = uuid.uuid4().hex
        self._run = self.path / RECORD
        self._config_file = self.path / CONFIG
        self._lock: Lock | None = None
        self._made_folder = False
        self._metrics = JsonLines(self.path / METRICS, self._address(METRICS))
        self._pairs = JsonLines(self.path / PAIRS, self._address(PAIRS))

    def _address(self, name: str) -> str:
        """Where a file lies, for people."""
        return f"{str(self.output).rstrip('/')}/{name}"

    def shown(self, path: Path) -> str:
        """A path, as the address that it has in the store where it is a copy of something there."""
        is_copy = self._remote is not None and path.is_relative_to(self.path)
        return self._address(path.relative_to(self.path).as_posix()) if is_copy else str(path)

    # Whose it is

    def claim(self, identity: dict[str, Any], history: History) -> Start:
        """Makes the folder this run's, or resumes the run in it. A run that has not trained a step yet is started over.

        Args:
            identity: what the run is made from: hashes of cache and model.
            history: of a run that starts now.

        Raises:
            TrainingError: the folder holds another run, one whose steps were computed in another way, or something
                else; or another process is at work in it.
        """
        self._identity = identity
        if self._remote:
            self._follow(self._remote)
        if not self._run.is_file() and self._holds_something_else():
            raise TrainingError(f"--output {self.output} exists and holds no run", fix="name a new or an empty folder")
        finished = self._finished()
        if finished:
            return finished
        self._made_folder = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_run(self.path, self.output)
        remove_temporaries(self.path)
        finished = self._finished()  # meanwhile
        if finished:
            return finished
        if self._run.is_file() and self._has_trained():
            record = self.read_record()
            self._require_same(record)
            require_same_steps(record, f"--output {self.output} was")
            self._id = record.get("id", self._id)
            return self._newest()
        start = self._newest()
        # The record first: a run that is killed between the two has trained nothing, and is known as one to start over.
        self._write_record(history, finished=False)
        replace(self._config_file, lambda path: path.write_text(self._config.to_yaml(), encoding="utf-8"))
        if self._remote:
            self._remote.put_logs()
        return start

    def _finished(self) -> Start | None:
        """The start of a run that is finished already. Raises TrainingError where it is another run."""
        record = self.read_record() if self._run.is_file() else None
        if record is None or not record["finished"]:
            return None
        self._require_same(record)
        return Start(summary=record["summary"])

    def close(self) -> None:
        """Lets other processes train in the folder."""
        if self._lock is not None:
            self._lock.remove()
            self._lock = None
        if self._made_folder:
            with suppress(OSError):
                self.path.rmdir()  # a start that was refused has put nothing there

    def explain_missing(self, error: Exception) -> NoReturn:
        """Says in a TrainingError why a file is missing: the folder is gone, or another process removed it."""
        if not self.path.is_dir():
            raise TrainingError(
                f"--output {self.output} is gone: it was moved or removed while the run was at work",
                fix="run the same command with its new name, it is resumed there",
            ) from error
        file = getattr(error, "filename", None) or "a file"
        raise another_at_work(f"{file} in {self.output}", done="removed") from error

    def require_alone(self) -> None:
        """Raises TrainingError where another process was at work in the run since this one last wrote to it."""
        record = self._remote.read(RECORD) if self._remote else self._run.read_bytes()
        if _id_of(record) != self._id:  # one that has started the run over
            raise another_at_work(self._address(RECORD))
        for log_file in (self._metrics, self._pairs):
            log_file.require_unchanged()
        self.checkpoints.require_known()

    def _follow(self, remote: RemoteRun) -> None:
        """Makes the folder what the store has, unless it is further in the same run."""
        ours, theirs = _id_of(self._run.read_bytes() if self._run.is_file() else None), _id_of(remote.read(RECORD))
        # A record that is damaged there is no reason to give up what is here.
        if ours != theirs and (theirs or not remote.holds_anything()):
            shutil.rmtree(self.path, ignore_errors=True)
        if not self.checkpoints.is_ahead():
            remote.fetch_logs()

    def _holds_something_else(self) -> bool:
        if self._remote:
            return self._remote.holds_anything()
        return self.path.is_file() or (
            self.path.is_dir() and bool({path.name for path in self.path.iterdir()} - {LOCK})
        )

    def _has_trained(self) -> bool:
        return self.checkpoints.exist() or any(record["step"] > 0 for record in self._metrics.read())

    def _require_same(self, record: dict[str, Any]) -> None:
        # What an earlier version did not note of its inputs cannot be compared.
        theirs = self._their_options() | self._identity | record["identity"]
        require_same_settings(self.settings, theirs, f"--output {self.output} holds a run")
        if self._config.resume == "never":
            raise TrainingError(
                f"--output {self.output} holds a run already and --resume is never", fix="name another --output"
            )

    def _their_options(self) -> dict[str, Any]:
        if not self._config_file.is_file():
            problem = "missing"
        else:
            options, problem = options_in(self._config_file.read_bytes())
            if options is not None:
                return options
        raise TrainingError(f"{self._address(CONFIG)} is {problem}", fix="restore it, or name another --output")

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration and what the run is made from; a checkpoint holds them too."""
        return self._config.model_dump(mode="json") | self._identity

    # Where it goes on

    @property
    def _named_checkpoint(self) -> Path | None:
        """The folder that --resume names."""
        resume = self._config.resume
        return None if resume in ("auto", "never") else Path(resume).expanduser()

    def checkpoint(self, start: Start, parallel: Parallel) -> Path | None:
        """The checkpoint to go on from; None for a run that starts. All processes must call it."""
        if start.step == 0:
            return None
        if not start.is_own:
            return self._named_checkpoint
        if self._remote and parallel.is_first_of_machine and not parallel.is_main:
            problem = self.checkpoints.fetch(start.step)
            if problem:
                raise TrainingError(f"checkpoint step-{start.step} is not whole: {problem}", fix="start again")
        parallel.wait()
        return self.checkpoints.path(start.step)

    def _newest(self) -> Start:
        found = self.checkpoints.newest()
        if found.damaged and found.step == 0:
            raise TrainingError(
                f"no checkpoint of {self.output} is whole: {', '.join(found.skipped)}",
                fix="restore one from a copy, or start in another --output",
            )
        for skipped in found.skipped:
            warn(f"checkpoint {skipped} is skipped: it is not whole")
        named = self._named_checkpoint
        if named is None:
            return Start(found.step)
        step = self._step_of_named(named)
        if found.step >= step:
            log(f"{self.output} holds step {found.step} already, so it goes on from there")
            return Start(found.step)
        return Start(step, is_own=False)

    def _step_of_named(self, named: Path) -> int:
        if is_url(self._config.resume):
            raise TrainingError(
                f"--resume {self._config.resume} is no folder",
                fix="copy the checkpoint to one; in one --output, the same command goes on by itself",
            )
        if not named.is_dir():
            raise TrainingError(f"--resume {named}: no such folder", fix="name a checkpoint, RUN/checkpoints/step-N")
        problem = problem_of(named)
        if problem:
            raise TrainingError(f"--resume {named} is no whole checkpoint: {problem}", fix="name another")
        values = read_state(named).values
        require_same_settings(self.settings, self._identity | values["settings"], f"--resume {named} is of a run")
        require_same_steps(values, f"--resume {named} is of a run")
        return int(values["step"])

    # What it leaves

    def publish(self, write: Callable[[Path], object]) -> None:
        """Puts the files that `write(folder)` makes into the run folder, each whole or not there."""
        temporary = self.path / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        follow_umask(temporary)
        for path in sorted(temporary.iterdir()):
            final = self.path / path.name
            if path.is_dir():
                shutil.rmtree(final, ignore_errors=True)
            else:
                sync(path)
            os.replace(path, final)
        temporary.rmdir()
        sync(self.path)

    def read_record(self) -> dict[str, Any]:
        """run.json: identity, `id`, the history, `finished`, and then `tokens` and the `summary`. Raises TrainingError
        where it is damaged."""
        try:
            record: dict[str, Any] = json.loads(self._run.read_bytes())
            summary = record["summary"] if record["finished"] else {}
            if not all(isinstance(each, dict) for each in (record["identity"], summary, *record.get("starts", []))):
                raise ValueError("other values than it had")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrainingError(
                f"{self._address(RECORD)} is damaged ({error})", fix="restore it, or name another --output"
            ) from error
        return record

    def finish(self, summary: dict[str, Any], history: History) -> None:
        """Marks the run as finished."""
        if self._remote:
            self._remote.put_run()
        self._write_record(history, finished=True, tokens=summary["tokens"], summary=summary)

    def _write_record(self, history: History, **values: Any) -> None:
        record = {"identity": self._identity, "id": self._id, **history.state(), **values}
        content = json.dumps(record, indent=1) + "\n"
        replace(self._run, lambda path: path.write_text(content, encoding="utf-8"))
        if self._remote:
            self._remote.put_record()

    def fetch_model(self) -> Path:
        """The folder of the trained policy, which another start may have trained."""
        if self._remote:
            self._remote.fetch_model()
        return self.path

    def leave(self) -> None:
        """Removes what is on this machine of a run that the store has all of."""
        if self._remote:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    # Logs

    def logged(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, of a run in a store up to its last checkpoint."""
        if self._remote:
            return parse_lines(self._remote.read(METRICS) or b"", self._address(METRICS))
        return self._metrics.read()

    def start_logs(self, step: int) -> None:
        """Keeps what was logged up to `step` and drops what a lost part of the run logged after it."""
        for log_file in (self._metrics, self._pairs):
            log_file.cut(step)

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        self._metrics.append(record)

    def log_pairs(self, record: dict[str, Any]) -> None:
        """Appends one object to pairs.jsonl."""
        self._pairs.append(record)

    def sync_logs(self) -> None:
        """Waits until they are on disk, or in the store; a checkpoint relies on them."""
        for log_file in (self._metrics, self._pairs):
            log_file.sync()
        if self._remote:
            self._remote.put_logs()


def _id_of(record: bytes | None) -> str | None:
    """The id in a run.json; None where there is none."""
    with suppress(ValueError, AttributeError, RecursionError):
        found = json.loads(record or b"").get("id")
        return found if isinstance(found, str) else None
    return None
