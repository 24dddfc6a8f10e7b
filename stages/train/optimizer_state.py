"""Any optimizer's state as plain tensors and JSON, and back, without a pickle and without a change of dtype.

What an optimizer keeps for a parameter is numbers, tensors, and tensors made of others (torchao's quantised moments).
Loading goes past `load_state_dict`, which casts moments to the weights' dtype: a float32 moment of bfloat16 weights
would not come back as it was.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrainingError

Values = dict[str, Any]
"""JSON values by PARAMETER/FIELD."""
_COMPOSITE_MODULES = ("torchao.optim.",)
"""Modules whose tensor classes are made again when a state is loaded; nothing else is imported by name."""


def pack(policy: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], Values]:
    """The state of `optimizer` over parameters of `policy`.

    Returns:
        Tensors named PARAMETER/FIELD, none sharing memory with another; and the JSON values of the fields that are no
        tensor, or are made of other tensors.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in policy.named_parameters()}
    tensors: dict[str, Tensor] = {}
    values: Values = {}
    keys: dict[Any, str] = {}
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            key = f"{names[parameter]}/{field}"
            packed = _pack(value, key, tensors, keys)
            if packed != {"tensor": key}:
                values[key] = packed
    return tensors, values


def unpack(policy: nn.Module, optimizer: Any, tensors: dict[str, Tensor], values: Values) -> None:
    """Gives `optimizer` the state that `pack` made; hyperparameters stay.

    Raises:
        TrainingError: the state is that of other parameters, or holds something unknown.
    """
    parameters = dict(policy.named_parameters())
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    whole = {key: {"tensor": key} for key in tensors if key.count("/") == 1}
    for key, packed in (whole | values).items():
        name, _, field = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in groups:
            raise TrainingError(f"the optimizer's state is of other weights ({name})", fix="train in another --output")
        value = _unpack(packed, tensors)
        optimizer.state[parameter][field] = _placed(optimizer, groups[parameter], parameter, field, value)


def _pack(value: Any, key: str, tensors: dict[str, Tensor], keys: dict[Any, str]) -> Any:
    if not torch.is_tensor(value):
        return value
    if hasattr(value, "__tensor_flatten__"):
        names, attributes = value.__tensor_flatten__()
        parts = {name: _pack(getattr(value, name), f"{key}/{name}", tensors, keys) for name in names}
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


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
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
