"""The TGDPO loss as one function of tensors, for training loops of one's own.

Legend: B pairs, L response tokens of the longest response.
"""

from torch import Tensor

from .losses.dpo import tgdpo
from .losses.types import LossOutput, LossSettings, ResponseTokens
from .shapes import Shape, find_shape


def tgdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    beta_r: float | None = None,
    f_shape: str | Shape = "linear",
    f_clip: float | None = None,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """TGDPO (Zhu et al., ICML 2025, Eq. 16 and 17) per pair, from per-token log-probabilities.

    Args:
        chosen_logps, rejected_logps: [B, L] float, log pi_theta(y_t | x, y_<t) in nats under the policy; the gradient
            flows through these alone. L may differ between the two sides.
        ref_chosen_logps, ref_rejected_logps: [B, L] float, the same under the reference.
        chosen_rewards, rejected_rewards: [B, L] float, token rewards per unit of beta: log pi_guide - log pi_ref.
        chosen_mask, rejected_mask: [B, L] bool, True at response tokens, the end-of-turn token included; what lies
            elsewhere does not count.
        f_shape: a name as in `TrainConfig`, or a function of one response's rewards [L].
        beta, alpha, beta_r, f_clip, label_smoothing: see `TrainConfig`.

    Returns:
        `losses` [B], to be averaged over the pairs of an optimizer step; `phi` [B], the argument of the sigmoid;
        `f_chosen` and `f_rejected` [B, L], the weights of the tokens; `rewards_chosen` and `rewards_rejected` [B],
        beta * sum_t (log pi_theta - log pi_ref), for metrics.
    """
    shape = find_shape(f_shape) if isinstance(f_shape, str) else f_shape
    settings = LossSettings(
        beta=beta, alpha=alpha, beta_r=beta_r, shape=shape, f_clip=f_clip, label_smoothing=label_smoothing
    )
    chosen = ResponseTokens(chosen_logps, ref_chosen_logps, chosen_rewards, chosen_mask)
    rejected = ResponseTokens(rejected_logps, ref_rejected_logps, rejected_rewards, rejected_mask)
    return tgdpo(chosen, rejected, settings)
