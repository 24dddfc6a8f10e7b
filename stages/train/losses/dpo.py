"""DPO and its relatives: weighted sums of d_t = log pi_theta(y_t) - log pi_ref(y_t).

Legend: B pairs, L response tokens of the longest response.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..shapes import Shape, rank
from .types import LossOutput, LossSettings, ResponseTokens


def tgdpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """TGDPO (Zhu et al., ICML 2025, Eq. 16 and 17): DPO whose tokens are weighted by f(r_t).

    phi = beta * (sum_t f_w d_t - sum_t f_l d_t) with d_t = log pi_theta - log pi_ref, f_w = 1 + alpha r_t,
    f_l = 1 - alpha r_t, r_t = beta_r * rewards; sums without length normalisation. f is a constant in the gradient.
    """
    return weighted_dpo(chosen, rejected, _f(chosen, +1, settings), _f(rejected, -1, settings), settings)


def dpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """DPO (Rafailov et al., 2023, Eq. 7), with label smoothing conservative DPO; f is 1 everywhere."""
    return weighted_dpo(chosen, rejected, ones(chosen), ones(rejected), settings)


def ld_dpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """LD-DPO (Liu et al., 2024): tokens past the length of the pair's shorter response weigh ld_alpha."""
    shared = torch.minimum(chosen.lengths, rejected.lengths)[:, None]

    def f(side: ResponseTokens) -> Tensor:
        return ones(side).masked_fill(_places(side) >= shared, settings.ld_alpha)

    return weighted_dpo(chosen, rejected, f(chosen), f(rejected), settings)


def d2po(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """D2PO (Shao et al., ICLR 2025): token t, counted from 0, weighs d2po_gamma^t."""

    def f(side: ResponseTokens) -> Tensor:
        return settings.d2po_gamma ** _places(side).to(side.ref_logps)

    return weighted_dpo(chosen, rejected, f(chosen), f(rejected), settings)


def tis_dpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """TIS-DPO (Liu et al., ICLR 2025) with the authors' weights by rank, without its term for the sequences' KL.

    Tokens weigh from 1 - tis_spread to 1 + tis_spread, evenly spaced by the place of their contrast in their response:
    the highest most in a chosen response, the lowest most in a rejected one.
    """
    spread = settings.tis_spread
    return weighted_dpo(chosen, rejected, _by_contrast(chosen, spread), _by_contrast(rejected, -spread), settings)


def ipo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """IPO (Azar et al., 2023, Eq. 17): (phi - 1 / (2 beta))^2, beta being its tau.

    phi compares means of d_t over tokens, as TRL does on its authors' word, so the target does not depend on length.
    """
    phi = chosen.masked_mean(ratios(chosen)) - rejected.masked_mean(ratios(rejected))
    losses = (phi - 1 / (2 * settings.beta)) ** 2
    return LossOutput(losses, phi, ones(chosen), ones(rejected), *implicit_rewards(chosen, rejected, settings))


def weighted_dpo(
    chosen: ResponseTokens, rejected: ResponseTokens, f_chosen: Tensor, f_rejected: Tensor, settings: LossSettings
) -> LossOutput:
    """DPO on sums of f_t d_t.

    Args:
        f_chosen, f_rejected: weights of the tokens, [B, L].
    """
    chosen_sum = chosen.masked_sum(f_chosen * ratios(chosen))
    rejected_sum = rejected.masked_sum(f_rejected * ratios(rejected))
    phi = settings.beta * (chosen_sum - rejected_sum)
    rewards = implicit_rewards(chosen, rejected, settings)
    return LossOutput(log_sigmoid_losses(phi, settings), phi, f_chosen, f_rejected, *rewards)


def log_sigmoid_losses(phi: Tensor, settings: LossSettings) -> Tensor:
    """-log sigmoid(phi) [B], label_smoothing being the probability that a pair is the other way round."""
    smoothing = settings.label_smoothing
    return -F.logsigmoid(phi) * (1 - smoothing) - F.logsigmoid(-phi) * smoothing


def implicit_rewards(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """beta * sum_t d_t [B] of both sides, without f, as every DPO trainer logs them."""
    return tuple(settings.beta * side.masked_sum(ratios(side)).detach() for side in (chosen, rejected))  # type: ignore[return-value]


def ratios(side: ResponseTokens) -> Tensor:
    """d_t, [B, L]."""
    return side.policy_logps - side.ref_logps


def ones(side: ResponseTokens) -> Tensor:
    """Weights of a side that weighs all tokens alike, [B, L]."""
    return torch.ones_like(side.ref_logps)


def _places(side: ResponseTokens) -> Tensor:
    """0, 1, 2 … at a response's tokens, [B, L]."""
    return side.completion_mask.cumsum(-1) - 1


def _f(side: ResponseTokens, sign: int, settings: LossSettings) -> Tensor:
    """1 + alpha g(r_t) or 1 - alpha g(r_t), [B, L]; 1 under the padding."""
    beta_r = settings.beta if settings.beta_r is None else settings.beta_r
    f = ones(side)
    f[side.completion_mask] += sign * settings.alpha * _by_response(side, beta_r * side.rewards, settings.shape).to(f)
    return f if settings.f_clip is None else f.clamp(1 - settings.f_clip, 1 + settings.f_clip)


def _by_contrast(side: ResponseTokens, spread: float) -> Tensor:
    """1 + spread at a response's highest contrast, 1 - spread at its lowest, [B, L]; 1 under the padding."""
    assert side.contrast is not None, "this objective needs two guides"
    weights = ones(side)
    weights[side.completion_mask] += spread * _by_response(side, side.contrast, _place).to(weights)
    return weights


def _place(values: Tensor) -> Tensor:
    """-1 for the lowest value, 1 for the highest, the others evenly spaced between, equal ones at their mean place."""
    return rank(values) * (len(values) / max(1, len(values) - 1))


def _by_response(side: ResponseTokens, values: Tensor, shape: Shape) -> Tensor:
    """`shape` of each response's values, one after the other: it may compare a response's tokens with one another."""
    rows = torch.split(values.detach()[side.completion_mask], side.lengths.tolist())
    return torch.cat([shape(row) for row in rows])
