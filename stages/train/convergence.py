"""Stopping at convergence as the paper does (section 5.3): the moving average of the loss falls below a threshold."""

import math
from collections import deque
from collections.abc import Iterable


class Convergence:
    """The losses of the last steps, and whether their mean is low enough to stop.

    Args:
        threshold: the mean must be below it; None never stops.
        window: steps of the moving average; before so many are done nothing is decided.
        losses: what `state` gave when the run was left.
    """

    def __init__(self, threshold: float | None, window: int, losses: Iterable[float] = ()) -> None:
        self._threshold = threshold
        self._losses: deque[float] = deque(losses, maxlen=window)

    def add(self, loss: float) -> None:
        """The mean loss of one more optimizer step, over all its pairs."""
        self._losses.append(loss)

    @property
    def average(self) -> float:
        """The moving average; not a number before the first step."""
        return math.fsum(self._losses) / len(self._losses) if self._losses else math.nan

    @property
    def reached(self) -> bool:
        """Whether to stop."""
        is_full = len(self._losses) == self._losses.maxlen
        return self._threshold is not None and is_full and self.average < self._threshold

    def state(self) -> list[float]:
        """What a checkpoint keeps, so that a resumed run stops at the same step."""
        return list(self._losses)
