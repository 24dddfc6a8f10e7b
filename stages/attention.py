"""Attention over packed pairs: prompt | chosen | rejected, where rejected cannot see chosen.

Registered with transformers under `SHARED_PROMPT`, so that every model that takes its attention from there can run a
packed row. Per pair it is two dense calls without a mask over the row: prompt + chosen, causal; then rejected against
prompt + rejected. Work is that of the pairs alone, whatever is packed beside them.

Legend: H heads, T tokens of the row, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..data.packing import Span

SHARED_PROMPT = "tgdpo_shared_prompt"
_UNSUPPORTED = ("s_aux", "sinks", "position_bias", "head_mask")


_calls: ContextVar[list[bool] | None] = ContextVar("calls", default=None)


@contextmanager
def attention_calls() -> Iterator[list[bool]]:
    """Collects the calls of the attention function: one entry a layer, whether it had a sliding window."""
    calls: list[bool] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


class UnsupportedAttentionError(Exception):
    """A layer asks for something that packed attention does not do; the padded layout serves it."""


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    spans: Sequence[Span] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads.
        spans: where each pair's parts lie in the row.
        sliding_window: a query sees the last so many positions, its own included.
        softcap: scores are capped at this value by tanh (Gemma 2).

    Returns:
        [1, T, H, D], and no weights.

    Raises:
        UnsupportedAttentionError: the layer's attention has more to it.
    """
    asked = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if spans is None or attention_mask is not None or asked or dropout:
        raise UnsupportedAttentionError(type(module).__name__, asked)
    if (calls := _calls.get()) is not None:
        calls.append(sliding_window is not None)
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for span in spans:
        first, second = slice(span.prompt, span.rejected), slice(span.rejected, span.end)
        parts.append(_attend(query, key[:, :, first], value[:, :, first], first, scaling, sliding_window, softcap))
        context = [slice(span.prompt, span.chosen), second]
        keys, values = (torch.cat([x[:, :, part] for part in context], 2) for x in (key, value))
        parts.append(_attend(query, keys, values, second, scaling, sliding_window, softcap))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, rows: slice, scaling: float | None, window: int | None, cap: float | None
) -> Tensor:
    """The last len(rows) of the keys' positions as queries, causal; positions count from the pair's first token."""
    query = query[:, :, rows]
    queries, keys = query.shape[2], key.shape[2]
    if window is not None and window >= keys:
        window = None
    if queries == keys and window is None and cap is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if window is not None:
        mask = mask.triu(keys - queries - window + 1)
    if cap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (torch.tanh(scores / cap) * cap).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """The spans say all."""


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT, _no_mask)
