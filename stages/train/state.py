"""Weights and optimizer state as named tensors, however they are spread over processes; in safetensors, no pickle.

A *full* state is gathered tensor by tensor in the main process's memory and written by it. A *sharded* one is written
by all processes at once, each its own parts, through torch.distributed.checkpoint's safetensors storage. Both are read
by any number of processes.

Optimizer tensors are named PARAMETER/FIELD, such as layers.0.mlp.up_proj.weight/exp_avg.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from .optimizer_state import Values, pack, unpack
from .parallel import Parallel

OPTIMIZER = "optimizer.safetensors"
SHARDED = "sharded"


def full_weights(policy: nn.Module, forward: nn.Module, parallel: Parallel) -> dict[str, Tensor] | None:
    """The policy's state dict on the main process, where its own is not that already, and an empty one on others.

    All processes must call it.
    """
    if parallel.kind == "deepspeed":
        gathered = parallel.accelerator.get_state_dict(forward) or {}
        return {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
    if parallel.kind != "fsdp":
        return None
    # Of a policy with an adapter the base is not saved, so it is not gathered; tied weights stay one tensor.
    has_adapter = any(not parameter.requires_grad for parameter in policy.parameters())
    tensors: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, value in policy.state_dict(keep_vars=True).items():
        if has_adapter and not value.requires_grad:
            continue
        if id(value) not in known:
            known[id(value)] = _gathered(value.detach(), parallel)
        if parallel.is_main:
            tensors[name] = known[id(value)]
    return tensors


def _gathered(value: Tensor, parallel: Parallel) -> Tensor:
    """The whole tensor in the main process's memory; elsewhere a placeholder."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu() if parallel.is_main else whole.new_empty(0)


# Optimizer


def save_optimizer(folder: Path, policy: nn.Module, optimizer: Optimizer, parallel: Parallel) -> Values:
    """Writes the optimizer's tensors from the main process; returns the rest. All processes must call it."""
    tensors, values = pack(policy, optimizer, lambda tensor: _gathered(tensor, parallel))
    if parallel.is_main:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / OPTIMIZER)
    return values


def load_optimizer(folder: Path, policy: nn.Module, optimizer: Optimizer, values: Values) -> None:
    """Puts a full state back, each process its own parts; hyperparameters stay those of the configuration."""
    with safe_open(folder / OPTIMIZER, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    unpack(policy, optimizer, tensors, values)


# Sharded


def save_sharded(folder: Path, policy: nn.Module, optimizer: Optimizer) -> Values:
    """Writes weights and the optimizer's tensors from all processes; returns the rest."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    tensors, values = pack(policy, optimizer)
    writer = HuggingFaceStorageWriter(str(folder / SHARDED), save_distributed=True)
    dcp_save(_trained(policy) | tensors, storage_writer=writer)
    return values


def load_sharded(folder: Path, policy: nn.Module, optimizer: Optimizer, values: Values) -> None:
    """Puts weights and optimizer back, into as many processes as there are now."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    reader = HuggingFaceStorageReader(str(folder / SHARDED))
    parameters = dict(policy.named_parameters())
    saved = reader.read_metadata().state_dict_metadata
    tensors = {key: _empty(parameters[key.partition("/")[0]], saved[key]) for key in saved if "/" in key}
    dcp_load(_trained(policy) | tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    unpack(policy, optimizer, tensors, values)


def _trained(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


def _empty(parameter: Tensor, saved: Any) -> Tensor:
    dtype = saved.properties.dtype
    if saved.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(saved.size, dtype=dtype)
