"""Models and tokenizers by name: found, identified by their content, checked against each other, loaded.

Only safetensors weights are read; a model's own code runs only by flag.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from ..data.addresses import is_url
from ..data.files import sha256_file
from ..data.tokenization import chat_template_hash, require_usable, vocabulary_hash
from ..errors import ModelError, UsageError

Kind = Literal["causal-lm", "token-classification", "adapter"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What a copy of a model may have different without being another model.
_IRRELEVANT_CONFIG = {"_name_or_path", "transformers_version", "base_model_name_or_path", "inference_mode", "use_cache"}
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]


@dataclass(frozen=True)
class ModelSource:
    """A model's folder on this machine. `config` is its config.json, or adapter_config.json of an adapter."""

    name: str
    folder: Path
    kind: Kind
    config: dict[str, Any]
    trust_remote_code: bool = False

    @property
    def base_name(self) -> str | None:
        """The base model that an adapter names."""
        return self.config.get("base_model_name_or_path")

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model itself, where it is nested."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype."""
        return str(
            self.config.get("dtype") or self.text_config.get("dtype") or self.config.get("torch_dtype", "float32")
        )

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, where the configuration says it."""
        length = self.text_config.get("max_position_embeddings")
        return int(length) if isinstance(length, int) and length > 0 else None

    @property
    def vocabulary_size(self) -> int | None:
        """Rows of the embedding, where the configuration says it."""
        size = self.text_config.get("vocab_size")
        return int(size) if isinstance(size, int) else None

    @property
    def labels(self) -> int:
        """Labels of a token classifier; transformers writes them as id2label and takes 2 where there is none."""
        return len(self.config.get("id2label") or (0, 1))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over weights and configuration: equal for copies of one model, wherever they lie."""
        config = {key: value for key, value in self.config.items() if key not in _IRRELEVANT_CONFIG}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for path in self.weight_files():
            digest.update(path.name.encode() + _weights_sha256(path).encode())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the model consists of, and no others: configuration, index, weights in their order. Those of an
        adapter are without its base's. Raises ModelError as `weight_files`."""
        config = self.folder / ("adapter_config.json" if self.kind == "adapter" else "config.json")
        index = self.folder / "model.safetensors.index.json"
        return (config, *([index] if self.kind != "adapter" and index.is_file() else []), *self.weight_files())

    def weight_files(self) -> list[Path]:
        """The safetensors files that hold the weights. Raises ModelError where there are none."""
        single = self.folder / ("adapter_model.safetensors" if self.kind == "adapter" else "model.safetensors")
        index = self.folder / "model.safetensors.index.json"
        if self.kind != "adapter" and index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [self.folder / name for name in names]
        else:
            files = [single]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise ModelError(
                f"{self.name} has no {missing[0]}, and only safetensors weights are read",
                fix="save the model with save_pretrained of a current transformers",
            )
        return files


def _weights_sha256(path: Path) -> str:
    # In the hub's cache a large file is a link to a blob that is named by its SHA-256.
    blob = path.resolve().name
    return blob if path.is_symlink() and _SHA256.fullmatch(blob) else sha256_file(path)


def resolve(name: str, option: str, *, trust_remote_code: bool = False, weights: bool = True) -> ModelSource:
    """Finds a model by folder or hub name (NAME@REVISION), downloading it where needed.

    Args:
        name: what the user gave.
        option: the option it was given with, for messages.
        weights: whether a hub model's weights are downloaded, or its small files alone.

    Raises:
        ModelError: there is no such model, or it is none.
        UsageError: `trust_remote_code` with a hub model that is not pinned to a commit.
    """
    if is_url(name):
        raise ModelError(f"{option} {name}: a model is a folder or on the hub", fix="copy it to a folder")
    path = Path(name).expanduser()
    folder = path if path.is_dir() else _download(name, option, trust_remote_code, weights)
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.is_file() and not config.is_file():
        return ModelSource(name, folder, "adapter", _read_json(adapter), trust_remote_code)
    if not config.is_file():
        raise ModelError(
            f"{option} {name}: the folder has neither config.json nor adapter_config.json",
            fix="name a folder written by save_pretrained",
        )
    content = _read_json(config)
    architectures = content.get("architectures") or [""]
    is_classifier = str(architectures[0]).endswith("ForTokenClassification")
    kind: Kind = "token-classification" if is_classifier else "causal-lm"
    return ModelSource(name, folder, kind, content, trust_remote_code)


def _download(name: str, option: str, trust_remote_code: bool, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if trust_remote_code and not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"{option} {name}: --trust-remote-code runs code from the hub",
            fix="pin it with NAME@REVISION, the full 40-digit commit hash that you have read",
        )
    wanted = _WANTED_FILES if weights else ["*.json"]
    if trust_remote_code:
        wanted = [*wanted, "*.py"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=wanted,
                ignore_patterns=["original/*", "consolidated*"] + ([] if weights else ["*.safetensors"]),
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{option} {name}: no such folder, and as a hub model it could not be had ({type(error).__name__})",
            fix="check the path or name, the network, and your access to the repository",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error})", fix="save the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object", fix="save the model again")
    return content


# Tokenizers


def load_tokenizer(source: ModelSource) -> Any:
    """The source's tokenizer. Raises ModelError where there is none or it cannot be used."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{source.name} has no tokenizer that loads ({_first_line(error)})",
            fix="name one with --tokenizer, or save it beside the model",
        ) from error
    require_usable(tokenizer, source.name)
    return tokenizer


def tokenizer_source(name: str) -> ModelSource:
    """Where `--tokenizer` is: a folder, which need not hold a model, or a hub name."""
    folder = Path(name).expanduser()
    return ModelSource(name, folder, "causal-lm", {}) if folder.is_dir() else resolve(name, "--tokenizer")


def has_tokenizer(source: ModelSource) -> bool:
    """Whether a tokenizer was saved beside the model."""
    return any((source.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def require_same_tokenizer(ours: Any, our_name: str, other: Any, other_name: str, *, conversational: bool) -> None:
    """Raises ModelError where the two give ids another meaning, or (for conversations) render them otherwise."""
    if vocabulary_hash(ours) != vocabulary_hash(other):
        raise ModelError(
            f"{our_name} and {other_name} have different vocabularies ({len(ours)} and {len(other)} tokens), "
            "so token ids do not mean the same",
            fix="use models of one family with one tokenizer",
        )
    templates = chat_template_hash(ours), chat_template_hash(other)
    if conversational and None not in templates and templates[0] != templates[1]:
        raise ModelError(
            f"{our_name} and {other_name} have different chat templates",
            fix="save the template that both were trained with beside both models",
        )


# Weights


def pick_device(device: str) -> torch.device:
    """The device of `--device`. Raises UsageError for one that this machine or torch does not have."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} ({_first_line(error)})", fix="use auto, cpu or cuda") from error
    return chosen


def pick_dtype(dtype: str, source: ModelSource) -> torch.dtype:
    """The dtype of `--dtype`; auto is the checkpoint's own."""
    name = source.dtype.removeprefix("torch.") if dtype == "auto" else dtype
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"{source.name} is stored as {name}", fix="name a dtype with --dtype")
    return found


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
    import transformers

    is_classifier = source.kind == "token-classification"
    auto = transformers.AutoModelForTokenClassification if is_classifier else transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        options["quantization_config"] = quantization
    if device.type != "cpu" or quantization is not None:
        options["device_map"] = {"": device}
    try:
        model, info = auto.from_pretrained(
            str(source.folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise does_not_fit(source.name, device) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{source.name} does not load ({_first_line(error)})", fix="check the model's files"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.name} lacks weights for {len(missing)} parameters of {type(model).__name__} ({missing[0]} …)",
            fix="name a complete checkpoint of that architecture",
        )
    loaded: nn.Module = model.eval()
    return loaded


def does_not_fit(name: str, device: torch.device) -> ModelError:
    """What to say where memory ends while a model is loaded or first run."""
    return ModelError(
        f"{name} does not fit on {device}", fix="use a smaller --dtype, another --device or a smaller model"
    )


def add_adapter(model: nn.Module, adapter: ModelSource, *, trainable: bool = False) -> nn.Module:
    """`model` with the PEFT adapter in it (`disable_adapter()` switches it off again).

    Raises:
        ModelError: the adapter does not fit the model, or works by virtual tokens.
        torch.OutOfMemoryError: memory ended.
    """
    import peft

    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder), is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but not one of these
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter {adapter.name} does not fit its base ({_first_line(error)})", fix="name the right base model"
        ) from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"{adapter.name} is a prompt-learning adapter, which puts virtual tokens into the sequence",
            fix="use LoRA or another adapter of the weights",
        )
    result: nn.Module = wrapped.eval()
    return result


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
