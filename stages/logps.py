"""Per-token log-probabilities of responses under a causal LM: the one forward pass of both stages.

The LM head runs only at positions that predict a response token, in chunks of about 0.5 GiB of float32 logits, so a
[tokens, vocabulary] tensor never exists at once; the log-softmax is in float32 whatever the weights' dtype.

Legend: N rows, T tokens of the longest row, R response tokens of all rows, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.packing import Batch

LOGITS_PER_CHUNK = 2**27
"""Elements of one chunk's logits: 0.5 GiB in float32."""


class DeviceBatch(NamedTuple):
    """A `Batch` as int64 tensors on the model's device."""

    input_ids: Tensor
    """[N, T]"""
    attention_mask: Tensor
    """[N, T]"""
    response_index: Tensor
    """[R]"""


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Moves what the forward pass needs."""
    arrays = (batch.input_ids, batch.attention_mask, batch.response_index)
    return DeviceBatch(*(torch.from_numpy(array).to(device) for array in arrays))


class ResponseLogps(nn.Module):
    """Wraps a causal LM (or a PEFT model of one) so that its forward gives log-probabilities of response tokens.

    Training wraps this module, not the bare model, in DDP or FSDP: those see every parameter's use in its forward.

    Args:
        model: a transformers causal LM with its weights on their device.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.runs_head_apart = _head_apart_is_exact(model)
        """False where body plus head is not what the model computes: then full logits are made, and memory is not
        saved."""

    def forward(self, batch: DeviceBatch) -> Tensor:
        """Returns log pi(y_t | x, y_<t), float32 [R], in nats, in the order of `batch.response_index`."""
        predicting = batch.response_index - 1
        targets_R = batch.input_ids.flatten()[batch.response_index]
        if not self.runs_head_apart:
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            return _target_logps(logits.flatten(0, 1)[predicting], targets_R)
        causal_lm = _unwrap(self.model)
        hidden_NTD = _body(causal_lm)(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        hidden_RD = hidden_NTD.flatten(0, 1)[predicting]
        return _chunked_logps(causal_lm, hidden_RD, targets_R)


class ResponseRewards(nn.Module):
    """Wraps a token classifier with one label: its output at a response token is that token's reward.

    Args:
        model: a transformers `AutoModelForTokenClassification` with `num_labels=1`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: DeviceBatch) -> Tensor:
        """Returns the rewards, float32 [R], in the order of `batch.response_index`."""
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        rewards: Tensor = logits.flatten()[batch.response_index].float()
        return rewards


def _unwrap(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model; its layers keep the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _body(causal_lm: Any) -> Any:
    return causal_lm.get_decoder()


def _logits(causal_lm: Any, hidden_RD: Tensor) -> Tensor:
    """The head with what the architecture does to its output (Gemma caps it, Cohere and Granite scale it)."""
    logits: Tensor = causal_lm.get_output_embeddings()(hidden_RD)
    config = causal_lm.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def _target_logps(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    logits_RV = logits_RV.float()
    chosen_R = logits_RV.gather(-1, targets_R[:, None]).squeeze(-1)
    return chosen_R - logits_RV.logsumexp(-1)


def _chunked_logps(causal_lm: Any, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
    def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
        return _target_logps(_logits(causal_lm, hidden), targets)

    rows = max(1, LOGITS_PER_CHUNK // causal_lm.config.get_text_config().vocab_size)
    chunks = zip(torch.split(hidden_RD, rows), torch.split(targets_R, rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk_logps(hidden, targets) for hidden, targets in chunks])
    # The backward pass computes a chunk's logits again instead of keeping them.
    return torch.cat([checkpoint(chunk_logps, hidden, targets, use_reentrant=False) for hidden, targets in chunks])


@torch.no_grad()
def _head_apart_is_exact(model: nn.Module) -> bool:
    """Compares body plus head with the model's own logits on a few tokens: detected, not guessed from a list."""
    causal_lm = _unwrap(model)
    if causal_lm.get_output_embeddings() is None:
        return False
    device = next(causal_lm.parameters()).device
    probe = torch.arange(4, device=device)[None]
    was_training = model.training
    model.eval()
    try:
        expected = model(input_ids=probe, use_cache=False).logits.float()
        hidden = _body(causal_lm)(input_ids=probe, use_cache=False).last_hidden_state
        if hidden.shape[:2] != probe.shape:
            return False
        found = _logits(causal_lm, hidden).float()
    finally:
        model.train(was_training)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
