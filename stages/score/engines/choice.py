"""Which engine runs the models, and with which arguments, from what the user asked for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from ....errors import TgdpoError, UsageError
from ...models import ModelSource
from ...yaml_text import TRUTH_WORDS, parse_yaml
from . import NAMED_ARGUMENTS, argument_option

AUTO = "auto"


class Choice(NamedTuple):
    """An engine's name, and why it was taken where the user left that open."""

    name: str
    reason: str | None = None


def choose_engine(
    asked: str, sources: Sequence[ModelSource], device: torch.device, attn_implementation: str | None
) -> Choice:
    """The engine for `--engine`: auto takes vllm on CUDA where it is installed and knows all models.

    Args:
        asked: what the user asked for.
        sources: the models that will run; of an adapter, its base.
    """
    if asked != AUTO:
        return Choice(asked)
    against_vllm = _against_vllm(sources, device, attn_implementation)
    if against_vllm:
        return Choice("transformers", against_vllm)
    return Choice("vllm", f"on {device.type}, installed, and knows {_architectures(sources)}")


def _against_vllm(sources: Sequence[ModelSource], device: torch.device, attn_implementation: str | None) -> str | None:
    from .vllm import describe, installed_version, is_cpu_build

    if device.type != "cuda":
        return f"the device is {device.type}"
    if any(source.kind == "token-classification" for source in sources):
        return "guidance is a token classifier"
    if attn_implementation:
        return "--attn-implementation is its option"
    if installed_version() is None:
        return "vllm is not installed"
    if is_cpu_build():
        return "this build of vllm runs on the CPU alone"
    try:
        known = describe()
    except TgdpoError as error:
        return error.problem
    unknown = [source.name for source in sources if not set(_architecture(source)) & set(known.architectures)]
    return f"vllm does not know the architecture of {unknown[0]}" if unknown else None


def _architecture(source: ModelSource) -> list[str]:
    return list(source.config.get("architectures") or [])


def _architectures(sources: Sequence[ModelSource]) -> str:
    return ", ".join(sorted({name for source in sources for name in _architecture(source)}))


def engine_arguments(named: Mapping[str, Any], further: Sequence[str]) -> dict[str, Any]:
    """The engine's arguments from the options of their own and `--engine-arg KEY=VALUE`, values read as YAML.

    Raises:
        UsageError: one is given twice, or is no KEY=VALUE.
    """
    arguments = {name: named[name] for name in NAMED_ARGUMENTS if named[name] is not None}
    for text in further:
        name, separator, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not separator or not name:
            raise UsageError(f"--engine-arg {text} is no KEY=VALUE", fix="write it like --engine-arg block_size=32")
        if name in arguments:
            raise UsageError(f"{argument_option(name)} is given twice", fix="give it once")
        arguments[name] = _value(value, text)
    return arguments


def _value(text: str, whole: str) -> Any:
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(
            f"--engine-arg {whole}: the value is {error}", fix="correct it, or quote it where it is text"
        ) from error
    if not isinstance(value, str):
        return value
    # What an argument takes is not known here: unquoted words for true and false are that, as in YAML 1.1.
    if (word := text.strip().lower()) in TRUTH_WORDS:
        return TRUTH_WORDS[word]
    for number in (int, float):  # also 1_000 and nan, which YAML 1.2 takes for text
        with suppress(ValueError):
            return number(value)
    return value
