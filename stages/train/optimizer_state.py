"""Any optimizer's state as plain tensors and JSON, and back, without a pickle and without a change of dtype.

What an optimizer keeps for a parameter is numbers, tensors, and tensors made of others (torchao's quantised moments).
Loading goes past `load_state_dict`, which casts moments to the weights' dtype: a float32 moment of bfloat16 weights
would not come back as it was.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError

_COMPOSITE_MODULES = ("torchao.optim.",)
"""Modules whose tensor classes are made again when a state is loaded; nothing else is imported by name."""


def pack(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `optimizer`.

    Returns:
        Tensors by key, none sharing memory with another, and the JSON value that says where each belongs.
    """
    tensors: dict[str, Tensor] = {}
    keys: dict[tuple[int, tuple[int, ...]], str] = {}
    state = {
        str(index): {name: _pack(value, f"{index}.{name}", tensors, keys) for name, value in optimizer.state[p].items()}
        for index, _, p in _parameters(optimizer)
        if p in optimizer.state
    }
    return tensors, state


def unpack(optimizer: Any, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Gives `optimizer` the state that `pack` made; hyperparameters stay.

    Raises:
        TrainingError: the state is that of other parameters, or holds something unknown.
    """
    parameters = list(_parameters(optimizer))
    if not set(state) <= {str(index) for index, _, _ in parameters}:
        raise TrainingError(
            f"the optimizer's state is that of {len(state)} parameters, the policy has {len(parameters)}",
            fix="train in another --output",
        )
    for index, group, parameter in parameters:
        if str(index) in state:
            values = {name: _unpack(value, tensors) for name, value in state[str(index)].items()}
            optimizer.state[parameter] = {
                name: _placed(optimizer, group, parameter, name, value) for name, value in values.items()
            }


def _parameters(optimizer: Any) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
    index = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield index, group, parameter
            index += 1


def _pack(value: Any, key: str, tensors: dict[str, Tensor], keys: dict[Any, str]) -> Any:
    if not torch.is_tensor(value):
        return {"value": value}
    if hasattr(value, "__tensor_flatten__"):
        names, attributes = value.__tensor_flatten__()
        parts = {name: _pack(getattr(value, name), f"{key}.{name}", tensors, keys) for name in names}
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"class": kind, "parts": parts, "attributes": [_pack_attribute(each) for each in attributes]}
    if getattr(value, "is_paged", False):
        torch.cuda.synchronize()  # a paged tensor may still be written to by the GPU
    # bitsandbytes shares one table among all parameters, and safetensors refuses shared memory.
    place = (value.data_ptr(), tuple(value.shape)) if value.numel() else (id(value), ())
    if place not in keys:
        keys[place] = key
        tensors[key] = value.detach().contiguous()
    return {"tensor": keys[place]}


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "value" in packed:
        return packed["value"]
    if "tensor" in packed:
        return tensors[packed["tensor"]].clone()
    module, _, name = packed["class"].rpartition(".")
    if not module.startswith(_COMPOSITE_MODULES):
        raise TrainingError(f"the optimizer's state holds a {packed['class']}", fix="use the tgdpo that wrote it")
    kind = getattr(importlib.import_module(module), name)
    parts = {name: _unpack(part, tensors) for name, part in packed["parts"].items()}
    return kind.__tensor_unflatten__(parts, [_unpack_attribute(each) for each in packed["attributes"]])


def _pack_attribute(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return {"shape": list(value)} if isinstance(value, torch.Size) else value


def _unpack_attribute(value: Any) -> Any:
    if isinstance(value, dict):
        return getattr(torch, value["dtype"]) if "dtype" in value else torch.Size(value["shape"])
    return value


def _placed(optimizer: Any, group: dict[str, Any], parameter: Tensor, name: str, value: Any) -> Any:
    """`value` on the device where the optimizer wants it."""
    if not torch.is_tensor(value):
        return value
    if name == "step" and not (group.get("fused") or group.get("capturable")):
        return value  # torch keeps a step that no kernel reads on the CPU
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has it inside
    if name in ("state1", "state2") and hasattr(inner, "get_state_buffer"):
        return inner.get_state_buffer(parameter, dtype=value.dtype).copy_(value)  # bitsandbytes' may be paged
    return value.to(parameter.device)
