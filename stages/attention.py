"""Attention over packed pairs: prompt | chosen | rejected, where rejected cannot see chosen.

Registered with transformers, so that every model that takes its attention from there can run a packed row. Two ways to
compute the same: `SHARED_PROMPT` is two dense calls a pair, prompt + chosen, then rejected against prompt + rejected;
`SHARED_PROMPT_FLEX` is one FlexAttention kernel over the row that skips what is masked (flex.py), for CUDA.

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
from .flex import flex_attention, row_block_mask

SHARED_PROMPT = "tgdpo_shared_prompt"
SHARED_PROMPT_FLEX = "tgdpo_shared_prompt_flex"
_UNSUPPORTED = ("s_aux", "sinks", "position_bias", "head_mask")


class PackedRow:
    """Where the pairs of a row lie, and the masks that follow from that: built once, used by all layers.

    Args:
        spans: the pairs' parts.
        position_ids: [1, T], each token's position in its own sequence.
    """

    def __init__(self, spans: Sequence[Span], position_ids: Tensor) -> None:
        self.spans = spans
        self._position_ids = position_ids
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = {}
        self._block_masks: dict[int | None, Any] = {}

    def mask(self, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores [queries, keys], causal: the queries are the last of the keys' positions."""
        entry = (queries, keys, window, dtype)
        if entry not in self._masks:
            device = self._position_ids.device
            visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            if window is not None:
                visible = visible.triu(keys - queries - window + 1)
            hidden = torch.zeros(queries, keys, dtype=dtype, device=device)
            self._masks[entry] = hidden.masked_fill_(~visible, float("-inf"))
        return self._masks[entry]

    def block_mask(self, window: int | None) -> Any:
        """The same of the whole row for FlexAttention."""
        if window not in self._block_masks:
            self._block_masks[window] = row_block_mask(self.spans, self._position_ids[0], window)
        return self._block_masks[window]


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
    packed_row: PackedRow | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads.
        packed_row: where each pair's parts lie.
        sliding_window: a query sees the last so many positions, its own included.
        softcap: scores are capped at this value by tanh (Gemma 2).

    Returns:
        [1, T, H, D], and no weights.

    Raises:
        UnsupportedAttentionError: the layer's attention has more to it.
    """
    row = _require_packed(module, packed_row, attention_mask, dropout, sliding_window, options)
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for span in row.spans:
        first, second = slice(span.prompt, span.rejected), slice(span.rejected, span.end)
        parts.append(_attend(query, key[:, :, first], value[:, :, first], first, row, scaling, sliding_window, softcap))
        if span.rejected == span.end:
            continue
        context = [slice(span.prompt, span.chosen), second]
        keys, values = (torch.cat([x[:, :, part] for part in context], 2) for x in (key, value))
        parts.append(_attend(query, keys, values, second, row, scaling, sliding_window, softcap))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def shared_prompt_flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_row: PackedRow | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`shared_prompt_attention` as one kernel."""
    row = _require_packed(module, packed_row, attention_mask, dropout, sliding_window, options)
    output = flex_attention(query, key, value, row.block_mask(sliding_window), scaling, softcap)
    return output.transpose(1, 2).contiguous(), None


def _require_packed(
    module: nn.Module,
    row: PackedRow | None,
    attention_mask: Tensor | None,
    dropout: float,
    window: int | None,
    options: dict[str, Any],
) -> PackedRow:
    asked = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if row is None or attention_mask is not None or asked or dropout:
        raise UnsupportedAttentionError(type(module).__name__, asked)
    if (calls := _calls.get()) is not None:
        calls.append(window is not None)
    return row


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: slice,
    row: PackedRow,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """The last len(rows) of the keys' positions as queries, causal; positions count from the pair's first token."""
    query = query[:, :, rows]
    queries, keys = query.shape[2], key.shape[2]
    if window is not None and window >= keys:
        window = None
    if queries == keys and window is None and cap is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    mask = row.mask(queries, keys, window, query.dtype)
    if cap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / cap) * cap + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """The packed row says all."""


for _name, _attention in {
    SHARED_PROMPT: shared_prompt_attention,
    SHARED_PROMPT_FLEX: shared_prompt_flex_attention,
}.items():
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _no_mask)
