"""Shapes of f, the paper's modulation of the KL strength per token (Assumption 4.2: f(0) = 1).

A shape maps token rewards to g(r) in f = 1 + alpha g(r) for chosen and f = 1 - alpha g(r) for rejected tokens (Eq. 17).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Shape = Callable[[Tensor], Tensor]


def linear(rewards: Tensor) -> Tensor:
    """g(r) = r, the paper's choice (Eq. 17)."""
    return rewards


def sigmoid(rewards: Tensor) -> Tensor:
    """g(r) = 2 sigmoid(r) - 1: within (-1, 1), so |f - 1| <= alpha; the authors' suggestion for smoother guidance."""
    return 2 * torch.sigmoid(rewards) - 1


SHAPES: dict[str, Shape] = {"linear": linear, "sigmoid": sigmoid}
