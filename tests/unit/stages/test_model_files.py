"""Which files a model is: these are hashed and loaded, and no others."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from support import Models

from tgdpo.errors import ModelError
from tgdpo.stages.model_files import require_whole
from tgdpo.stages.models import load_model, resolve


@pytest.fixture
def copy(models: Models, tmp_path: Path) -> Path:
    """A model's folder to change."""
    return shutil.copytree(models.reference, tmp_path / "model")


@pytest.fixture
def sharded(models: Models, tmp_path: Path) -> Path:
    """The same model in several files with an index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


@pytest.fixture
def adapter(models: Models, tmp_path: Path) -> Path:
    """A LoRA adapter that changes the model."""
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def hashed(folder: Path, **options: Any) -> str:
    return resolve(str(folder), "--reference", **options).content_hash


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return dict(
        load_model(resolve(str(folder), "--reference"), dtype=torch.float32, device=torch.device("cpu")).state_dict()
    )


def names(folder: Path, **options: Any) -> list[str]:
    return [str(path.relative_to(folder)) for path in resolve(str(folder), "--reference", **options).files]


def set_index(folder: Path, content: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))


def bigger(source: Path, target: Path) -> None:
    """Other weights of the same names and shapes."""
    weights = {name: 2 * weight for name, weight in safetensors.torch.load_file(source).items()}
    safetensors.torch.save_file(weights, target, {"format": "pt"})


def test_the_files_of_a_model(copy: Path, sharded: Path, adapter: Path) -> None:
    assert names(copy) == ["config.json", "model.safetensors"]
    assert names(adapter) == ["adapter_config.json", "adapter_model.safetensors"]
    config, index, *shards = names(sharded)
    assert (config, index) == ("config.json", "model.safetensors.index.json")
    assert shards == sorted(path.name for path in sharded.glob("*.safetensors"))


BESIDE = [
    "model.fp16.safetensors",
    "consolidated.safetensors",
    "adapter_model.safetensors",
    "original/model.safetensors",
    "model-00001-of-00001.safetensors",
    "pytorch_model.bin",
    "generation_config.json",
    "modeling.py",
]


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_a_model_are_neither_hashed_nor_loaded(name: str, copy: Path) -> None:
    before = hashed(copy), loaded(copy)
    (copy / name).parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        bigger(copy / "model.safetensors", copy / name)
    else:
        (copy / name).write_text("{}")
    assert hashed(copy) == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in loaded(copy).items())


def test_a_merged_model_beside_its_adapter(copy: Path, adapter: Path) -> None:
    """transformers would put the adapter on top of the merged weights."""
    shutil.copytree(adapter, copy, dirs_exist_ok=True)
    with pytest.raises(
        ModelError, match=r"holds a model and an adapter .*: move adapter_config.json and the adapter's"
    ):
        resolve(str(copy), "--guidance")
    (copy / "elsewhere").mkdir()
    for path in copy.glob("adapter_*"):  # as the advice says
        path.rename(copy / "elsewhere" / path.name)
    assert resolve(str(copy), "--guidance").kind == "causal-lm"
    assert resolve(str(copy / "elsewhere"), "--guidance").kind == "adapter"


def test_an_adapter_beside_its_bases_configuration(models: Models, adapter: Path) -> None:
    """As axolotl writes it: no weights but the adapter's."""
    before = hashed(adapter)
    shutil.copy(models.reference / "config.json", adapter)
    assert resolve(str(adapter), "--guidance").kind == "adapter"
    assert hashed(adapter) == before


def test_weights_in_one_file_and_in_several(copy: Path, sharded: Path) -> None:
    for path in sharded.glob("model*"):
        shutil.copy(path, copy)
    with pytest.raises(ModelError, match="two sets of weights"):
        hashed(copy)


def test_an_index_of_the_one_file(copy: Path) -> None:
    before = hashed(copy)
    set_index(copy, {"weight_map": {"model.norm.weight": "model.safetensors"}})
    assert hashed(copy) == before
    assert loaded(copy)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "weights.bin"}}, "names weights.bin: only safetensors weights in the model's folder"),
        ({"weight_map": {"a": "../model.safetensors"}}, "only safetensors weights in the model's folder"),
        ({"weight_map": {"a": "sub/../../model.safetensors"}}, "only safetensors weights in the model's folder"),
        ({"weight_map": {"a": "/etc/model.safetensors"}}, "only safetensors weights in the model's folder"),
        ({"weight_map": {"a": "../../../../../../etc/passwd"}}, "only safetensors weights in the model's folder"),
        ({"weight_map": {"a": 5}}, "no weight_map from weights to files"),
        ({"weight_map": ["model.safetensors"]}, "no weight_map from weights to files"),
        ({"weight_map": {}}, "no weight_map from weights to files"),
        ({"metadata": {}}, "no weight_map from weights to files"),
        ([], "holds no JSON object"),
        ("{", "is not valid JSON .*: download or copy it again"),
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ({"weight_map": {"a": "gone.safetensors"}}, "has no gone.safetensors"),
    ],
)
def test_an_index_that_is_refused(index: Any, says: str, copy: Path) -> None:
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    torch.save(weights, copy / "weights.bin")
    (copy / "model.safetensors").unlink()
    set_index(copy, index)
    with pytest.raises(ModelError, match=says):
        hashed(copy)
    with pytest.raises(ModelError, match=says):
        loaded(copy)


def test_half_of_a_download(sharded: Path) -> None:
    last = resolve(str(sharded), "--reference").weight_files()[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=f"{last.name} is not a whole safetensors file"):
        hashed(sharded)
    last.unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of the . files of its index .{last.name}"):
        hashed(sharded)


def test_a_weight_that_is_there_twice(sharded: Path) -> None:
    files = resolve(str(sharded), "--reference").weight_files()
    weights = safetensors.torch.load_file(files[0]) | {"model.norm.weight": torch.zeros(32)}
    safetensors.torch.save_file(weights, files[0], {"format": "pt"})
    with pytest.raises(ModelError, match=r"holds model\.norm.weight twice, in"):
        require_whole("m", files)


def test_other_weights_that_transformers_would_take(copy: Path) -> None:
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(json.dumps(json.loads(config) | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(ModelError, match=r"transformers_weights other\.safetensors"):
        hashed(copy)
    (copy / "config.json").write_text(config)
    bigger(copy / "model.safetensors", copy / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match="distributed checkpoint"):
        hashed(copy)


def test_a_blob_that_has_changed_behind_its_name(copy: Path, tmp_path: Path) -> None:
    """save_pretrained into a folder of the hub's cache writes through the link."""
    weights = copy / "model.safetensors"
    blob = tmp_path / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    before = hashed(copy)
    bigger(blob, blob)
    assert hashed(copy) != before


def test_code_that_may_run_is_hashed(copy: Path) -> None:
    (copy / "modeling.py").write_text("A = 1")
    before = hashed(copy, trust_remote_code=True)
    assert names(copy, trust_remote_code=True) == ["config.json", "model.safetensors", "modeling.py"]
    (copy / "modeling.py").write_text("A = 2")
    assert hashed(copy, trust_remote_code=True) != before
    assert hashed(copy) != before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the name is empty"),
        ("/no/such/folder", "no such folder: check the path"),
        ("../no/such", "no such folder: check the path"),
        ("a/b/c", "no such folder: check the path"),
    ],
)
def test_a_name_that_is_no_model(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        resolve(name, "--reference")


def test_a_file_in_place_of_its_folder(copy: Path) -> None:
    with pytest.raises(ModelError, match="is a file: name the folder that it is in"):
        resolve(str(copy / "model.safetensors"), "--reference")
