"""Models, tokenizers and adapters that a library refuses: one line with the cause and advice that helps, never a
traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from support import Models

from tgdpo.data.tokenization import tokenizer_hash
from tgdpo.errors import ModelError
from tgdpo.stages.loading import add_adapter, cause_of, load_model, load_tokenizer
from tgdpo.stages.model_files import require_chooses_no_code
from tgdpo.stages.models import pick_dtype, resolve

CPU = torch.device("cpu")


@pytest.fixture
def copy(models: Models, tmp_path: Path) -> Path:
    """A model's folder to damage."""
    return shutil.copytree(models.reference, tmp_path / "model")


def change(folder: Path, file: str = "config.json", **entries: Any) -> None:
    """Sets entries of a JSON file; None removes one."""
    content = json.loads((folder / file).read_text()) | entries
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def load(folder: Path) -> Any:
    """All that a run does with a model."""
    source = resolve(str(folder), "--reference")
    assert len(source.content_hash) == 64
    load_tokenizer(source)
    return load_model(source, dtype=pick_dtype("auto", source), device=CPU)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def setting(file: str = "config.json", **entries: Any) -> Callable[[Path], object]:
    return lambda folder: change(folder, file, **entries)


def reshaped(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "nonsense"}})
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    # the configuration
    "pad token beyond the embedding": (setting(pad_token_id=400), r"(?i)padding_idx.*: set pad_token_id .* to null"),
    "number where a float is declared": (setting(initializer_range=1), "'initializer_range'.*expected float"),
    "text where a number is declared": (setting(vocab_size="400"), "'vocab_size'.*expected int, got str"),
    "negative size": (setting(hidden_size=-32), r"model (does not load|holds)|refused"),
    "no heads": (setting(num_attention_heads=0), "refused|does not load"),
    "size that nothing divides": (setting(hidden_size=33), "does not load|refused"),
    "unknown architecture": (setting(model_type="zebra"), "zebra.*: install a transformers that knows it"),
    "no architecture": (setting(model_type=None), "model_type"),
    "architecture is a list": (setting(model_type=["llama"]), "refused"),
    "an encoder's architecture": (setting(model_type="vit"), "does not load|refused"),
    "activation that is none": (setting(hidden_act="zebra"), "zebra"),
    "rope that is none": (setting(rope_scaling={"rope_type": "zebra", "factor": 2.0}), "zebra"),
    "rope that is a text": (setting(rope_parameters="zebra"), "refused|does not load"),
    "old name of a dtype": (setting(dtype=None, torch_dtype="torch.float32"), "torch.float32"),
    "dtype that is none": (setting(dtype="zebra"), "zebra"),
    "dtype that is a number": (setting(dtype=16), "16"),
    "attention that is none": (setting(attn_implementation="zebra"), "zebra"),
    "quantized by nobody": (setting(quantization_config={"quant_method": "zebra"}), "zebra"),
    "quantized by a text": (setting(quantization_config="zebra"), "does not load|refused"),
    "code without the flag": (
        setting(model_type="zebra", auto_map={"AutoConfig": "zebra.Config"}),
        "--trust-remote-code, once you have read",
    ),
    "half a configuration": (holding("config.json", '{"model_type": "ll'), "config.json is not valid JSON"),
    "empty configuration": (holding("config.json", ""), "config.json is not valid JSON"),
    "configuration of other bytes": (holding("config.json", b"\xff\xfe{}"), "config.json is not valid JSON"),
    "nested without end": (holding("config.json", "[" * 100_000), "config.json is not valid JSON"),
    "configuration is a list": (holding("config.json", "[]"), "holds no JSON object"),
    # the tokenizer
    "no tokenizer": (without("tokenizer.json"), "tokenizer"),
    "half a tokenizer": (holding("tokenizer.json", "{"), "no tokenizer that loads"),
    "a tokenizer of another kind": (holding("tokenizer.json", TOKENIZER), "no tokenizer that loads"),
    "tokenizer is a pointer": (holding("tokenizer.json", POINTER), "Git LFS.*git lfs pull"),
    "half the tokenizer's settings": (holding("tokenizer_config.json", "{"), "tokenizer_config.json is not valid JSON"),
    "tokenizer without EOS": (setting("tokenizer_config.json", eos_token=None), "no EOS token"),
    "special token is a number": (setting("tokenizer_config.json", eos_token=5), "no tokenizer that loads"),
    "tokenizer's class is none": (setting("tokenizer_config.json", tokenizer_class="Zebra"), ""),
    "added tokens are nonsense": (setting("tokenizer_config.json", added_tokens_decoder={"a": 1}), "tokenizer"),
    # the weights
    "no weights": (without("model.safetensors"), "only safetensors weights are read"),
    "empty weights": (holding("model.safetensors", b""), "not a whole safetensors file"),
    "text for weights": (holding("model.safetensors", b"no weights"), "not a whole safetensors file"),
    "a header without end": (holding("model.safetensors", b"\xff" * 64), "not a whole safetensors file"),
    "half the weights": (cut, "not a whole safetensors file.*download, copy or save it again"),
    "weights are a pointer": (holding("model.safetensors", POINTER), "Git LFS.*git lfs pull"),
    "weights of another shape": (reshaped, "model.norm.weight|size|shape"),
    "a layer too many": (setting(num_hidden_layers=3), "lacks weights for 9 parameters"),
    "another vocabulary": (setting(vocab_size=500), "size|shape|does not load"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_library_refuses_is_one_line(name: str, copy: Path) -> None:
    damage, says = BROKEN[name]
    damage(copy)
    try:
        load(copy)
    except ModelError as error:
        print(f"{name:35} {error}")
        import re
        assert re.search(says, str(error)), str(error)
        assert "\n" not in str(error)
    else:
        print(f"{name:35} LOADS")
