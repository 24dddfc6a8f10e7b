"""The run folder: whose it is, how far it came, its metrics.

OUTPUT/config.yaml         the resolved configuration
OUTPUT/metrics.jsonl       one object per logged step
OUTPUT/checkpoints/step-N/
OUTPUT/model.safetensors, config.json, tokenizer.json, README.md …   the trained policy
OUTPUT/run.json            cache and model it was made from; with `finished` written last
"""

import json
from pathlib import Path
from typing import Any

import yaml

from ...data.files import replace
from ...data.manifest import differing_fields
from ...errors import TrainingError
from .checkpoint import newest_checkpoint
from .config import TrainConfig

# What may change between two starts of one run: it does not decide the result.
_FREE_FIELDS = (
    "cache",
    "model",
    "output",
    "resume",
    "device",
    "batch_tokens",
    "gradient_checkpointing",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "keep_checkpoints",
    "report_to",
    "project",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)


class RunFolder:
    """Paths and records of one training run.

    Args:
        config: its `output` is the folder.
        identity: what the run is made from: hashes of cache and model.
    """

    def __init__(self, config: TrainConfig, identity: dict[str, Any]) -> None:
        self.path = Path(config.output).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._config = config
        self._identity = identity
        self._run = self.path / "run.json"
        self._config_file = self.path / "config.yaml"
        self._metrics = self.path / "metrics.jsonl"

    def claim(self) -> dict[str, Any] | None:
        """Makes the folder this run's, or goes on in it. A run that has not trained a step yet is started over.

        Returns:
            The record of the run where it is finished already, else None.

        Raises:
            TrainingError: the folder holds another run, or something else.
        """
        if self._run.is_file():
            record: dict[str, Any] = json.loads(self._run.read_text())
            if record["finished"] or self._has_trained():
                self._require_same(record)
                return record if record["finished"] else None
        elif self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise TrainingError(f"--output {self.path} exists and holds no run", fix="name a new or an empty folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics.unlink(missing_ok=True)
        # The record first: a run that is killed between the two has trained nothing, and is known as one to start over.
        self._write_record(finished=False)
        settings = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False)
        replace(self._config_file, lambda path: path.write_text(settings))
        return None

    def _has_trained(self) -> bool:
        return self.newest_checkpoint() is not None or any(record["step"] > 0 for record in self.read_metrics())

    def _require_same(self, record: dict[str, Any]) -> None:
        theirs = yaml.safe_load(self._config_file.read_text()) | record["identity"]
        ours = self._config.model_dump(mode="json") | self._identity
        fields = differing_fields(ours, theirs, ignore=_FREE_FIELDS)
        if fields:
            raise TrainingError(
                f"--output {self.path} holds a run with other settings: "
                + ", ".join(f"{name} ({theirs.get(name)}, now {ours.get(name)})" for name in fields),
                fix="use the same settings, or another --output",
            )
        if self._config.resume == "never":
            raise TrainingError(
                f"--output {self.path} holds a run already and --resume is never", fix="name another --output"
            )

    def newest_checkpoint(self) -> Path | None:
        """Where to go on from."""
        return newest_checkpoint(self.checkpoints)

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the run as finished."""
        self._write_record(finished=True, summary=summary)

    def _write_record(self, **values: Any) -> None:
        content = json.dumps({"identity": self._identity} | values, indent=1) + "\n"
        replace(self._run, lambda path: path.write_text(content))

    # Metrics

    def start_metrics(self, step: int) -> None:
        """Keeps what was logged up to `step` and drops what a lost part of the run logged after it."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        content = "".join(json.dumps(record) + "\n" for record in kept)
        replace(self._metrics, lambda path: path.write_text(content))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged steps; a last line that was cut by a kill is left out."""
        if not self._metrics.is_file():
            return []
        lines = self._metrics.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
