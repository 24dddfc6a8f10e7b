"""Which files a model is: chosen by name in its folder, checked before a library opens them, and hashed.

transformers and peft look into a folder by themselves. What they would load beside these files, or in place of them, is
refused by name, so that what is hashed is what is loaded. Of weights only safetensors files are read, and no code but
that of --trust-remote-code.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from ..data.inputs import Inputs
from ..errors import ModelError

Kind = Literal["causal-lm", "token-classification", "adapter"]

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, INDEX, ADAPTER_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
# Torch's distributed checkpoints: transformers takes them before any other weights.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# What a copy of a model may have different without being another model.
_IRRELEVANT_CONFIG = {"_name_or_path", "transformers_version", "base_model_name_or_path", "inference_mode", "use_cache"}
_IMPLEMENTATIONS = {f"{prefix}{part}_implementation" for prefix in ("", "_") for part in ("attn", "experts")}
_POINTER = b"version https://git-lfs"
_HASHED_AT_ONCE = 4


@dataclass(frozen=True)
class ModelSource:
    """A model's folder on this machine. `config` is its config.json, or adapter_config.json of an adapter."""

    name: str
    folder: Path
    kind: Kind
    config: dict[str, Any]
    trust_remote_code: bool = False
    inputs: Inputs = field(default_factory=Inputs, compare=False, repr=False)
    """The files that `content_hash` stands for."""

    @property
    def base_name(self) -> str | None:
        """The base model that an adapter names."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) else None

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
        labels = self.config.get("id2label")
        return len(labels) if isinstance(labels, dict) and labels else 2

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the model consists of, and no others, in a fixed order: configuration, index, weights, code
        that may run. Those of an adapter are without its base's. Raises ModelError as `weight_files`."""
        config = self.folder / (ADAPTER_CONFIG if self.kind == "adapter" else CONFIG)
        weights = self.weight_files()
        is_indexed = self.kind != "adapter" and not (self.folder / WEIGHTS).is_file()
        return (config, *([self.folder / INDEX] if is_indexed else []), *weights, *self._code_files())

    def weight_files(self) -> list[Path]:
        """The safetensors files that hold the weights.

        Raises:
            ModelError: there are none, some are missing, or the folder holds what a library would load as well.
        """
        if self.kind == "adapter":
            names = [ADAPTER_WEIGHTS]
        else:
            self._require_no_other_weights()
            names = [WEIGHTS] if (self.folder / WEIGHTS).is_file() else self._indexed()
        missing = [name for name in names if not (self.folder / name).is_file()]
        if len(missing) == len(names):
            raise ModelError(
                f"{self.name} has no {missing[0]}, and only safetensors weights are read",
                fix="save the model with save_pretrained of a current transformers",
            )
        if missing:
            raise ModelError(
                f"{self.name} lacks {len(missing)} of the {len(names)} files of its index ({missing[0]} …)",
                fix="download or copy the missing files",
            )
        return [self.folder / name for name in names]

    def _code_files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.py")) if self.trust_remote_code else []

    def _require_no_other_weights(self) -> None:
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if ADAPTER_CONFIG in there:
            raise ModelError(
                f"{self.name} holds a model and an adapter ({ADAPTER_CONFIG}), and transformers would load both",
                fix=f"move {ADAPTER_CONFIG} and the adapter's weights to a folder of their own, and name one of them",
            )
        if {WEIGHTS, INDEX} <= there and set(self._indexed()) != {WEIGHTS}:
            raise ModelError(
                f"{self.name} holds {WEIGHTS} and {INDEX}, two sets of weights",
                fix="move the one that you do not mean to another folder",
            )
        distributed = sorted(name for name in there if _DISTRIBUTED.fullmatch(name))
        if distributed:
            raise ModelError(
                f"{self.name} holds a distributed checkpoint ({distributed[0]} …), and transformers would load that",
                fix=f"move it to another folder, beside a model saved as {WEIGHTS}",
            )
        named = self.config.get("transformers_weights")
        if named not in (None, WEIGHTS):
            raise ModelError(
                f"{self.name}: its config.json names other weights (transformers_weights {named})",
                fix=f"save the model as {WEIGHTS}, and remove that entry",
            )

    def _indexed(self) -> list[str]:
        """The files that the index names; without an index, the one file that a model has."""
        if not (self.folder / INDEX).is_file():
            return [WEIGHTS]
        places = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise ModelError(
                f"{self.folder / INDEX} has no weight_map from weights to files",
                fix="download or copy it again, or save the model again",
            )
        names = sorted(set(places.values()))
        for name in names:
            if not name.endswith(".safetensors") or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
                raise ModelError(
                    f"{self.folder / INDEX} names {name}: only safetensors weights in the model's folder are read",
                    fix="save the model with save_pretrained of a current transformers",
                )
        return names

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over configuration, weights and code that may run: equal for copies of one model, wherever they lie.

        Raises:
            ModelError: as `weight_files` and `require_whole`, or its configuration has changed since it was found.
        """
        path = self.folder / (ADAPTER_CONFIG if self.kind == "adapter" else CONFIG)
        if path.is_file():  # beside a tokenizer there may be none
            self.inputs.sha256(path)
            if read_json(path) != self.config:
                raise _changed(self.name, path)
        config = {key: value for key, value in self.config.items() if key not in _IRRELEVANT_CONFIG}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        files = self.weight_files()
        require_whole(self.name, files)
        code = self._code_files()
        names = [path.name for path in files] + [str(path.relative_to(self.folder)) for path in code]
        # Behind a link of the hub's cache too: what is written through it leaves the blob its name.
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            for name, content in zip(names, pool.map(self.inputs.sha256, files + code), strict=True):
                digest.update(name.encode() + content.encode())
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Raises ModelError where a file has changed since `content_hash` was computed. Before, nothing is compared."""
        path = self.inputs.changed()
        if path is not None:
            raise _changed(self.name, path)


def _changed(name: str, path: Path) -> ModelError:
    return ModelError(
        f"{name} has changed while it was in use: {path} is not what it was when the run began",
        fix="leave the files of a run alone until it has ended, and run the same command again",
    )


def require_whole(name: str, files: Sequence[Path]) -> None:
    """Reads the headers of safetensors files.

    Raises:
        ModelError: one is cut off, damaged, or no safetensors file, or two hold the same weight.
    """
    places: dict[str, Path] = {}
    for path in files:
        if is_pointer(path):
            raise ModelError(
                f"{path} is a pointer of Git LFS in place of the weights of {name}",
                fix="run git lfs pull in its folder",
            )
        try:
            with safe_open(path, "numpy") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is not a whole safetensors file ({error})", fix="download, copy or save it again"
            ) from error
        for key in keys:
            if places.setdefault(key, path) != path:
                raise ModelError(
                    f"{name} holds {key} twice, in {places[key].name} and {path.name}", fix="save the model again"
                )


def is_pointer(path: Path) -> bool:
    """Whether the file is what Git LFS leaves in place of a large file."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(
            f"{path} is not valid JSON ({error})", fix="download or copy it again, or save the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object", fix="download or copy it again, or save the model again")
    return content


def require_chooses_no_code(name: str, config: dict[str, Any], file: str = CONFIG) -> None:
    """Raises ModelError where a configuration names code of the hub: kernels, or modules of another repository."""
    for key, value in _entries(config):
        is_kernel = key in _IMPLEMENTATIONS and ("/" in value or ":" in value)
        if is_kernel or (key == "auto_map" and "--" in value):
            raise ModelError(
                f"{name}: its {file} names code on the hub ({key} {value}), which is not run",
                fix="remove that entry" + ("; attention is chosen by --attn-implementation" if is_kernel else ""),
            )


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a configuration, with the last of its keys that is one of those that may name code."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _entries(inner, name if name in {*_IMPLEMENTATIONS, "auto_map"} else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)
    elif isinstance(value, str):
        yield key, value


def link_model(folder: Path, files: Sequence[Path], target: Path) -> None:
    """Makes `target` a copy of `folder` in which these are the only weights, by links."""
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".safetensors", ".py")]
    for path in {*files, *others}:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve())
