"""Where metrics go: metrics.jsonl always, TensorBoard, W&B and trackio through accelerate by option."""

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .config import TrainConfig
from .folder import RunFolder
from .parallel import Parallel

DEFAULT_PROJECT = "tgdpo"


def require_installed(report_to: tuple[str, ...]) -> None:
    """Raises UsageError for a tracker whose package is missing (accelerate would leave it out silently)."""
    for tracker in report_to:
        if importlib.util.find_spec(tracker) is None:
            extra = "report" if tracker == "tensorboard" else tracker
            raise UsageError(f"--report-to {tracker}: it is not installed", fix=f"pip install 'tgdpo[{extra}]'")


class Reporter:
    """Writes a record to every place, from the main process."""

    def __init__(self, parallel: Parallel, folder: RunFolder, config: TrainConfig) -> None:
        self._is_main = parallel.is_main
        self._accelerator = parallel.accelerator
        self._folder = folder
        settings = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in config.model_dump(mode="json").items()
        }
        if config.report_to:
            _start(parallel, config, settings, folder.path)

    def log(self, record: dict[str, Any]) -> None:
        """`record` has a `step`; its other numbers are the metrics."""
        if self._is_main:
            self._folder.log_metrics(record)
        self._accelerator.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])


def _start(parallel: Parallel, config: TrainConfig, settings: dict[str, Any], output: Path) -> None:
    """Opens the trackers; a resumed run goes on in the run that it opened before."""
    project = config.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
    names = _names(config, output) if parallel.is_main else {}
    try:
        parallel.accelerator.init_trackers(project, settings, {each: names.get(each, {}) for each in config.report_to})
    except Exception as error:  # each tracker has errors of its own: not logged in, no network, a wrong name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--report-to {' '.join(config.report_to)} does not start ({reason})",
            fix="log in to it, or leave it out; metrics.jsonl is written in any case",
        ) from error


def _names(config: TrainConfig, output: Path) -> dict[str, dict[str, Any]]:
    """What each tracker calls the run, and whether it knows it already."""
    name = config.run_name or output.resolve().name
    id_file = output / "logs" / "tracker_id"
    known = id_file.is_file()
    if not known:
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return {
        "wandb": {"name": name, "id": id_file.read_text(encoding="utf-8"), "resume": "allow"},
        "trackio": {"name": name, "resume": "allow" if known else "never"},
    }
