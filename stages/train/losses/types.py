"""What an objective takes and gives.

Legend: B pairs, L response tokens of the longest response.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..shapes import Shape, linear


class ResponseTokens(NamedTuple):
    """The responses of one side (chosen or rejected), padded on the right. All [B, L], any float dtype."""

    policy_logps: Tensor
    """log pi_theta(y_t | x, y_<t); carries the gradient."""
    ref_logps: Tensor
    """log pi_ref(y_t | x, y_<t)."""
    rewards: Tensor
    """Token rewards per unit of beta: log pi_guide - log pi_ref, or a reward model's."""
    completion_mask: Tensor
    """Bool, True at response tokens."""
    ref_kl: Tensor | None = None
    """KL(pi_ref || pi_theta) of the distributions that y_t is drawn from, in nats, or an estimate of it; carries the
    gradient. For the objectives that need it."""
    contrast: Tensor | None = None
    """log pi_positive - log pi_negative of two opposed guides, in nats. For the objectives that need it."""

    @property
    def lengths(self) -> Tensor:
        """Response tokens, int64 [B]."""
        return self.completion_mask.sum(-1)

    def masked_sum(self, values: Tensor) -> Tensor:
        """Sum over a response's tokens, [B]; what lies under the padding does not count."""
        return values.masked_fill(~self.completion_mask, 0).sum(-1)

    def masked_mean(self, values: Tensor) -> Tensor:
        """Mean over a response's tokens, [B]; 0 of an empty one."""
        return self.masked_sum(values) / self.lengths.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Hyperparameters of the objectives; see `TrainConfig` for their meaning."""

    beta: float = 0.1
    alpha: float = 0.5
    beta_r: float | None = None
    shape: Shape = linear
    f_clip: float | None = None
    label_smoothing: float = 0.0
    gamma_beta_ratio: float = 0.55
    ld_alpha: float = 0.5
    d2po_gamma: float = 0.98
    sepo_ratio: float = 0.3
    tdpo_alpha: float = 0.5
    tis_spread: float = 0.3


class LossOutput(NamedTuple):
    """What an objective gives, per pair [B] or per token [B, L]."""

    losses: Tensor
    """[B], carries the gradient."""
    phi: Tensor
    """[B], the argument of the sigmoid, or what an objective without one compares."""
    f_chosen: Tensor
    """[B, L], weights of the chosen tokens."""
    f_rejected: Tensor
    """[B, L]"""
    rewards_chosen: Tensor
    """[B], the reward that the objective implies, for the metrics."""
    rewards_rejected: Tensor
    """[B]"""


Loss = Callable[[ResponseTokens, ResponseTokens, LossSettings], LossOutput]
