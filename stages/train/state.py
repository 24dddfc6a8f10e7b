"""Weights and optimizer state as named tensors, however they are spread over processes; in safetensors, no pickle.

A *full* state is gathered tensor by tensor in the main process's memory and written by it. A *sharded* one is written
by all processes at once, each its own parts, through torch.distributed.checkpoint's safetensors storage. Both are read
by any number of processes.

Optimizer tensors are named PARAMETER/FIELD, such as layers.0.mlp.up_proj.weight/exp_avg.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from .parallel import Parallel

OPTIMIZER = "optimizer.safetensors"
SHARDED = "sharded"
Values = dict[str, Any]
"""Optimizer state that is no tensor (a step count, say): JSON values."""


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


def _entries(policy: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in policy.named_parameters()}
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            yield f"{names[parameter]}/{field}", value


def save_optimizer(folder: Path, policy: nn.Module, optimizer: Optimizer, parallel: Parallel) -> Values:
    """Writes the optimizer's tensors from the main process; returns what is no tensor. All processes must call it."""
    tensors: dict[str, Tensor] = {}
    values: Values = {}
    for key, value in _entries(policy, optimizer):
        if torch.is_tensor(value):
            tensors[key] = _gathered(value, parallel)
        else:
            values[key] = value
    if parallel.is_main:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / OPTIMIZER)
    return values


def load_optimizer(folder: Path, policy: nn.Module, optimizer: Optimizer, values: Values) -> None:
    """Puts a full state back, each process its own parts; hyperparameters stay those of the configuration."""
    parameters = dict(policy.named_parameters())
    state: dict[str, Any] = dict(values)
    with safe_open(folder / OPTIMIZER, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no mapping)
            state[key] = _like(parameters[_parameter_of(key)], file.get_tensor(key))
    _put_back(state, parameters, optimizer)


def _parameter_of(key: str) -> str:
    return key.rpartition("/")[0]


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    """`whole` spread as the parameter is, if it has its shape."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)


def _put_back(state: dict[str, Any], parameters: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    own = optimizer.state_dict()["param_groups"]
    groups = zip(optimizer.param_groups, own, strict=True)
    index_of = {p: i for group, packed in groups for p, i in zip(group["params"], packed["params"], strict=True)}
    by_index: dict[int, dict[str, Any]] = {}
    for key, value in state.items():
        name, _, field = key.rpartition("/")
        by_index.setdefault(index_of[parameters[name]], {})[field] = value
    optimizer.load_state_dict({"state": by_index, "param_groups": own})


# Sharded


def save_sharded(folder: Path, policy: nn.Module, optimizer: Optimizer) -> Values:
    """Writes weights and optimizer from all processes; returns what is no tensor."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    entries = dict(_entries(policy, optimizer))
    tensors = {key: value for key, value in entries.items() if torch.is_tensor(value)}
    writer = HuggingFaceStorageWriter(str(folder / SHARDED), save_distributed=True)
    dcp_save(_trained(policy) | tensors, storage_writer=writer)
    return {key: value for key, value in entries.items() if key not in tensors}


def load_sharded(folder: Path, policy: nn.Module, optimizer: Optimizer, values: Values) -> None:
    """Puts weights and optimizer back, into as many processes as there are now."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    reader = HuggingFaceStorageReader(str(folder / SHARDED))
    parameters = dict(policy.named_parameters())
    saved = reader.read_metadata().state_dict_metadata
    state = {key: _empty(parameters[_parameter_of(key)], saved[key]) for key in saved if "/" in key}
    dcp_load(_trained(policy) | state, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    _put_back(values | state, parameters, optimizer)


def _trained(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


def _empty(parameter: Tensor, saved: Any) -> Tensor:
    dtype = saved.properties.dtype
    if saved.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(saved.size, dtype=dtype)
