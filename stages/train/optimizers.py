"""Optimizers by the names that transformers gives them, taken from torch, transformers, bitsandbytes and torchao.

To add one: a line in `OPTIMIZERS`, and its name in `TrainConfig.optim`.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...errors import UsageError
from .config import TrainConfig

Groups = list[dict[str, Any]]
Make = Callable[[TrainConfig, Groups], torch.optim.Optimizer]


class OptimizerKind(NamedTuple):
    """Where an optimizer comes from and what it costs."""

    make: Make
    package: str | None = None
    """What must be installed besides the dependencies."""
    bits: int | None = None
    """Bits of a moment's element; None: those of the weights."""
    moments: int = 2
    """Tensors of a parameter's size that it keeps."""
    pages: bool = False
    """Whether its state may move to the host's memory while the GPU needs the room."""


def make_optimizer(config: TrainConfig, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of `--optim` over parameter groups.

    Raises:
        UsageError: it cannot run on `device`, or its package is missing.
    """
    require_optimizer(config, device)
    make = _STOCHASTIC[config.optim] if config.stochastic_rounding else OPTIMIZERS[config.optim].make
    try:
        optimizer = make(config, groups)
    except RuntimeError as error:
        raise UsageError(
            f"--optim {config.optim} does not run on {device.type} ({str(error).splitlines()[0]})",
            fix="use --optim adamw_torch",
        ) from error
    for group in optimizer.param_groups:
        # The schedule multiplies this; torchao's float32 tensor would round otherwise than the number in a checkpoint.
        group["initial_lr"] = config.learning_rate
    return optimizer


def require_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Raises UsageError where `--optim` needs what is not there; cheap, so that it comes before models are loaded."""
    kind = OPTIMIZERS[config.optim]
    option = "--stochastic-rounding" if config.stochastic_rounding else f"--optim {config.optim}"
    package = "torchao" if config.stochastic_rounding else kind.package
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(f"{option} needs {package}, which is not installed", fix=f"pip install 'tgdpo[{package}]'")
    if kind.pages and device.type != "cuda":
        raise UsageError(
            f"{option} moves its state between GPU and host memory, and the device is {device.type}",
            fix=f"use --optim {config.optim.removeprefix('paged_').replace('adamw_32bit', 'adamw_torch')}",
        )
    if package == "torchao" and device.type == "cpu" and not _has_compiler():
        raise UsageError(f"{option} is compiled, and no C++ compiler is there", fix="install g++, or name one in CXX")


def require_spreads(config: TrainConfig, kind: str) -> None:
    """Raises UsageError where optimizer or weights cannot be spread over processes by `kind` (fsdp, deepspeed)."""
    if kind not in ("fsdp", "deepspeed"):
        return
    if config.load_in_4bit or config.load_in_8bit:
        raise UsageError(f"quantised weights cannot be spread by {kind}", fix="use --parallel ddp, or no quantisation")
    torch_only = ("adamw_torch_fused", "adamw_torch") + (("sgd",) if kind == "fsdp" else ())
    if config.optim not in torch_only or config.stochastic_rounding:
        option = "--stochastic-rounding" if config.stochastic_rounding else f"--optim {config.optim}"
        raise UsageError(f"{option} does not work with {kind}", fix=f"use --optim {torch_only[0]}, or --parallel ddp")


def set_learning_rate(group: dict[str, Any], learning_rate: float) -> None:
    """torchao keeps it as a tensor, and compiled code holds on to that."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(learning_rate)
    else:
        group["lr"] = learning_rate


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _adam(config: TrainConfig) -> dict[str, Any]:
    betas = (config.adam_beta1, config.adam_beta2)
    return {"lr": config.learning_rate, "betas": betas, "eps": config.adam_epsilon}


def _torch_adamw(*, fused: bool) -> Make:
    return lambda config, groups: torch.optim.AdamW(groups, **_adam(config), fused=fused)


def _sgd(config: TrainConfig, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate)


def _adafactor(config: TrainConfig, groups: Groups) -> torch.optim.Optimizer:
    from transformers import Adafactor

    # With a schedule and steps of its own it would leave --learning-rate unused.
    return Adafactor(groups, lr=config.learning_rate, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]


def _bitsandbytes(name: str, bits: int, *, pages: bool = False) -> OptimizerKind:
    def make(config: TrainConfig, groups: Groups) -> torch.optim.Optimizer:
        from bitsandbytes import optim

        options = _adam(config)
        if name == "Lion":
            options.pop("eps")
        return getattr(optim, name)(groups, **options, optim_bits=bits, is_paged=pages)  # type: ignore[no-any-return]

    return OptimizerKind(make, "bitsandbytes", bits, moments=1 if name == "Lion" else 2, pages=pages)


def _torchao(
    name: str, *, round_stochastically: bool = False
) -> Callable[[TrainConfig, Groups], torch.optim.Optimizer]:
    def make(config: TrainConfig, groups: Groups) -> torch.optim.Optimizer:
        from torchao import optim

        options = _adam(config) | {"bf16_stochastic_round": round_stochastically}
        return getattr(optim, name)(groups, **options)  # type: ignore[no-any-return]

    return make


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw_torch_fused": OptimizerKind(_torch_adamw(fused=True)),
    "adamw_torch": OptimizerKind(_torch_adamw(fused=False)),
    "sgd": OptimizerKind(_sgd, moments=0),
    "adafactor": OptimizerKind(_adafactor, moments=0),
    "adamw_8bit": _bitsandbytes("AdamW", 8),
    "adamw_bnb_8bit": _bitsandbytes("AdamW", 8),
    "paged_adamw_8bit": _bitsandbytes("AdamW", 8, pages=True),
    "paged_adamw_32bit": _bitsandbytes("AdamW", 32, pages=True),
    "lion_8bit": _bitsandbytes("Lion", 8),
    "lion_32bit": _bitsandbytes("Lion", 32),
    "paged_lion_8bit": _bitsandbytes("Lion", 8, pages=True),
    "paged_lion_32bit": _bitsandbytes("Lion", 32, pages=True),
    "adamw_torch_8bit": OptimizerKind(_torchao("AdamW8bit"), "torchao", 8),
    "adamw_torch_4bit": OptimizerKind(_torchao("AdamW4bit"), "torchao", 4),
}

_STOCHASTIC: dict[str, Make] = {
    # torchao's AdamW without a reduced state is exported under this name.
    "adamw_torch_fused": _torchao("_AdamW", round_stochastically=True),
    "adamw_torch": _torchao("_AdamW", round_stochastically=True),
    "adamw_torch_8bit": _torchao("AdamW8bit", round_stochastically=True),
    "adamw_torch_4bit": _torchao("AdamW4bit", round_stochastically=True),
}
