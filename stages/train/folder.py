"""The run folder: whose it is, how far it came, its metrics.

OUTPUT/config.yaml         the resolved configuration
OUTPUT/metrics.jsonl       one object per logged step
OUTPUT/pairs.jsonl         by option, the pairs of every step
OUTPUT/checkpoints/step-N/
OUTPUT/model.safetensors, config.json, tokenizer.json, README.md …   the trained policy
OUTPUT/run.json            cache and model it was made from; with `finished` written last
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.files import remove_temporaries, replace, sync
from ...data.manifest import differing_fields
from ...errors import TrainingError
from ..console import log, warn
from ..settings import parse_yaml
from .checkpoint import find_checkpoint, problem_of, read_state, remove_leftovers, step_of
from .config import TrainConfig
from .logs import JsonLines

FINISHED = 2**62
"""What `RunFolder.claim` gives for a run that is finished."""

# What may change between two starts of one run: it does not decide the result.
_FREE_FIELDS = (
    "cache",
    "model",
    "reference",
    "output",
    "resume",
    "device",
    "batch_tokens",
    "parallel",
    "gradient_checkpointing",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "keep_checkpoints",
    "checkpoint_state",
    "log_pairs",
    "report_to",
    "project",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)


class RunFolder:
    """Paths and records of one training run. Only the main process may call what writes.

    Args:
        config: its `output` is the folder.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.output).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._config = config
        self._identity: dict[str, Any] = {}
        self._run = self.path / "run.json"
        self._config_file = self.path / "config.yaml"
        self._metrics = JsonLines(self.path / "metrics.jsonl")
        self._pairs = JsonLines(self.path / "pairs.jsonl")

    # Whose it is

    def claim(self, identity: dict[str, Any]) -> int:
        """Makes the folder this run's, or goes on in it. A run that has not trained a step yet is started over.

        Args:
            identity: what the run is made from: hashes of cache and model.

        Returns:
            The step to go on from (see `checkpoint`), 0 to start, or FINISHED.

        Raises:
            TrainingError: the folder holds another run, or something else.
        """
        self._identity = identity
        remove_temporaries(self.path)
        if self._run.is_file():
            record = self.read_record()
            if record["finished"] or self._has_trained():
                self._require_same(record)
                return FINISHED if record["finished"] else self._newest_step()
        elif self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise TrainingError(f"--output {self.path} exists and holds no run", fix="name a new or an empty folder")
        step = self._newest_step()
        self.path.mkdir(parents=True, exist_ok=True)
        # The record first: a run that is killed between the two has trained nothing, and is known as one to start over.
        self._write_record(finished=False)
        replace(self._config_file, lambda path: path.write_text(self._config.to_yaml()))
        return step

    def _has_trained(self) -> bool:
        return any(self.checkpoints.glob("step-*")) or any(record["step"] > 0 for record in self._metrics.read())

    def _require_same(self, record: dict[str, Any]) -> None:
        self._require_settings(self._their_options() | record["identity"], f"--output {self.path} holds a run")
        if self._config.resume == "never":
            raise TrainingError(
                f"--output {self.path} holds a run already and --resume is never", fix="name another --output"
            )

    def _their_options(self) -> dict[str, Any]:
        options, problem = None, "no mapping of options"
        try:
            options = parse_yaml(self._config_file.read_bytes())
        except FileNotFoundError:
            problem = "missing"
        except ValueError as error:
            problem = str(error)
        if not isinstance(options, dict):
            raise TrainingError(f"{self._config_file} is {problem}", fix="restore it, or name another --output")
        return options

    def _require_settings(self, theirs: dict[str, Any], whose: str) -> None:
        ours = self.settings
        fields = differing_fields(ours, theirs, ignore=_FREE_FIELDS)
        if fields:
            raise TrainingError(
                f"{whose} with other settings: "
                + ", ".join(f"{name} ({theirs.get(name)}, now {ours.get(name)})" for name in fields),
                fix="use the same settings, or another --output",
            )

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

    def checkpoint(self, step: int) -> Path | None:
        """The checkpoint to go on from at `step`; None for step 0."""
        own = self.checkpoints / f"step-{step}"
        if step == 0:
            return None
        return own if problem_of(own) is None else self._named_checkpoint

    def _newest_step(self) -> int:
        remove_leftovers(self.checkpoints)
        found = find_checkpoint(self.checkpoints)
        for skipped in found.skipped:
            warn(f"checkpoint {skipped} is skipped: it is not whole")
        own = step_of(found.newest) if found.newest else 0
        named = self._named_checkpoint
        if named is None:
            return own
        step = self._step_of_named(named)
        if own >= step:
            log(f"{self.path} holds step {own} already, so it goes on from there")
        return max(own, step)

    def _step_of_named(self, named: Path) -> int:
        if not named.is_dir():
            raise TrainingError(f"--resume {named}: no such folder", fix="name a checkpoint, RUN/checkpoints/step-N")
        problem = problem_of(named)
        if problem:
            raise TrainingError(f"--resume {named} is no whole checkpoint: {problem}", fix="name another")
        state = read_state(named)
        self._require_settings(state["settings"], f"--resume {named} is of a run")
        return int(state["step"])

    # What it leaves

    def publish(self, write: Callable[[Path], object]) -> None:
        """Puts the files that `write(folder)` makes into the run folder, each whole or not there."""
        temporary = self.path / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
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
        """run.json: identity, `finished`, and then the `summary`. Raises TrainingError where it is damaged."""
        try:
            record: dict[str, Any] = json.loads(self._run.read_bytes())
            if not isinstance(record["identity"] | {}, dict) or not isinstance(record["finished"], bool):
                raise ValueError("other values than it had")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrainingError(
                f"{self._run} is damaged ({error})", fix="restore it, or name another --output"
            ) from error
        return record

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as finished."""
        self._write_record(finished=True, summary=summary)

    def _write_record(self, **values: Any) -> None:
        content = json.dumps({"identity": self._identity} | values, indent=1) + "\n"
        replace(self._run, lambda path: path.write_text(content))

    # Logs

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
        """Waits until they are on disk; a checkpoint relies on them."""
        for log_file in (self._metrics, self._pairs):
            log_file.sync()
