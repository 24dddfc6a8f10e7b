"""Who trained which steps of a run, and how long: kept in its checkpoints and in run.json."""

import time
from collections.abc import Mapping
from typing import Any

from ...data.versions import FIRST_RELEASE, STEP_VERSION, UNRECORDED
from ...errors import TrainingError


class History:
    """The starts of a run whose steps are in its weights, and the seconds that they trained.

    Args:
        made_with: what this start runs on (`made_with` of stages/provenance.py).
    """

    def __init__(self, made_with: Mapping[str, Any]) -> None:
        self.starts: list[dict[str, Any]] = [{"step": 0, **made_with}]
        """A mapping for each start: `step`, the step that it continued from, and what it ran on."""
        self._before: float | None = 0.0
        self._since = time.monotonic()

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Continues the history that a checkpoint of `step` holds."""
        self.starts = [*_starts_of(state), self.starts[-1] | {"step": step}]
        self._before = state.get("seconds")

    def start_clock(self) -> None:
        """Training begins; what was loaded until now does not count."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float | None:
        """Time spent on training, over all starts; None where 0.1.0, which did not record it, trained a part."""
        return None if self._before is None else round(self._before + time.monotonic() - self._since, 1)

    def state(self) -> dict[str, Any]:
        """JSON values, for a checkpoint and for run.json."""
        return {"step_version": STEP_VERSION, "starts": self.starts, "seconds": self.seconds}


def require_same_steps(state: Mapping[str, Any], whose: str) -> None:
    """Raises TrainingError where steps were computed in another way than by this version.

    Args:
        state: what `History.state` gave then, among other values; 0.1.0 wrote nothing of it.
        whose: begins the message.
    """
    version = state.get("step_version", UNRECORDED)
    if version != STEP_VERSION:
        begun_by = _starts_of(state)[0].get("tgdpo", FIRST_RELEASE)
        raise TrainingError(
            f"{whose} begun by tgdpo {begun_by}, which computes training steps in another way (step version {version}, "
            f"not {STEP_VERSION})",
            fix=f"finish it with tgdpo {begun_by}, or use another --output",
        )


def _starts_of(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    return state.get("starts") or [{"step": 0, "tgdpo": FIRST_RELEASE}]
