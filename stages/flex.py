"""FlexAttention over a packed row: one compiled kernel that skips the blocks in which nothing may be seen.

The block mask is computed from where the pairs lie, on blocks instead of tokens: a mask of [T, T] never exists.

Legend: H heads, T tokens of the row, D head size, B blocks of `BLOCK` tokens.
"""

from collections.abc import Callable, Sequence
from functools import cache
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._dynamo import config as compiler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn.attention import flex_attention as torch_flex

from ..data.packing import Span
from ..errors import ModelError

BLOCK = 128
GRAPHS = 64
"""Kinds of calls that a process may compile. Lengths are no kinds: windows, caps, dtypes, heads, rows of one block and
what gradients are asked for are, and the compiler's own limit of 8 is too few for Gemma."""
_KERNEL = {"BACKEND": "TRITON"}
"""The main kernel, at every length. For rows shorter than a block the compiler would choose one for decoding, and fail
where the heads that share a key outnumber what it is made for (pytorch/pytorch#185349)."""
_PROMPT, _CHOSEN, _REJECTED = 0, 1, 2

Bools = npt.NDArray[np.bool_]


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scaling: float | None, cap: float | None
) -> Tensor:
    """Attention [1, H, T, D] under `block_mask`, compiled once for all lengths; key and value may have fewer heads.

    Under autocast a rotary embedding gives query and key in float32; torch, from 2.11 on, casts them to its dtype.

    Raises:
        ModelError: it does not compile, or not once more. Uncompiled it would compute all scores, [H, T, T].
    """
    try:
        with _room_for_graphs(get_ident()):
            output: Tensor = _compiled()(
                query,
                key,
                value,
                score_mod=_soft_cap(cap, query.device) if cap is not None else None,
                block_mask=block_mask,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
                kernel_options=_KERNEL,
            )
    except FailOnRecompileLimitHit as error:
        raise ModelError(
            f"FlexAttention was compiled {GRAPHS} times in this process, for other heads, dtypes or windows each time, "
            "and is not compiled again",
            fix="use a process for each model, or set --attn-implementation sdpa",
        ) from error
    except TorchDynamoException as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"FlexAttention does not compile ({first_line})", fix="set --attn-implementation sdpa"
        ) from error
    return output


def row_block_mask(spans: Sequence[Span], positions_T: Tensor, window: int | None) -> torch_flex.BlockMask:
    """Causal inside each pair, rejected blind to chosen, and (window) no further back than so many positions."""
    pair_T, part_T = _pairs_and_parts(spans)
    device = positions_T.device
    pairs, parts = torch.from_numpy(pair_T).to(device), torch.from_numpy(part_T).to(device)

    def may_see(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_pair = (pairs[query] == pairs[key]) & (query >= key)
        visible = same_pair & ~((parts[query] == _REJECTED) & (parts[key] == _CHOSEN))
        if window is None:
            return visible
        return visible & (positions_T[query] - positions_T[key] < window)

    some_BB, all_BB = _visible_blocks(pair_T, part_T)
    if window is not None:
        all_BB = np.zeros_like(all_BB)
    tokens = len(pair_T)
    return torch_flex.BlockMask.from_kv_blocks(
        *_counts_and_indices(some_BB & ~all_BB, device),
        *_counts_and_indices(all_BB, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=may_see,
        seq_lengths=(tokens, tokens),
    )


@cache
def _compiled() -> Callable[..., Any]:
    # As a full graph it raises at the limit of graphs, where it would run uncompiled without a word.
    return torch.compile(torch_flex.flex_attention, dynamic=True, fullgraph=True)


@cache
def _room_for_graphs(_thread: int) -> Any:
    # The compiler's settings are a thread's own, and gradient checkpointing calls from the backward pass's thread.
    # Made once a thread: making it takes longer than entering it, and there is a call per layer.
    return compiler.patch(recompile_limit=GRAPHS)


@cache
def _soft_cap(cap: float, device: torch.device) -> Callable[..., Tensor]:
    limit = torch.tensor(cap, device=device)  # a Python float would be a symbol to the compiler, which it cannot lower

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / limit) * limit

    return capped


def _pairs_and_parts(spans: Sequence[Span]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Of each token [T], the pair's number and the part of it."""
    lengths = [np.diff(span) for span in spans]
    pairs = np.repeat(np.arange(len(spans), dtype=np.int32), [span.end - span.prompt for span in spans])
    parts = np.tile(np.array([_PROMPT, _CHOSEN, _REJECTED], np.int32), len(spans))
    return pairs, np.repeat(parts, np.concatenate(lengths))


def _visible_blocks(pair_T: npt.NDArray[np.int32], part_T: npt.NDArray[np.int32]) -> tuple[Bools, Bools]:
    """Of each block of queries and block of keys [B, B], whether some pair of tokens, and whether all, are visible.

    The first may say yes where there is none; the mask on tokens then hides them all.
    """
    starts = np.arange(0, len(pair_T), BLOCK)
    first_pair, last_pair = pair_T[starts], pair_T[np.minimum(starts + BLOCK, len(pair_T)) - 1]
    has_chosen, has_rejected, only_chosen, only_rejected = (
        how(part_T == part, starts)
        for how in (np.logical_or.reduceat, np.logical_and.reduceat)
        for part in (_CHOSEN, _REJECTED)
    )
    number = np.arange(len(starts))
    some = (last_pair[None, :] >= first_pair[:, None]) & (number[None, :] <= number[:, None])
    one_pair = first_pair == last_pair
    same_pair = one_pair[:, None] & one_pair[None, :] & (first_pair[:, None] == first_pair[None, :])
    some &= ~(same_pair & only_rejected[:, None] & only_chosen[None, :])
    is_whole = starts + BLOCK <= len(pair_T)
    every = same_pair & (number[None, :] < number[:, None]) & is_whole[:, None]
    every &= ~(has_rejected[:, None] & has_chosen[None, :])
    return some, every


def _counts_and_indices(blocks_BB: Bools, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per block of queries how many blocks of keys [1, 1, B], and which, the rest behind them [1, 1, B, B]."""
    counts = blocks_BB.sum(1, dtype=np.int32)
    indices = np.argsort(~blocks_BB, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(indices)[None, None].to(device)
