"""f of Eq. 17 in numpy: what a token's reward becomes in the loss, without loading torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .config import InspectConfig

Values = npt.NDArray[np.float64]

SHAPES: dict[str, Callable[[Values], Values]] = {
    "linear": lambda r: r,
    # 2 sigmoid(r) - 1
    "sigmoid": lambda r: np.tanh(r / 2),
    "clipped-linear": lambda r: np.clip(r, -1, 1),
}


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """f = 1 + alpha g(r) for chosen and 1 - alpha g(r) for rejected tokens, r = beta_r * reward."""

    alpha: float
    beta_r: float
    shape: str
    clip: float | None

    @classmethod
    def of(cls, config: InspectConfig) -> "Modulation":
        """The options' f."""
        beta_r = config.beta if config.beta_r is None else config.beta_r
        return cls(alpha=config.alpha, beta_r=beta_r, shape=config.f_shape, clip=config.f_clip)

    def __call__(self, rewards: npt.ArrayLike, side: str) -> Values:
        """f of every token; `side` is chosen or rejected."""
        sign = 1 if side == "chosen" else -1
        f = 1 + sign * self.alpha * SHAPES[self.shape](self.beta_r * np.asarray(rewards, np.float64))
        return f if self.clip is None else np.clip(f, 1 - self.clip, 1 + self.clip)
