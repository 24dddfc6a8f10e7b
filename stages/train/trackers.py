"""Where metrics go: metrics.jsonl always, TensorBoard, W&B and trackio through accelerate by option."""

import importlib.util
from typing import Any

from ...errors import UsageError
from .config import TrainConfig
from .folder import RunFolder
from .parallel import Parallel


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
            self._accelerator.init_trackers("tgdpo", config=settings)

    def log(self, record: dict[str, Any]) -> None:
        """`record` has a `step`; its other numbers are the metrics."""
        if self._is_main:
            self._folder.log_metrics(record)
        self._accelerator.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])
