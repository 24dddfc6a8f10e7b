"""FSDP2: weights, gradients and optimizer in parts, one per process.

It is torch's `fully_shard`, called here: accelerate's own does nothing on a CPU and says nothing about it. What
accelerate's configuration file sets for FSDP is taken from the environment that its launcher makes.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from ..console import warn


@dataclass(frozen=True, kw_only=True)
class FsdpOptions:
    """What accelerate's configuration file says about FSDP, in the environment that its launcher makes."""

    reshard_after_forward: bool = True
    offload: bool = False
    state: Literal["full", "sharded"] = "full"

    @classmethod
    def of_launcher(cls) -> "FsdpOptions | None":
        """None where the launcher's configuration has no FSDP."""
        if not is_set("ACCELERATE_USE_FSDP"):
            return None
        if os.environ.get("FSDP_VERSION", "1") == "1":
            warn("the configuration of accelerate asks for FSDP version 1; this runs as version 2 (fully_shard)")
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
        state = os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT").upper()
        return cls(
            reshard_after_forward=reshard not in ("false", "shard_grad_op", "no_shard"),
            offload=is_set("FSDP_OFFLOAD_PARAMS"),
            state="sharded" if state.startswith("SHARDED") else "full",
        )


def is_set(name: str) -> bool:
    """Whether the launcher's environment says yes."""
    return os.environ.get(name, "false").lower() in ("1", "true")


def shard(forward: nn.Module, device: torch.device, processes: int, options: FsdpOptions, *, is_bf16: bool) -> None:
    """Spreads the parameters of `forward`, a layer at a time; they become DTensors.

    Args:
        forward: its own forward uses what lies outside the layers (embeddings, head), which stays gathered from there
            to the backward pass.
        is_bf16: layers are gathered and computed in bfloat16; gradients are summed in float32.
    """
    is_offloaded = options.offload and device.type != "cpu"
    policy: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (processes,)),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_bf16 else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if is_offloaded else OffloadPolicy(),
    }
    for layer in _layers(forward):
        fully_shard(layer, reshard_after_forward=options.reshard_after_forward, **policy)
    fully_shard(forward, **policy)


def _layers(forward: nn.Module) -> list[nn.Module]:
    """The decoder's layers, by the names that transformers keeps together on one device."""
    names = {name for module in forward.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    layers = [module for module in forward.modules() if type(module).__name__ in names]
    if layers:
        return layers
    return [layer for module in forward.modules() if isinstance(module, nn.ModuleList) for layer in module]
