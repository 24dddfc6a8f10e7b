"""What a run says when numbers stop being numbers. Nothing that is not finite is ever saved."""

from collections.abc import Sequence

import torch
from torch import nn

from ...errors import TrainingError

SHOWN_PAIRS = 5
NOT_FINITE_FIX = (
    "lower --learning-rate or use --mixed-precision no, in another --output; the last checkpoint stays and can be its "
    "--model"
)


def listed(pair_ids: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    more = len(pair_ids) - SHOWN_PAIRS
    return ", ".join(pair_ids[:SHOWN_PAIRS]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raises TrainingError where a trained weight is infinite or not a number."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(f"after step {step} weights are not finite ({name})", fix=NOT_FINITE_FIX)
