"""Per-token log-probabilities of responses under a causal LM: the one forward pass of both stages.

Pairs are packed into one row, the prompt once (see data/packing.py and attention.py), where the model's layers allow
it; the LM head runs only at positions that predict a response token, and its logits never exist at once (head.py).
Whether a model is computed right that way is found out when it is wrapped, by comparing with its plain forward on a few
tokens; what would not be exact falls back to two padded rows a pair, or to full logits.

Legend: N rows, T tokens of a row, R response tokens of all pairs, K tokens drawn at each, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.packing import Batch, Layout, collate
from ..data.tokenization import PairIds
from .attention import SHARED_PROMPT, SHARED_PROMPT_FLEX, PackedRow, UnsupportedAttentionError, attention_calls
from .console import warn
from .head import LogitTransform, rows_per_block, target_logps


class DeviceBatch(NamedTuple):
    """A `Batch` with its arrays as int64 tensors on the model's device."""

    input_ids: Tensor
    """[N, T]"""
    position_ids: Tensor
    """[N, T]"""
    attention_mask: Tensor | None
    """[N, T]"""
    packed_row: PackedRow | None
    places: Tensor
    """[R]"""
    predicting: Tensor
    """[R]"""


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Moves what the forward pass needs."""

    def moved(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    mask = None if batch.attention_mask is None else moved(batch.attention_mask)
    ids, positions, places, predicting = map(
        moved, (batch.input_ids, batch.position_ids, batch.places, batch.predicting)
    )
    row = None if batch.spans is None else PackedRow(batch.spans, positions)
    return DeviceBatch(ids, positions, mask, row, places, predicting)


class ResponseLogps(nn.Module):
    """Wraps a causal LM (or a PEFT model of one) so that its forward gives log-probabilities of response tokens.

    Training wraps this module, not the bare model, in DDP or FSDP: those see every parameter's use in its forward.

    Args:
        model: a transformers causal LM with its weights on their device. Its attention implementation is changed where
            it can run packed rows.
        layout: None finds out; "padded" keeps the model's own attention.
    """

    def __init__(self, model: nn.Module, layout: Layout | None = None) -> None:
        super().__init__()
        self.model = model
        self.runs_head_apart = _head_apart_is_exact(model)
        """False where body plus head is not what the model computes: then full logits are made, and memory is not
        saved."""
        self.layout: Layout = "padded"
        """How `data.packing.collate` must lay pairs out for this model."""
        self.fallbacks: list[str] = []
        """What could not be used with this model, for people; a layout that was asked for is none."""
        if not self.runs_head_apart:
            self.fallbacks.append("its head cannot run apart from its body, so full logits are computed on padded rows")
        elif layout != "padded":
            if _switch_to_packed(self):
                self.layout = "packed"
            else:
                self.fallbacks.append("its layers cannot run packed pairs, so rows are padded")

    def forward(self, batch: DeviceBatch) -> Tensor:
        """Returns log pi(y_t | x, y_<t), float32 [R], in nats, in the order of `batch.places`."""
        return self.logps_of(batch, batch.input_ids.flatten()[batch.places])

    def logps_of(self, batch: DeviceBatch, targets: Tensor) -> Tensor:
        """log pi of any tokens at the places of response tokens, float32, in nats.

        Args:
            targets: int64 [R] or, several at a place, [R, M]; the result has its shape.
        """
        if not self.runs_head_apart:
            return _target_logps(self._full_logits(batch), targets)
        return _head_logps(_unwrap(self.model), self.states(batch), targets)

    def _full_logits(self, batch: DeviceBatch) -> Tensor:
        logits_RV: Tensor = self.model(**_inputs(batch)).logits.flatten(0, 1)[batch.predicting]
        return logits_RV

    def draw(self, batch: DeviceBatch, uniforms_RK: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens drawn from pi(. | x, y_<t), by inverting its distribution function.

        Args:
            uniforms_RK: where to, float64 in [0, 1), [R, K].

        Returns:
            The tokens, int64 [R, K], and their log pi, float32 [R, K], in nats.
        """
        if not self.runs_head_apart:
            return _drawn(self._full_logits(batch).float().log_softmax(-1), uniforms_RK)
        states_RD = self.states(batch)
        rows = max(1, self.states_per_block(states_RD) // 4)  # the distribution function is in float64
        blocks = zip(torch.split(states_RD, rows), torch.split(uniforms_RK, rows), strict=True)
        parts = [_drawn(self.vocabulary_logps(states), uniforms) for states, uniforms in blocks]
        ids, logps = (torch.cat(part) for part in zip(*parts, strict=True))
        return ids, logps

    def states(self, batch: DeviceBatch) -> Tensor:
        """The hidden states that predict the response tokens, [R, D], in the order of `batch.places`."""
        hidden_NTD = _unwrap(self.model).get_decoder()(**_inputs(batch)).last_hidden_state
        states_RD: Tensor = hidden_NTD.flatten(0, 1)[batch.predicting]
        return states_RD

    def vocabulary_logps(self, states_RD: Tensor) -> Tensor:
        """log pi of every token after each of these states, float32 [R, V]: for few states at a time."""
        causal_lm = _unwrap(self.model)
        logits_RV = _transform(causal_lm)(causal_lm.get_output_embeddings()(states_RD))
        return logits_RV.float().log_softmax(-1)

    def states_per_block(self, states_RD: Tensor) -> int:
        """How many states' distributions may exist at once."""
        return rows_per_block(states_RD, _unwrap(self.model).config.get_text_config().vocab_size)


class ResponseRewards(nn.Module):
    """Wraps a token classifier with one label: its output at a response token is that token's reward.

    Args:
        model: a transformers `AutoModelForTokenClassification` with `num_labels=1`.
    """

    layout: Layout = "padded"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: DeviceBatch) -> Tensor:
        """Returns the rewards, float32 [R], in the order of `batch.places`."""
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        rewards: Tensor = logits.flatten()[batch.places].float()
        return rewards


def _inputs(batch: DeviceBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.packed_row is None:
        return inputs | {"attention_mask": batch.attention_mask}
    return inputs | {"position_ids": batch.position_ids, "packed_row": batch.packed_row}


def _unwrap(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model; its layers keep the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


# The head


def _transform(causal_lm: Any) -> LogitTransform:
    config = causal_lm.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


def _head_logps(causal_lm: Any, hidden_RD: Tensor, targets: Tensor) -> Tensor:
    head = causal_lm.get_output_embeddings()
    transform = _transform(causal_lm)
    if type(head) is nn.Linear and getattr(head, "bias", None) is None:
        return target_logps(hidden_RD, head.weight, targets, transform)

    # A head with an adapter, a bias or quantised weights: the module itself makes the logits, block by block.
    def block_logps(hidden: Tensor, its_targets: Tensor) -> Tensor:
        return _target_logps(transform(head(hidden)), its_targets)

    rows = rows_per_block(hidden_RD, causal_lm.config.get_text_config().vocab_size)
    blocks = zip(torch.split(hidden_RD, rows), torch.split(targets, rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([block_logps(*block) for block in blocks])
    # The backward pass computes a block's logits again instead of keeping them.
    return torch.cat([checkpoint(block_logps, *block, use_reentrant=False) for block in blocks])


def _target_logps(logits_RV: Tensor, targets: Tensor) -> Tensor:
    logits_RV = logits_RV.float()
    targets_RM = targets if targets.dim() == 2 else targets[:, None]
    logps_RM = logits_RV.gather(-1, targets_RM) - logits_RV.logsumexp(-1, keepdim=True)
    return logps_RM.view(targets.shape)


def _drawn(logps_RV: Tensor, uniforms_RK: Tensor) -> tuple[Tensor, Tensor]:
    cumulative_RV = logps_RV.double().exp_().cumsum(-1)
    # The sum is one but for rounding. The first place above the number: a token without probability is never drawn.
    ids_RK = torch.searchsorted(cumulative_RV, uniforms_RK * cumulative_RV[:, -1:], right=True)
    ids_RK = ids_RK.clamp_(max=logps_RV.shape[1] - 1)
    return ids_RK, logps_RV.gather(1, ids_RK)


# What a model can do, found out


@torch.no_grad()
def _head_apart_is_exact(model: nn.Module) -> bool:
    """Whether body plus head give the model's own logits."""
    causal_lm = _unwrap(model)
    head = causal_lm.get_output_embeddings()
    if head is None:
        return False
    probe = torch.arange(4, device=next(causal_lm.parameters()).device)[None]
    was_training = model.training
    model.eval()
    try:
        expected = model(input_ids=probe, use_cache=False).logits.float()
        hidden = causal_lm.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state
        if hidden.shape[:2] != probe.shape:
            return False
        found = _transform(causal_lm)(head(hidden)).float()
    finally:
        model.train(was_training)
    return found.shape == expected.shape and _close(found, expected)


_PROBE_PAIRS = [
    PairIds(*(np.array(ids, np.int32) for ids in pair))
    for pair in (([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]), ([9, 7], [9, 3, 2, 3], [8, 4]))
]
_FLEX_PROBE_PAIRS = 16 * _PROBE_PAIRS
"""Of more tokens than two blocks, so that what is compiled for them is what the work runs."""


@torch.no_grad()
def _switch_to_packed(wrapped: ResponseLogps) -> bool:
    """Gives the model packed attention and keeps it if every layer uses it and the padded layout's scores come out."""
    causal_lm = _unwrap(wrapped.model)
    before = causal_lm.config._attn_implementation
    device = next(causal_lm.parameters()).device
    was_training = wrapped.model.training
    wrapped.model.eval()
    try:
        attentions = _attentions(device)
        pairs = _FLEX_PROBE_PAIRS if SHARED_PROMPT_FLEX in attentions else _PROBE_PAIRS
        expected = _probe(wrapped, pairs, "padded")
        for attention in attentions:
            causal_lm.set_attn_implementation(attention)
            try:
                with attention_calls() as calls:
                    found = _probe(wrapped, pairs, "packed")
            except Exception as error:
                if attention == SHARED_PROMPT_FLEX:  # whatever a compiler may raise; the next one needs none
                    first_line = str(error.__cause__ or error).strip().split("\n", 1)[0]
                    warn(f"FlexAttention does not run here ({first_line}): pairs go through attention one by one")
                elif not isinstance(error, (UnsupportedAttentionError, TypeError, ValueError)):
                    raise  # else a layer that needs more, a model without the attention interface or position_ids
                continue
            if _all_layers_took_part(causal_lm.config.get_text_config(), calls) and all(
                _close(*pair, _packing_tolerance(causal_lm)) for pair in zip(found, expected, strict=True)
            ):
                return True
    finally:
        wrapped.model.train(was_training)
    causal_lm.set_attn_implementation(before)
    return False


def _attentions(device: torch.device) -> list[str]:
    """Ways to compute packed attention, the fastest first."""
    return [SHARED_PROMPT_FLEX, SHARED_PROMPT] if device.type == "cuda" else [SHARED_PROMPT]


def _probe(wrapped: ResponseLogps, pairs: Sequence[PairIds], layout: Layout) -> list[Tensor]:
    """Scores of the pairs, and where the model is trained, a gradient that went back through its layers."""
    trained = [parameter for parameter in wrapped.model.parameters() if parameter.requires_grad]
    device = next(wrapped.model.parameters()).device
    batch = to_device(collate(pairs, layout), device)
    if not trained:
        return [wrapped(batch)]
    # The first of the smallest: the norm before the first layer's attention, as a rule. It alone: the gradient of a
    # large matrix would take as much memory as the matrix.
    smallest = min(trained, key=lambda parameter: parameter.numel())
    for parameter in trained:
        parameter.requires_grad_(parameter is smallest)
    try:
        with torch.enable_grad():
            logps = wrapped(batch)
            (gradient,) = torch.autograd.grad(logps.mean(), smallest, allow_unused=True)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return [logps.detach()] + ([] if gradient is None else [gradient])


def _all_layers_took_part(config: Any, windows: list[bool]) -> bool:
    """Whether each layer called the attention function, and each sliding one told it its window.

    A layer that mixes tokens in another way (a state space, a convolution) does not call it; what a layer leaves to its
    mask alone would be lost, since packed rows have none.
    """
    if len(windows) != config.num_hidden_layers:
        return False
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None or all(windows)
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    return all(window for window, kind in zip(windows, kinds, strict=True) if kind == "sliding_attention")


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> bool:
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def _packing_tolerance(causal_lm: Any) -> float:
    """Another order of summation is as far off as the dtype of the arithmetic."""
    device, dtype = causal_lm.device.type, causal_lm.dtype
    is_half = dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device)
    return 1e-1 if is_half else 1e-3
