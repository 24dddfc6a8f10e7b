"""Models and tokenizers by name: found, and checked against each other.

Which files a model is, is in `model_files`; loading them in `loading`.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.addresses import is_url, local_path
from ..data.tokenization import chat_template_hash, vocabulary_hash
from ..errors import ModelError, UsageError
from .loading import add_adapter, cause_of, does_not_fit, load_model, load_tokenizer
from .model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    WEIGHTS,
    Kind,
    ModelSource,
    read_json,
    require_chooses_no_code,
)

__all__ = [
    "Kind",
    "ModelSource",
    "add_adapter",
    "does_not_fit",
    "has_tokenizer",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "require_same_tokenizer",
    "resolve",
    "tokenizer_source",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


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
    if not name:
        raise ModelError(
            f"{option}: the name is empty",
            fix="name a folder or a hub model (an adapter names its base in adapter_config.json)",
        )
    path = Path(name).expanduser()
    folder = local_path(name) if path.is_dir() else _download(name, option, trust_remote_code, weights)
    source = partial(ModelSource, name, folder, trust_remote_code=trust_remote_code)
    is_model, is_adapter = ((folder / file).is_file() for file in (CONFIG, ADAPTER_CONFIG))
    # Some trainers write the base's config.json beside an adapter.
    has_weights = any((folder / file).is_file() for file in (WEIGHTS, INDEX))
    if is_adapter and not (is_model and has_weights):
        return source("adapter", read_json(folder / ADAPTER_CONFIG))
    if not is_model:
        raise ModelError(
            f"{option} {name}: the folder has neither config.json nor adapter_config.json",
            fix="name a folder written by save_pretrained",
        )
    config = read_json(folder / CONFIG)
    require_chooses_no_code(name, config)
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    is_classifier = architecture.endswith("ForTokenClassification")
    found = source("token-classification" if is_classifier else "causal-lm", config)
    if is_adapter:
        found.weight_files()  # says that it is both
    return found


def _download(name: str, option: str, trust_remote_code: bool, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if Path(name).expanduser().exists():
        raise ModelError(f"{option} {name} is a file", fix="name the folder that it is in")
    if name.startswith(("/", "~", ".")) or name.count("/") > 1:
        raise ModelError(
            f"{option} {name}: no such folder",
            fix="check the path (that of an adapter's base is base_model_name_or_path in its adapter_config.json)",
        )
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
            f"{option} {name}: no such folder, and as a hub model it could not be had "
            f"({type(error).__name__}: {cause_of(error)})",
            fix="check the path or name, the network, and your access to the repository",
        ) from error


# Tokenizers


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
        raise UsageError(f"--device {device} ({cause_of(error)})", fix="use auto, cpu or cuda") from error
    return chosen


def pick_dtype(dtype: str, source: ModelSource) -> torch.dtype:
    """The dtype of `--dtype`; auto is the checkpoint's own."""
    name = source.dtype.removeprefix("torch.") if dtype == "auto" else dtype
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"{source.name} is stored as {name}", fix="name a dtype with --dtype")
    return found
