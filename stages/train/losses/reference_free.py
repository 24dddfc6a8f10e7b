"""Objectives on the policy's own log-probabilities; they read no reference.

Legend: B pairs, L response tokens of the longest response.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dpo import log_sigmoid_losses
from .types import LossOutput, LossSettings, ResponseTokens


def simpo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """SimPO (Meng et al., NeurIPS 2024, Eq. 6): phi = beta * (mean log pi_w - mean log pi_l) - gamma.

    gamma, the target margin, is gamma_beta_ratio * beta. The implied reward is beta * mean log pi.
    """
    rewards = [settings.beta * side.masked_mean(side.policy_logps) for side in (chosen, rejected)]
    phi = rewards[0] - rewards[1] - settings.beta * settings.gamma_beta_ratio
    ones = torch.ones_like(chosen.policy_logps), torch.ones_like(rejected.policy_logps)
    return LossOutput(log_sigmoid_losses(phi, settings), phi, *ones, *(reward.detach() for reward in rewards))


def sepo(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:
    """SePO (Yang et al., 2024): the sepo_ratio of a chosen response's tokens with the highest token rewards against
    the same share of a rejected response's with the lowest.

    phi = beta * (mean log pi of kept chosen tokens - mean log pi of kept rejected tokens). At least one token is kept,
    and of equal rewards the first. f is 1 at kept tokens, 0 at the others.
    """
    f_chosen = _kept(chosen.rewards, chosen, settings.sepo_ratio)
    f_rejected = _kept(-rejected.rewards, rejected, settings.sepo_ratio)
    rewards = [
        settings.beta * side.masked_sum(f * side.policy_logps) / side.masked_sum(f)
        for side, f in ((chosen, f_chosen), (rejected, f_rejected))
    ]
    phi = rewards[0] - rewards[1]
    return LossOutput(-F.logsigmoid(phi), phi, f_chosen, f_rejected, *(reward.detach() for reward in rewards))


def sft(chosen: ResponseTokens, rejected: ResponseTokens, settings: LossSettings) -> LossOutput:  # noqa: ARG001
    """Supervised fine-tuning on chosen responses: losses are -sum_t log pi(y_w,t); rejected responses do not count.

    There is no margin and no implied reward: they are zero.
    """
    losses = -chosen.masked_sum(chosen.policy_logps)
    zeros = torch.zeros_like(losses)
    ones = torch.ones_like(chosen.policy_logps), torch.ones_like(rejected.policy_logps)
    return LossOutput(losses, zeros, *ones, zeros, zeros)


def _kept(scores: Tensor, side: ResponseTokens, ratio: float) -> Tensor:
    """1 at the highest `ratio` of a response's scores, rounded down and at least one, 0 elsewhere; [B, L]."""
    scores = scores.detach().masked_fill(~side.completion_mask, -torch.inf)
    places = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    # The small number: 0.3 * 10 is 2.9999999999999996 in some dtypes.
    counts = (side.lengths * ratio + 1e-6).floor().clamp(min=1)[:, None]
    return ((places < counts) & side.completion_mask).to(side.policy_logps)
