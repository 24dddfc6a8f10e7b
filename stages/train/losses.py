"""The objectives as pure functions of tensors.

Legend: B pairs, L response tokens of the longest response.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .shapes import linear


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

    def masked_sum(self, values: Tensor) -> Tensor:
        """Sum over a response's tokens, [B]; what lies under the padding does not count."""
        return values.masked_fill(~self.completion_mask, 0).sum(-1)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Hyperparameters of the objectives; see `TrainConfig` for their meaning."""

    beta: float = 0.1
    alpha: float = 0.5
    beta_r: float | None = None
    shape: Callable[[Tensor], Tensor] = linear
    f_clip: float | None = None
    label_smoothing: float = 0.0


class LossOutput(NamedTuple):
    """What an objective gives, per pair [B] or per token [B, L]."""

    losses: Tensor
    """[B], carries the gradient."""
    phi: Tensor
    """[B], the argument of the sigmoid."""
    f_chosen: Tensor
    """[B, L], weights of the chosen tokens."""
    f_rejected: Tensor
    """[B, L]"""


Loss = Callable[[ResponseTokens, ResponseTokens, LossSettings], LossOutput]


def tgdpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """TGDPO (Zhu et al., ICML 2025, Eq. 16 and 17): DPO whose tokens are weighted by f(r_t).

    phi = beta * (sum_t f_w d_t - sum_t f_l d_t) with d_t = log pi_theta - log pi_ref, f_w = 1 + alpha r_t,
    f_l = 1 - alpha r_t, r_t = beta_r * rewards; sums without length normalisation. f is a constant in the gradient.
    """
    f_chosen = _f(chosen.rewards, +1, settings)
    f_rejected = _f(rejected.rewards, -1, settings)
    return _weighted_dpo(chosen, rejected, f_chosen, f_rejected, settings)


def dpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """DPO (Rafailov et al., 2023, Eq. 7), with label smoothing conservative DPO; f is 1 everywhere."""
    ones = torch.ones_like(chosen.ref_logps), torch.ones_like(rejected.ref_logps)
    return _weighted_dpo(chosen, rejected, *ones, settings)


LOSSES: dict[str, Loss] = {"tgdpo": tgdpo, "dpo": dpo}


def _f(rewards: Tensor, sign: int, settings: LossSettings) -> Tensor:
    beta_r = settings.beta if settings.beta_r is None else settings.beta_r
    f = 1 + sign * settings.alpha * settings.shape(beta_r * rewards.detach())
    return f if settings.f_clip is None else f.clamp(1 - settings.f_clip, 1 + settings.f_clip)


def _weighted_dpo(
    chosen: ResponseTokens, rejected: ResponseTokens, f_chosen: Tensor, f_rejected: Tensor, settings: LossSettings
) -> LossOutput:
    chosen_sum = chosen.masked_sum(f_chosen * (chosen.policy_logps - chosen.ref_logps))
    rejected_sum = rejected.masked_sum(f_rejected * (rejected.policy_logps - rejected.ref_logps))
    phi = settings.beta * (chosen_sum - rejected_sum)
    smoothing = settings.label_smoothing
    losses = -F.logsigmoid(phi) * (1 - smoothing) - F.logsigmoid(-phi) * smoothing
    return LossOutput(losses, phi, f_chosen, f_rejected)
