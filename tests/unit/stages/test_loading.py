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

from tgdpo.data.tokenization import chat_template_hash, tokenizer_hash
from tgdpo.errors import ModelError
from tgdpo.stages.loading import add_adapter, cause_of, load_model, load_tokenizer, require_finite
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
    "negative size": (setting(hidden_size=-32), "does not load .*negative dimension"),
    "no heads": (setting(num_attention_heads=0), r"config\.json is refused .*ZeroDivisionError"),
    "size that nothing divides": (setting(hidden_size=33), "refused .*not a multiple of the number of attention heads"),
    "unknown architecture": (setting(model_type="zebra"), "zebra.*: install a transformers that knows it"),
    "no architecture": (setting(model_type=None), "model_type"),
    "architecture is a list": (setting(model_type=["llama"]), "refused .*TypeError"),
    "an encoder's architecture": (setting(model_type="vit"), "does not load .*ViTConfig"),
    "activation that is none": (setting(hidden_act="zebra"), "zebra"),
    "rope that is none": (setting(rope_scaling={"rope_type": "zebra", "factor": 2.0}), "zebra"),
    "rope that is a text": (setting(rope_parameters="zebra"), "refused .*rope_parameters"),
    "old name of a dtype": (
        setting(dtype=None, torch_dtype="torch.float32"),
        r"torch\.float32.*: write its dtype without",
    ),
    "dtype that is none": (setting(dtype="zebra"), "zebra"),
    "dtype that is a number": (setting(dtype=16), "16"),
    "attention that is none": (setting(attn_implementation="zebra"), "zebra"),
    "quantized by a text": (setting(quantization_config="zebra"), "refused .*to_dict"),
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
    "added tokens are nonsense": (setting("tokenizer_config.json", added_tokens_decoder={"a": 1}), "tokenizer"),
    # the weights
    "no weights": (without("model.safetensors"), "only safetensors weights are read"),
    "empty weights": (holding("model.safetensors", b""), "not a whole safetensors file"),
    "text for weights": (holding("model.safetensors", b"no weights"), "not a whole safetensors file"),
    "a header without end": (holding("model.safetensors", b"\xff" * 64), "not a whole safetensors file"),
    "half the weights": (cut, "not a whole safetensors file.*download, copy or save it again"),
    "weights are a pointer": (holding("model.safetensors", POINTER), "Git LFS.*git lfs pull"),
    "weights of another shape": (reshaped, r"norm\.weight is \[7\] in its weights and \[32\] by"),
    "a layer too many": (setting(num_hidden_layers=3), "lacks weights for 9 parameters"),
    "another vocabulary": (setting(vocab_size=500), r"\[400, 32\] in its weights and \[500, 32\] by its config"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_library_refuses_is_one_line(name: str, copy: Path) -> None:
    damage, says = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelError, match=says) as refused:
        load(copy)
    assert "\n" not in str(refused.value)


MENDED = {
    "pad token beyond the embedding": setting(pad_token_id=None),
    "old name of a dtype": setting(torch_dtype="float32"),
    "size that nothing divides": setting(hidden_size=32),
}


@pytest.mark.parametrize("name", MENDED)
def test_the_advice_helps(name: str, copy: Path) -> None:
    BROKEN[name][0](copy)
    MENDED[name](copy)
    assert load(copy)


def test_a_configuration_is_not_blamed_for_its_tokenizer(copy: Path) -> None:
    change(copy, vocab_size="400")
    with pytest.raises(ModelError, match=r"config\.json is refused .*'vocab_size'"):
        load_tokenizer(resolve(str(copy), "--reference"))


def test_weights_that_are_not_finite_are_named(copy: Path) -> None:
    model = load(copy)
    require_finite(model, "m")
    model.model.norm.weight.data[3] = 1e5
    require_finite(model, "m")
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* not finite in float16: use --dtype bfloat16"):
        require_finite(model.half(), "m")
    model.float().model.norm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* not finite in float32: use a model with whole"):
        require_finite(model, "m")


def test_a_cause_in_one_line() -> None:
    assert cause_of(ValueError("\n  first\nsecond")) == "first"
    assert cause_of(OSError("these:\n  and those")) == "these: and those"
    assert cause_of(KeyError("size")) == "KeyError: 'size'"
    assert cause_of(AssertionError()) == "AssertionError"
    assert len(cause_of(ValueError("a" * 10_000))) < 1000


class TestCode:
    """A configuration chooses no code."""

    @pytest.mark.parametrize(
        "entries",
        [
            {"attn_implementation": "somebody/kernel"},
            {"_attn_implementation": "somebody/kernel@main:forward"},
            {"attn_implementation": {"": "sdpa", "text_config": "somebody/kernel"}},
            {"text_config": {"attn_implementation": "somebody/kernel"}},
            {"vision": [{"_experts_implementation": "somebody/kernel"}]},
            {"auto_map": {"AutoConfig": "somebody/else--configuration.Config"}},
            {"auto_map": {"AutoTokenizer": ["somebody/else--tokenization.Slow", None]}},
        ],
    )
    def test_that_is_on_the_hub(self, entries: dict[str, Any], copy: Path) -> None:
        change(copy, **entries)
        with pytest.raises(ModelError, match=r"names code on the hub \(.*somebody/"):
            resolve(str(copy), "--reference")

    def test_of_a_tokenizer(self, copy: Path) -> None:
        change(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": ["somebody/else--code.Tokenizer", None]})
        with pytest.raises(ModelError, match=r"tokenizer_config.json names code on the hub"):
            load_tokenizer(resolve(str(copy), "--reference", trust_remote_code=True))

    def test_by_the_name_of_an_attention_that_is_not_installed(self, copy: Path) -> None:
        """transformers would take a kernel of the hub in its place."""
        change(copy, attn_implementation="flash_attention_2")
        source = resolve(str(copy), "--reference")
        with pytest.raises(ModelError, match=r"asks for flash_attention_2.*: choose another by --attn-implementation"):
            load_model(source, dtype=torch.float32, device=CPU)
        assert load_model(source, dtype=torch.float32, device=CPU, attn_implementation="sdpa")

    def test_what_is_no_code(self) -> None:
        entries = {"attn_implementation": "eager", "auto_map": {"AutoConfig": "code.Config"}, "_name_or_path": "a/b--c"}
        require_chooses_no_code("m", entries)


MESSAGES = [{"role": "user", "content": "A fox."}]


class TestTokenizers:
    """What is hashed is the tokenizer that was loaded, whichever file it came from."""

    @pytest.mark.parametrize(
        "damage",
        [
            setting("tokenizer_config.json", eos_token="<pad>"),
            setting("tokenizer_config.json", split_special_tokens=True),
            setting("tokenizer.json", normalizer={"type": "Lowercase"}),
        ],
    )
    def test_settings_that_change_ids_change_the_hash(self, damage: Callable[[Path], object], copy: Path) -> None:
        before = tokenizer_hash(load_tokenizer(resolve(str(copy), "--reference")))
        damage(copy)
        assert tokenizer_hash(load_tokenizer(resolve(str(copy), "--reference"))) != before

    def test_the_template_that_is_hashed_is_the_one_that_is_used(self, chat_models: Models, tmp_path: Path) -> None:
        folder = shutil.copytree(chat_models.reference, tmp_path / "model")
        seen = set()
        for place in (
            setting("tokenizer_config.json", chat_template="in the settings"),
            holding("chat_template.jinja", "in a file"),
            lambda folder: (folder / "additional_chat_templates").mkdir(),
            holding("additional_chat_templates/tool_use.jinja", "for tools"),
        ):
            place(folder)
            tokenizer = load_tokenizer(resolve(str(folder), "--reference"))
            seen.add((tokenizer.apply_chat_template(MESSAGES, tokenize=False), chat_template_hash(tokenizer)))
        assert len({used for used, _ in seen}) <= len({hashed for _, hashed in seen})
        assert ("in a file", chat_template_hash(tokenizer)) in seen


class TestAdapters:
    """peft is given an adapter's weights as they are hashed, and none are dropped."""

    @pytest.fixture
    def adapter(self, models: Models, tmp_path: Path) -> Path:
        base = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
        peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @staticmethod
    def added(adapter: Path, models: Models) -> Any:
        base = load_model(resolve(str(models.reference), "--reference"), dtype=torch.float32, device=CPU)
        return add_adapter(base, resolve(str(adapter), "--guidance"))

    def test_one_that_fits(self, adapter: Path, models: Models) -> None:
        assert self.added(adapter, models).peft_config

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (setting("adapter_config.json", peft_type="ZEBRA"), "refused by peft.*ZEBRA"),
            (setting("adapter_config.json", peft_type=None), "refused by peft"),
            (setting("adapter_config.json", task_type="ZEBRA"), "refused by peft.*ZEBRA"),
            (setting("adapter_config.json", r="two"), "does not fit its base|refused"),
            (setting("adapter_config.json", r=3), "does not fit its base"),
            (setting("adapter_config.json", r=-1), "does not fit its base"),
            (setting("adapter_config.json", target_modules=["zebra"]), "does not fit its base .*zebra"),
            (setting("adapter_config.json", target_modules=["q_proj", "v_proj"]), "lacks weights"),
            (setting("adapter_config.json", layers_to_transform=[0]), "which the base lacks"),
            (
                setting(
                    "adapter_config.json", peft_type="PROMPT_TUNING", num_virtual_tokens=2, tokenizer_name_or_path="x/y"
                ),
                "virtual tokens",
            ),
            (holding("adapter_config.json", "{"), "not valid JSON"),
            (holding("adapter_model.safetensors", b""), "not a whole safetensors file"),
            (without("adapter_model.safetensors"), "only safetensors weights are read"),
        ],
    )
    def test_one_that_is_refused(
        self, damage: Callable[[Path], object], says: str, adapter: Path, models: Models
    ) -> None:
        damage(adapter)
        with pytest.raises(ModelError, match=says) as refused:
            self.added(adapter, models)
        assert "\n" not in str(refused.value)

    def test_one_in_place_of_a_model(self, adapter: Path) -> None:
        with pytest.raises(ModelError, match="is an adapter, and a model is needed"):
            load_model(resolve(str(adapter), "--reference"), dtype=torch.float32, device=CPU)
