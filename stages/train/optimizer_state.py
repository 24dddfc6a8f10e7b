"""Any optimizer's state as tensors and JSON, and back, without a pickle and without a change of dtype.

What an optimizer keeps for a parameter is numbers, tensors, and tensors made of others (torchao's quantised moments).
Loading goes past `load_state_dict`, which casts moments to the weights' dtype: a float32 moment of bfloat16 weights
would not come back as it was.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ...errors import TrainingError

Values = dict[str, Any]
"""JSON values by PARAMETER/FIELD."""
_COMPOSITE_MODULES = ("torchao.optim.",)
"""Modules whose tensor classes are made again when a state is loaded; nothing else is imported by name."""


def as_it_is(tensor: Tensor) -> Tensor:
    """The tensor as it lies in this process."""
    return tensor


def pack(
    policy: nn.Module, optimizer: Any, gather: Callable[[Tensor], Tensor] = as_it_is
) -> tuple[dict[str, Tensor], Values]:
    """The state of `optimizer` over parameters of `policy`.

    Args:
        gather: called with each tensor, in the same order on every process.

    Returns:
        Tensors named PARAMETER/FIELD, none sharing memory with another; and the JSON values of the fields that are no
        tensor, or are made of other tensors.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in policy.named_parameters()}
    packing = _Packing(gather)
    values: Values = {}
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            key = f"{names[parameter]}/{field}"
            packed = packing.pack(value, key)
            if packed != {"tensor": key}:
                values[key] = packed
    return packing.tensors, values


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


class _Packing:
    """Collects the tensors of a state; one that several fields share is there once."""

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._gather = gather
        self._keys: dict[Any, str] = {}

    def pack(self, value: Any, key: str) -> Any:
        """JSON that says what `value` is; its tensors go to `tensors` as `key` or below it."""
        if not torch.is_tensor(value):
            return value
        if hasattr(value, "__tensor_flatten__") and not isinstance(value, DTensor):
            names, attributes = value.__tensor_flatten__()
            parts = {name: self.pack(getattr(value, name), f"{key}/{name}") for name in names}
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return {"class": kind, "parts": parts, "attributes": [_pack_attribute(each) for each in attributes]}
        if getattr(value, "is_paged", False):
            torch.cuda.synchronize()  # a paged tensor may still be written to by the GPU
        place = _place(value)
        if place not in self._keys:
            self._keys[place] = key
            self.tensors[key] = self._gather(value.detach())
        return {"tensor": self._keys[place]}


def _place(value: Tensor) -> tuple[int, tuple[int, ...]]:
    # bitsandbytes shares one table among all parameters, and safetensors refuses shared memory.
    if isinstance(value, DTensor) or not value.numel():
        return id(value), ()
    return value.data_ptr(), tuple(value.shape)


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
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
    """`value` on the device where the optimizer wants it, spread over processes as its parameter is."""
    if not torch.is_tensor(value):
        return value
    if name == "step" and not (group.get("fused") or group.get("capturable")):
        return value  # torch keeps a step that no kernel reads on the CPU
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has it inside
    if name in ("state1", "state2") and hasattr(inner, "get_state_buffer"):
        return inner.get_state_buffer(parameter, dtype=value.dtype).copy_(value)  # bitsandbytes' may be paged
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
