"""Log-probabilities of chosen tokens from hidden states, without [tokens, vocabulary] ever existing at once.

Forward goes over blocks of rows: a block's logits are made, reduced to a number or a few a row, and dropped. Backward
makes them again over blocks of the vocabulary, so that each row of the weight's gradient is one product over all
tokens: nothing of the weight's size is summed up in float32 beside the gradient itself. Saved for it are hidden states,
targets and one float32 a row.

Two sizes matter. A block is one matrix product, large enough to run at full speed. On a CPU the element-wise work goes
over slices of it, float32 inside: small enough for the cache.

Legend: R response tokens, M tokens asked for at each, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 2**28
"""A block's logits on an accelerator. Half-precision ones have a float32 copy beside them."""
CPU_BLOCK_BYTES = 2**24
CPU_SLICE_BYTES = 2**21
"""A slice's logits in float32."""


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
    """log softmax(transform(hidden @ weight.T))[targets], float32, in nats, in the shape of `targets`.

    Args:
        hidden: [R, D]
        weight: [V, D]; where autocast is on, both are taken in its dtype.
        targets: int64 [R], or [R, M] for several tokens of each distribution.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    targets_RM = targets if targets.dim() == 2 else targets[:, None]
    logps: Tensor = _TargetLogps.apply(hidden, weight, targets_RM, transform, dtype)  # type: ignore[no-untyped-call]
    return logps.view(targets.shape)


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform, dtype: torch.dtype
    ) -> Tensor:
        logps = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        normalisers = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        cast_hidden, cast_weight = hidden.to(dtype), weight.to(dtype)
        for block in _even_slices(len(hidden), rows_per_block(hidden, len(weight))):
            logits_of_block = cast_hidden[block] @ cast_weight.T
            for part in _slices(logits_of_block):
                rows = slice(block.start + part.start, block.start + part.stop)
                logits, columns = transform(logits_of_block[part].float()), targets[rows]
                first_logits = logits.gather(1, columns[:, :1]).squeeze(1)
                # One kernel, where logsumexp is several passes over memory.
                logps[rows] = logits.log_softmax(1).gather(1, columns)
                normalisers[rows] = first_logits - logps[rows, 0]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.transform, ctx.dtype = transform, dtype
        return logps

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        # d logp / d logits = onehot - softmax. Each row's factor goes to the hidden states, with the sign turned round.
        scale, shares = _factored(grad_outputs[0])
        factors, total = -scale, shares.sum(1, keepdim=True)
        cast_hidden, cast_weight = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        scaled_hidden = (hidden * factors).to(ctx.dtype)
        for block in _even_slices(len(weight), rows_per_block(weight, len(hidden))):
            weight_of_block = cast_weight[block]
            grad_of_block = cast_hidden @ weight_of_block.T
            for rows in _slices(grad_of_block):
                logits = ctx.transform(grad_of_block[rows].float())
                probabilities = (logits - normalisers[rows, None]).exp_()
                if shares.shape[1] > 1:
                    probabilities.mul_(total[rows])
                columns = targets[rows] - block.start
                is_here = (columns >= 0) & (columns < len(weight_of_block))
                columns = columns.clamp(0, len(weight_of_block) - 1)
                probabilities.scatter_add_(1, columns, -(shares[rows] * is_here))
                grad_of_block[rows] = ctx.transform.backward_(probabilities, logits)
            if grad_hidden is not None:
                _add_product_(grad_hidden, grad_of_block, weight_of_block)
            if grad_weight is not None:
                grad_weight[block] = grad_of_block.T @ scaled_hidden
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(factors).to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None


def _factored(grads_RM: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients as a factor of each row, [R, 1], times shares within [-1, 1], [R, M]: what is multiplied in half
    precision is then about one, whatever the loss weighs."""
    if grads_RM.shape[1] == 1:
        return grads_RM, torch.ones_like(grads_RM)
    scale = grads_RM.abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, grads_RM / scale


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in float32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def rows_per_block(matrix: Tensor, columns: int) -> int:
    """Rows of `matrix` whose products with `columns` vectors may exist at once."""
    at_once = CPU_BLOCK_BYTES if matrix.device.type == "cpu" else BLOCK_BYTES
    return max(1, at_once // (columns * matrix.element_size()))


def _slices(logits: Tensor) -> list[slice]:
    if logits.device.type != "cpu":
        return [slice(0, len(logits))]
    return _even_slices(len(logits), max(1, CPU_SLICE_BYTES // (4 * logits.shape[1])))


def _even_slices(rows: int, at_most: int) -> list[slice]:
    """Slices of nearly equal length that cover `rows`."""
    count = -(-rows // at_most)
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]
