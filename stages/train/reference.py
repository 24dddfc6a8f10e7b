"""The reference beside the policy, for objectives that compare whole distributions (TDPO with its exact KL): a second
model in memory, and a second forward pass a step. Everything else trains from what the cache holds.

Distributions over the vocabulary exist for a block of positions at a time, and are computed again in the backward pass.

Legend: R response tokens of all rows, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...data.cache import RewardCache
from ...data.packing import Layout
from ...errors import ModelError, UsageError
from ..console import log
from ..logps import DeviceBatch, ResponseLogps
from ..models import load_model, pick_dtype, resolve
from .config import TrainConfig
from .parallel import Parallel


class Reference:
    """The reference model, frozen.

    Args:
        config: names it.
        cache: must have been scored with it.
        parallel: where it goes; a single process.

    Raises:
        UsageError: there are several processes.
        ModelError: it is not the cache's reference, or its head cannot run apart from its body.
    """

    def __init__(self, config: TrainConfig, cache: RewardCache, parallel: Parallel) -> None:
        name = str(config.reference)
        if parallel.count > 1:
            raise UsageError(
                f"--loss {config.loss} keeps the reference in memory, and that runs on one process alone",
                fix="train on one process, or with another --loss",
            )
        source = resolve(name, "--reference", trust_remote_code=config.trust_remote_code)
        if source.content_hash != cache.manifest.fingerprint["reference_sha256"]:
            raise ModelError(
                f"--reference {name} is not the model that scored the cache ({cache.manifest.reference})",
                fix="name that model",
            )
        dtype = pick_dtype(str(cache.manifest.fingerprint["dtype"]), source)
        model = load_model(source, dtype=dtype, device=parallel.device, attn_implementation=config.attn_implementation)
        self.forward = ResponseLogps(model.requires_grad_(False), "padded" if config.attn_implementation else None)
        if not self.forward.runs_head_apart:
            raise ModelError(
                f"--reference {name}: its head cannot run apart from its body", fix="train with another --loss"
            )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        log(f"--loss {config.loss}: the reference, {parameters:,} parameters, stays in memory beside the policy")

    @property
    def layout(self) -> Layout:
        """How it takes pairs."""
        return self.forward.layout

    @torch.no_grad()
    def states(self, batch: DeviceBatch) -> "ReferenceStates":
        """Its forward pass without the head."""
        return ReferenceStates(self.forward, self.forward.states(batch))


class ReferenceStates(NamedTuple):
    """What the reference's distributions are made from."""

    forward: ResponseLogps
    states: Tensor
    """[R, D]"""


class LogpsAndKl(ResponseLogps):
    """`ResponseLogps` of the policy that compares its distributions with the reference's as well."""

    def forward(self, batch: DeviceBatch, reference: ReferenceStates | None = None) -> Tensor:
        """Returns log pi_theta(y_t | x, y_<t) and KL(pi_ref || pi_theta) at y_t, float32 [2, R], in nats; without a
        reference the first alone, [R]."""
        if reference is None:
            return super().forward(batch)
        targets_R = batch.input_ids.flatten()[batch.places]
        states_RD = self.states(batch)
        rows = self.states_per_block(states_RD)
        parts = zip(*(torch.split(x, rows) for x in (states_RD, reference.states, targets_R)), strict=True)
        blocks: list[Any] = [checkpoint(self._block, reference.forward, *part, use_reentrant=False) for part in parts]
        return torch.cat(blocks, 1)

    def _block(self, reference: ResponseLogps, states_RD: Tensor, ref_states_RD: Tensor, targets_R: Tensor) -> Tensor:
        logps_RV = self.vocabulary_logps(states_RD)
        with torch.no_grad(), torch.autocast(states_RD.device.type, enabled=False):
            ref_logps_RV = reference.vocabulary_logps(ref_states_RD)
        kl_R = nn.functional.kl_div(logps_RV, ref_logps_RV, reduction="none", log_target=True).sum(-1)
        return torch.stack([logps_RV.gather(1, targets_R[:, None]).squeeze(1), kl_R])
