"""Log-probabilities of chosen tokens from hidden states, without [tokens, vocabulary] ever existing at once.

A block's logits are made, reduced to two numbers a row and dropped; the backward pass makes them again. Saved for it:
hidden states, targets and one float32 a row. Gradients of the weight are summed in float32.

Two sizes matter. A block is one matrix product: large enough that summing over blocks costs little beside it. On a CPU
a slice of it is the float32 copy that the element-wise work goes over several times: small enough for the cache.

Legend: R response tokens, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_PER_BLOCK = 2**27
"""Elements of a block's logits on an accelerator: 0.5 GiB in float32."""
ROWS_PER_CPU_BLOCK = 256
"""Rows of a block on a CPU in float32; twice as many in half precision, whose weight gradients cost more to sum."""
LOGITS_PER_CPU_SLICE = 2**20
"""4 MiB in float32."""


class LogitTransform(NamedTuple):
    """What an architecture does to its head's output: scale (Cohere, Granite), then cap by tanh (Gemma)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Out of place."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    def backward_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """The gradient of the raw logits from that of the transformed ones; in place."""
        if self.cap is not None:
            grad.mul_(1 - (transformed / self.cap) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


def target_logps(hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform) -> Tensor:
    """log softmax(transform(hidden @ weight.T))[targets], float32 [R], in nats.

    Args:
        hidden: [R, D]
        weight: [V, D]; where autocast is on, both are taken in its dtype.
        targets: [R] int64
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    logps: Tensor = _TargetLogps.apply(hidden, weight, targets, transform, dtype)  # type: ignore[no-untyped-call]
    return logps


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform, dtype: torch.dtype
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalisers = torch.empty_like(logps)
        cast_hidden, cast_weight = hidden.to(dtype), weight.to(dtype)
        for block in _blocks(cast_hidden, len(weight)):
            logits_of_block = cast_hidden[block] @ cast_weight.T
            for part in _slices(logits_of_block):
                rows = slice(block.start + part.start, block.start + part.stop)
                logits = transform(logits_of_block[part].float())
                normalisers[rows] = logits.logsumexp(-1)
                logps[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - normalisers[rows]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.transform, ctx.dtype = transform, dtype
        return logps

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        (grad_logps,) = grad_outputs
        cast_hidden, cast_weight = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(cast_hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for block in _blocks(cast_hidden, len(weight)):
            grad_of_block = cast_hidden[block] @ cast_weight.T
            for part in _slices(grad_of_block):
                rows = slice(block.start + part.start, block.start + part.stop)
                grad = grad_logps[rows, None]
                logits = ctx.transform(grad_of_block[part].float())
                # d logp / d logits = onehot - softmax
                probabilities = (logits - normalisers[rows, None]).exp_()
                d_logits = probabilities.mul_(-grad).scatter_add_(1, targets[rows, None], grad)
                grad_of_block[part] = ctx.transform.backward_(d_logits, logits).to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[block] = grad_of_block @ cast_weight
            if grad_weight is not None:
                _add_product_(grad_weight, grad_of_block, cast_hidden[block])
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
            None,
        )


def _add_product_(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad.T @ hidden, summed in float32."""
    if grad.dtype == torch.float32:
        total.addmm_(grad.T, hidden)
    else:
        total.add_(grad.T @ hidden)


def rows_per_block(hidden: Tensor, vocabulary: int) -> int:
    """Rows whose logits may exist at once."""
    if hidden.device.type == "cpu":
        return ROWS_PER_CPU_BLOCK * 4 // hidden.element_size()
    return max(1, LOGITS_PER_BLOCK // vocabulary)


def _blocks(hidden: Tensor, vocabulary: int) -> list[slice]:
    return _even_slices(len(hidden), rows_per_block(hidden, vocabulary))


def _slices(logits: Tensor) -> list[slice]:
    if logits.device.type != "cpu":
        return [slice(0, len(logits))]
    return _even_slices(len(logits), max(1, LOGITS_PER_CPU_SLICE // logits.shape[1]))


def _even_slices(rows: int, at_most: int) -> list[slice]:
    """Slices of nearly equal length that cover `rows`."""
    count = -(-rows // at_most)
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]
