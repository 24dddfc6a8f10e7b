"""TDPO (Zeng et al., ICML 2024): DPO with a KL term per token, exact or estimated.

Legend: B pairs, L response tokens of the longest response.
"""

from torch import Tensor

from .dpo import implicit_rewards, log_sigmoid_losses, ones, ratios
from .types import LossOutput, LossSettings, ResponseTokens


def tdpo1(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """phi = beta * ((S_w - S_l) - (K_l - K_w)), with S = sum_t d_t and K = sum_t KL(pi_ref || pi_theta) at y_t."""
    return _with_margin(chosen, rejected, _kl(rejected) - _kl(chosen), settings)


def tdpo2(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """phi = beta * ((S_w - S_l) - tdpo_alpha * (K_l - K_w)), K_w being a constant in the gradient."""
    return _with_margin(chosen, rejected, settings.tdpo_alpha * (_kl(rejected) - _kl(chosen).detach()), settings)


def _with_margin(
    chosen: ResponseTokens, rejected: ResponseTokens, margin: Tensor, settings: LossSettings
) -> LossOutput:
    phi = settings.beta * (chosen.masked_sum(ratios(chosen)) - rejected.masked_sum(ratios(rejected)) - margin)
    rewards = implicit_rewards(chosen, rejected, settings)
    return LossOutput(log_sigmoid_losses(phi, settings), phi, ones(chosen), ones(rejected), *rewards)


def _kl(side: ResponseTokens) -> Tensor:
    assert side.ref_kl is not None, "this objective needs the reference's distributions"
    return side.masked_sum(side.ref_kl)
