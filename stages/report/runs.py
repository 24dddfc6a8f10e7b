"""What a run folder says of its run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import TrainingError
from ..settings import parse_yaml
from ..train.logs import JsonLines

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, finished or not."""

    name: str
    """Its folder's name, or path where two runs have one name."""
    settings: dict[str, Any]
    """The resolved configuration."""
    records: tuple[Record, ...]
    """The lines of metrics.jsonl."""
    finished: bool

    @property
    def last(self) -> dict[str, float]:
        """The last finite value of every metric."""
        return {name: value for record in self.records for name, value in numbers(record).items()}


def numbers(record: Record) -> dict[str, float]:
    """The finite numbers of a record."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def read_runs(folders: list[str]) -> list[Run]:
    """The runs in these folders.

    Raises:
        TrainingError: one holds no run, none that has logged anything, or a damaged one.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    names = [path.resolve().name for path in paths]
    unique = len(set(names)) == len(names)
    return [_read(path, name if unique else str(path)) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    record_file, metrics = path / "run.json", path / "metrics.jsonl"
    if not record_file.is_file():
        raise TrainingError(f"{path} holds no run", fix="name the --output folder of tgdpo train")
    try:
        finished = json.loads(record_file.read_text())["finished"]
        settings = parse_yaml((path / "config.yaml").read_bytes())
        records = JsonLines(metrics).read()
        if not isinstance(settings, dict) or not all(isinstance(each.get("step"), int) for each in records):
            raise ValueError("a record without a step, or settings that are none")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{path} is damaged ({reason})", fix="look at its run.json, config.yaml and metrics.jsonl"
        ) from error
    if not records:
        raise TrainingError(f"{path} has logged nothing yet", fix="wait for its first step, or look at what stopped it")
    return Run(name=name, settings=settings, records=tuple(records), finished=bool(finished))


def shown_settings(runs: list[Run]) -> dict[str, list[str]]:
    """Settings by run: those that differ, after the ones that a run is known by."""
    known = ("cache", "model", "loss", "beta", "alpha", "learning_rate", "batch_size", "epochs", "lora_rank", "seed")
    every = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in every if len({repr(run.settings.get(name)) for run in runs}) > 1]
    names = dict.fromkeys([name for name in known if name in every] + differing)
    return {name: [_shown(run.settings.get(name)) for run in runs] for name in names if name != "output"}


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
