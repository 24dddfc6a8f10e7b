"""What a run says when numbers stop being numbers. Nothing that is not finite is ever saved."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import TrainingError
from .parallel import Parallel

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
def require_finite_weights(model: nn.Module, step: int, parallel: Parallel) -> None:
    """Raises TrainingError, on all processes, where a trained weight of any is infinite or not a number."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    bad = [number for number, (_, parameter) in enumerate(trained) if not _is_finite(parameter)]
    first = int(parallel.minimum(torch.tensor(min(bad, default=len(trained)))))
    if first < len(trained):
        raise TrainingError(f"after step {step} weights are not finite ({trained[first][0]})", fix=NOT_FINITE_FIX)


def _is_finite(weights: Tensor) -> bool:
    """Of this process's part."""
    part = weights.to_local() if isinstance(weights, DTensor) else weights
    return bool(torch.isfinite(part).all())
