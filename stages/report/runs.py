"""What a run folder says of its run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.addresses import is_url
from ...data.store import Store, open_store
from ...errors import TrainingError
from ..train.logs import parse_lines
from ..train.remote import CONFIG, METRICS, RECORD
from ..yaml_text import parse_yaml

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
    """The runs in these folders or at these addresses.

    Raises:
        TrainingError: one holds no run, none that has logged anything, or a damaged one.
        StorageError: an object store does not answer.
    """
    stores = [open_store(folder.rstrip("/") if is_url(folder) else Path(folder)) for folder in folders]
    names = [Path(store.location).resolve().name for store in stores]
    unique = len(set(names)) == len(names)
    return [
        _read(store, name if unique else folder) for store, name, folder in zip(stores, names, folders, strict=True)
    ]


def _read(store: Store, name: str) -> Run:
    try:
        files = store.read_all([RECORD, CONFIG, METRICS])
        if RECORD not in files:
            raise TrainingError(f"{store} holds no run", fix="name the --output folder of tgdpo train")
        finished = json.loads(files[RECORD])["finished"]
        settings = parse_yaml(files.get(CONFIG, b""))
        records = parse_lines(files.get(METRICS, b""), store.address(METRICS))
        if not isinstance(settings, dict):
            raise ValueError("settings that are none")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{store} is damaged ({reason})", fix="look at its run.json, config.yaml and metrics.jsonl"
        ) from error
    if not records:
        raise TrainingError(
            f"{store} has logged nothing yet", fix="wait for its first step, or look at what stopped it"
        )
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
