"""Shapes of f, the paper's modulation of the KL strength per token (Assumption 4.2: f(0) = 1).

A shape maps the token rewards of one response, a vector, to g(r) in f = 1 + alpha g(r) for chosen and
f = 1 - alpha g(r) for rejected tokens (Eq. 17).
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.files import sha256_file
from ...errors import UsageError

Shape = Callable[[Tensor], Tensor]
"""Rewards r of one response's tokens [L], beta_r included, to g(r) [L]."""


def linear(rewards: Tensor) -> Tensor:
    """g(r) = r, the paper's choice (Eq. 17)."""
    return rewards


def sigmoid(rewards: Tensor) -> Tensor:
    """g(r) = 2 sigmoid(r) - 1: within (-1, 1), so |f - 1| <= alpha; the authors' suggestion for smoother guidance."""
    return 2 * torch.sigmoid(rewards) - 1


def clipped_linear(rewards: Tensor) -> Tensor:
    """g(r) = r within [-1, 1], and the nearer end outside, so |f - 1| <= alpha."""
    return rewards.clamp(-1, 1)


def rank(rewards: Tensor) -> Tensor:
    """g(r) from the place of r among its response's n tokens: evenly spaced from -(n - 1) / n to (n - 1) / n, equal
    rewards sharing their mean place. The size of rewards, and so beta_r, does not count. g is 0 at the response's
    median, not at r = 0, so Assumption 4.2 holds on the mean over a response alone."""
    # How many are smaller, less how many are larger: 2 * place - (n - 1), without a case for equal ones.
    ordered = rewards.sort().values
    smaller = torch.searchsorted(ordered, rewards)
    larger = len(rewards) - torch.searchsorted(ordered, rewards, right=True)
    return (smaller - larger).to(rewards.dtype) / max(1, len(rewards))


SHAPES: dict[str, Shape] = {"linear": linear, "sigmoid": sigmoid, "clipped-linear": clipped_linear, "rank": rank}


def find_shape(name: str) -> Shape:
    """The shape `name`: one of `SHAPES`, or a function by dotted path; modules of the working directory are found.

    Raises:
        UsageError: there is none, or it does not give one finite number per reward.
    """
    if name in SHAPES:
        return SHAPES[name]
    if "." not in name:
        raise UsageError(
            f"--f-shape {name}: there is no such shape", fix=f"use {', '.join(SHAPES)}, or package.module.function"
        )
    shape = _imported(name)
    _require_a_number_per_reward(name, shape)
    return shape


def shape_identity(name: str) -> dict[str, str]:
    """The SHA-256 of the file of a shape of the user's own, by which a run knows it; nothing of one of `SHAPES`."""
    if name in SHAPES:
        return {}
    file = getattr(sys.modules[name.rpartition(".")[0]], "__file__", None)
    return {"f_shape_sha256": sha256_file(Path(file))} if file else {}


def _imported(name: str) -> Shape:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, attribute = name.rpartition(".")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--f-shape {name} cannot be imported ({error})", fix="name a function as package.module.function"
        ) from error
    if not callable(found):
        raise UsageError(f"--f-shape {name} is no function", fix="name a function of a vector of rewards")
    return found  # type: ignore[no-any-return]


def _require_a_number_per_reward(name: str, shape: Shape) -> None:
    """Tries the shape on rewards of usual sizes."""
    probe = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0])
    fix = "let it give a tensor of the same shape, one finite number per reward"
    try:
        found = shape(probe.clone())
    except Exception as error:  # whatever a user's function may raise
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise UsageError(f"--f-shape {name} fails on a vector of rewards ({reason})", fix=fix) from error
    if not isinstance(found, Tensor) or found.shape != probe.shape or not torch.isfinite(found).all():
        raise UsageError(f"--f-shape {name} does not give one number per reward", fix=fix)
