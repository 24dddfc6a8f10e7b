"""Models, adapters and tokenizers loaded. Whatever a library says of what it does not take becomes one line here."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..data.tokenization import require_usable
from ..errors import ModelError, TgdpoError
from .model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    ModelSource,
    is_pointer,
    read_json,
    require_chooses_no_code,
    require_whole,
)

_TOKENIZER_CONFIG = "tokenizer_config.json"
_ADVICE = {
    "trust_remote_code": "pass --trust-remote-code, once you have read that code",
    "adding_idx": "set pad_token_id in its config.json to null, or to an id below vocab_size",
    "does not recognize this architecture": "install a transformers that knows it",
    "no attribute 'torch.": "write its dtype without torch., such as float32",
}
"""What to do about a cause, by a part of it."""
_LINE = 400
"""Characters of a cause."""
# Their text says enough without their name.
_SAYING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


def cause_of(error: BaseException) -> str:
    """What an exception says, in one line: its first line, and the next where that ends with a colon."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    while first.endswith(":") and others:
        first = f"{first} {others.pop(0)}"
    is_clear = isinstance(error, _SAYING) or first == type(error).__name__
    return (first if is_clear else f"{type(error).__name__}: {first}")[:_LINE]


@contextmanager
def one_line(problem: str, *, fix: str) -> Iterator[None]:
    """Turns whatever libraries raise in the block into one line: `problem`, the cause, and advice that fits the cause.

    Raises:
        ModelError: in place of everything but the end of memory and errors of this package.
    """
    try:
        yield
    except (TgdpoError, torch.OutOfMemoryError, MemoryError):
        raise
    except BaseException as error:
        # The panics of Rust are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        advice = next((advice for part, advice in _ADVICE.items() if part in str(error)), fix)
        raise ModelError(f"{problem} ({cause_of(error)})", fix=advice) from error


def load_configuration(source: ModelSource) -> Any:
    """The source's config.json as transformers reads it. Raises ModelError where it does not."""
    import transformers

    with one_line(f"{source.folder / CONFIG} is refused by transformers", fix="correct it, or save the model again"):
        return transformers.AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
        )


def load_tokenizer(source: ModelSource) -> Any:
    """The source's tokenizer. Raises ModelError where there is none or it cannot be used."""
    import transformers

    settings = source.folder / _TOKENIZER_CONFIG
    if settings.is_file():
        require_chooses_no_code(source.name, read_json(settings), _TOKENIZER_CONFIG)
    for path in (source.folder / name for name in ("tokenizer.json", "tokenizer.model")):
        if path.is_file() and is_pointer(path):
            raise ModelError(
                f"{path} is a pointer of Git LFS in place of a tokenizer", fix="run git lfs pull in its folder"
            )
    with one_line(
        f"{source.name} has no tokenizer that loads", fix="name one with --tokenizer, or save it beside the model"
    ):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
            )
        except Exception:
            # It reads config.json too: another tokenizer would not help where that is the cause.
            if (source.folder / CONFIG).is_file():
                load_configuration(source)
            raise
        require_usable(tokenizer, source.name)
    return tokenizer


def load_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str | None = None,
    quantization: Any = None,
) -> nn.Module:
    """The causal LM or token classifier of `source`, in evaluation mode.

    Args:
        quantization: a quantization configuration of transformers.

    Raises:
        ModelError: the weights do not load or leave parameters without a value.
    """
    _require_loadable(source, attn_implementation)
    is_classifier = source.kind == "token-classification"
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        options["quantization_config"] = quantization
    if device.type != "cpu" or quantization is not None:
        options["device_map"] = {"": device}
    try:
        with one_line(f"{source.name} does not load", fix="check its config.json"):
            model, info = auto_model(is_classifier).from_pretrained(
                str(source.folder),
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are named below
                trust_remote_code=source.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except torch.OutOfMemoryError as error:
        raise does_not_fit(source.name, device) from error
    _require_all_there(source, type(model).__name__, info)
    source.require_unchanged()
    loaded: nn.Module = model.eval()
    return loaded


def _require_all_there(source: ModelSource, architecture: str, info: dict[str, Any]) -> None:
    for key, held, made in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{source.name} does not load ({key} is {list(held)} in its weights and {list(made)} by its config.json)",
            fix="put config.json and weights of one model together",
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.name} lacks weights for {len(missing)} parameters of {architecture} ({missing[0]} …)",
            fix="name a complete checkpoint of that architecture",
        )


def auto_model(is_classifier: bool) -> Any:
    """The class of transformers that makes a token classifier, or a causal LM."""
    import transformers

    return transformers.AutoModelForTokenClassification if is_classifier else transformers.AutoModelForCausalLM


def _require_loadable(source: ModelSource, attn_implementation: str | None) -> None:
    if source.kind == "adapter":
        raise ModelError(
            f"{source.name} is an adapter, and a model is needed here", fix="merge it into its base and name the result"
        )
    require_whole(source.name, source.weight_files())
    config = load_configuration(source)
    also = [name for name in getattr(type(config), "extra_files", ()) if (source.folder / name).is_file()]
    if also:
        raise ModelError(
            f"{source.name}: transformers would load {also[0]} as well, which is not among the files that are hashed",
            fix="use another model",
        )
    attention = str(getattr(config, "_attn_implementation", None))
    if attn_implementation is None and attention.startswith("flash_attention") and find_spec("flash_attn") is None:
        # transformers would take a kernel from the hub.
        raise ModelError(
            f"{source.name}: its config.json asks for {attention}, which is not installed",
            fix="choose another by --attn-implementation, such as sdpa",
        )


def require_finite(model: nn.Module, name: str) -> None:
    """Raises ModelError where a weight is infinite or not a number, with the weight's name."""
    for weight, values in model.named_parameters():
        if values.is_meta or not values.is_floating_point():
            continue
        # Of eight bits torch does not tell.
        if not torch.isfinite(values.float() if values.element_size() == 1 else values).all():
            dtype = str(values.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name}: {weight} holds values that are not finite in {dtype}",
                fix="use --dtype bfloat16 or float32" if dtype == "float16" else "use a model with whole weights",
            )


def does_not_fit(name: str, device: torch.device) -> ModelError:
    """What to say where memory ends while a model is loaded or first run."""
    return ModelError(
        f"{name} does not fit on {device}", fix="use a smaller --dtype, another --device or a smaller model"
    )


def add_adapter(model: nn.Module, adapter: ModelSource, *, trainable: bool = False) -> nn.Module:
    """`model` with the PEFT adapter in it (`disable_adapter()` switches it off again).

    Raises:
        ModelError: the adapter does not fit the model, works by virtual tokens, or names further adapters.
        torch.OutOfMemoryError: memory ended.
    """
    import peft

    require_whole(adapter.name, adapter.weight_files())
    with one_line(f"{adapter.folder / ADAPTER_CONFIG} is refused by peft", fix="correct it, or save the adapter again"):
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        # Before these are loaded: some read further files that the configuration names.
        is_prompt_learning = config.is_prompt_learning
    if is_prompt_learning:
        raise ModelError(
            f"{adapter.name} is a prompt-learning adapter, which puts virtual tokens into the sequence",
            fix="use LoRA or another adapter of the weights",
        )
    if config.peft_type == peft.PeftType.XLORA:
        raise ModelError(
            f"{adapter.name} is an X-LoRA adapter, which reads further adapters", fix="use LoRA, or merge it"
        )
    with (
        one_line(f"the adapter {adapter.name} does not fit its base", fix="name the right base model"),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")  # Python drops those that it has shown before
        wrapped: Any = peft.PeftModel.from_pretrained(model, str(adapter.folder), is_trainable=trainable)
    _require_all_used(wrapped, adapter, [str(warning.message) for warning in said])
    adapter.require_unchanged()
    result: nn.Module = wrapped.eval()
    return result


def _require_all_used(wrapped: Any, adapter: ModelSource, said: list[str]) -> None:
    """Raises ModelError where the adapter's weights are not those that the base has room for."""
    import peft

    missing = [line for line in said if "missing adapter keys" in line]
    with safe_open(adapter.folder / ADAPTER_WEIGHTS, "numpy") as file:
        names = list(file.keys())
    held = {name for name in names if ".lora_" in name and "experts" not in name}
    known = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
    unused = sorted(held - known)
    if missing or (unused and not getattr(wrapped.get_base_model(), "_checkpoint_conversion_mapping", None)):
        what = f"has weights for {unused[0]} …, which the base lacks" if unused else f"lacks weights: {missing[0]}"
        raise ModelError(
            f"the adapter {adapter.name} does not fit its base (it {what[:_LINE]})", fix="name the right base model"
        )
