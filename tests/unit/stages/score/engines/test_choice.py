"""Which engine is taken, and what it is told."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import Cli, Models

from tgdpo.errors import ModelError, UsageError
from tgdpo.pipeline.configuration import build
from tgdpo.stages.models import ModelSource
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.score.engines import vllm
from tgdpo.stages.score.engines.choice import choose_engine, engine_arguments

NO_OPTIONS = dict.fromkeys(
    ("tensor_parallel_size", "pipeline_parallel_size", "quantization", "gpu_memory_utilization", "max_model_len")
)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def source(architecture: str = "LlamaForCausalLM", kind: Any = "causal-lm") -> ModelSource:
    return ModelSource("org/model", Path("nowhere"), kind, {"architectures": [architecture]})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM for CUDA were installed."""
    monkeypatch.setattr(vllm, "installed_version", lambda: "0.33.0")
    monkeypatch.setattr(vllm, "is_cpu_build", lambda: False)
    monkeypatch.setattr(vllm, "describe", lambda: vllm.Description(["block_size"], ["LlamaForCausalLM"]))


@pytest.mark.usefixtures("installed")
def test_auto_takes_vllm_on_cuda_and_says_why() -> None:
    choice = choose_engine("auto", [source()], CUDA, None)
    assert choice.name == "vllm"
    assert "knows LlamaForCausalLM" in str(choice.reason)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("sources", "device", "attention", "reason"),
    [
        ([source()], CPU, None, "the device is cpu"),
        ([source(), source("LlamaForTokenClassification", "token-classification")], CUDA, None, "token classifier"),
        ([source()], CUDA, "sdpa", "--attn-implementation"),
        ([source(), source("NovelForCausalLM")], CUDA, None, "does not know the architecture of org/model"),
    ],
)
def test_auto_takes_transformers_and_says_why(sources: Any, device: Any, attention: Any, reason: str) -> None:
    choice = choose_engine("auto", sources, device, attention)
    assert choice.name == "transformers"
    assert reason in str(choice.reason)


@pytest.mark.usefixtures("installed")
def test_auto_without_a_vllm_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModelError("vllm 0.33.0 is installed but does not import (no libcudart)", fix="…")

    monkeypatch.setattr(vllm, "describe", broken)
    assert "no libcudart" in str(choose_engine("auto", [source()], CUDA, None).reason)
    monkeypatch.setattr(vllm, "installed_version", lambda: None)
    assert choose_engine("auto", [source()], CUDA, None) == ("transformers", "vllm is not installed")


def test_arguments_are_read_as_yaml() -> None:
    further = ("block_size=32", "async-scheduling=false", "kv_cache_dtype=fp8", "x=1e-5", "y={a: [1, 2]}", "z=a=b",
               "no=No", "on=on", "quoted='no'", "count=1_000", "base=010")  # fmt: skip
    assert engine_arguments(NO_OPTIONS | {"quantization": "fp8"}, further) == {
        "quantization": "fp8",
        "block_size": 32,
        "async_scheduling": False,
        "kv_cache_dtype": "fp8",
        "x": 1e-5,
        "y": {"a": [1, 2]},
        "z": "a=b",
        "no": False,
        "on": True,
        "quoted": "no",
        "count": 1000,
        "base": 10,
    }


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("block_size",), "is no KEY=VALUE"),
        (("a=1", "a=2"), "--engine-arg a is given twice"),
        (("quantization=awq",), "--quantization is given twice"),
        (("a={",), "not valid YAML"),
        (("a={b: 1, b: 2}",), "line 1 sets 'b' again, after line 1: correct it"),
    ],
)
def test_arguments_that_cannot_be_read(further: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine_arguments(NO_OPTIONS | {"quantization": "fp8"}, further)


def test_a_mapping_in_yaml_is_the_same_as_flags() -> None:
    arguments = {"block_size": 32, "compilation_config": {"mode": 0}, "eager": True, "text": "a b"}
    config = build(ScoreConfig, {"dataset": "d", "output": "o", "engine_arg": arguments | {"compile": "no"}})
    assert engine_arguments(NO_OPTIONS, config.engine_arg) == arguments | {"compile": False}


OWN_ENGINE = """
from tgdpo.stages.score.engines import Engine, PairScores

class Halves(Engine):
    def __init__(self, spec):
        self.name = spec.name

    @staticmethod
    def versions():
        return {"halves": "7"}

    def score(self, pairs, on_batch):
        on_batch(len(pairs), sum(pair.tokens for pair in pairs))
        return [PairScores(-0.5 + 0 * pair.chosen.astype("float32"), -0.5 + 0 * pair.rejected.astype("float32"))
                for pair in pairs]

    def close(self):
        pass

class Short(Halves):
    def score(self, pairs, on_batch):
        return super().score(pairs, on_batch)[1:]

class Unfinished:
    def score(self, pairs, on_batch):
        return []
"""


@pytest.fixture
def own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with engines in the current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "own_engines.py").write_text(OWN_ENGINE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_engines", raising=False)
    return "own_engines"


def test_an_engine_of_the_users(own_engine: str, ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    import pandas as pd

    from tgdpo.data.manifest import Manifest

    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance, "--output",
       tmp_path / "cache", "--engine", f"{own_engine}.Halves")  # fmt: skip
    frame = pd.read_parquet(tmp_path / "cache")
    assert all((logps == -0.5).all() for logps in frame.chosen_ref_logps)
    fingerprint = Manifest.read(tmp_path / "cache").fingerprint
    assert (fingerprint["engine"], fingerprint["halves"]) == (f"{own_engine}.Halves", "7")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_engines.Short", "gave other numbers of scores"),
        ("own_engines.Unfinished", "own_engines.Unfinished has no switches_adapter"),
        ("own_engines.Missing", "cannot be imported"),
        ("nowhere_at_all.Engine", "cannot be imported"),
        ("transformer", "did you mean 'transformers'"),
    ],
)
def test_an_engine_that_is_none(
    own_engine: str, name: str, message: str, run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    refused = run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
                      "--engine", name)  # fmt: skip
    assert message in refused.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tensor-parallel-size", 2], "--tensor-parallel-size: TransformersEngine has no such argument"),
        (["--engine-arg", "x=1"], "--engine-arg x: TransformersEngine has no such argument"),
        (["--engine", "dummy", "--engine-arg", "seconds_per_tokens=1"], "did you mean 'seconds_per_token'?"),
        (["--engine", "dummy", "--engine-arg", "seconds_to_load=long"], "no number of seconds"),
        (["--check-against", "transformers"], "scored with transformers already"),
        (["--check-against", "dummy:0"], "write ENGINE or ENGINE:N"),
        (["--check-against", "dumy"], "did you mean 'dummy'?"),
    ],
)
def test_options_that_the_engine_has_not(
    options: list[Any], message: str, run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    refused = run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
                      *options)  # fmt: skip
    assert refused.code == 2
    assert message in refused.error
    assert not (tmp_path / "cache").exists()


def vllm_spec(**changes: Any) -> Any:
    defaults = {"source": source(), "name": "org/model", "attn_implementation": None, "device": CUDA, "arguments": {}}
    return SimpleNamespace(**(defaults | changes))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": source(kind="token-classification")}, "token classifier.*use --engine transformers"),
        ({"attn_implementation": "sdpa"}, "attention of transformers"),
        ({"device": CPU}, "runs on GPUs, and the device is cpu"),
        ({"device": torch.device("mps")}, "does not run on mps"),
        ({"arguments": {"blok_size": 16}}, "did you mean 'block_size'"),
        ({"arguments": {"dtype": "half"}}, "use --dtype"),
        ({"arguments": {"skip_tokenizer_init": False}}, "scoring settles this itself"),
    ],
)
def test_what_vllm_cannot_do_is_said_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vllm.VllmEngine.check(vllm_spec(**changes))


@pytest.mark.usefixtures("installed")
def test_vllm_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "installed_version", lambda: "0.31.2")
    with pytest.raises(UsageError, match=r"vllm 0\.31\.2 is too old.*pip install"):
        vllm.VllmEngine.check(vllm_spec())
    monkeypatch.setattr(vllm, "installed_version", lambda: None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'tgdpo\[vllm\]'"):
        vllm.VllmEngine.check(vllm_spec())
