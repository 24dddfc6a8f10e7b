"""How vLLM's process is started, without vLLM; test_conformance.py has the rest."""

import os
from typing import Any

import pytest
import torch

from tgdpo.stages.score.engines.vllm import VllmEngine


def test_the_environment_of_the_process(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    chosen = VllmEngine.environment(spec(device=torch.device("cuda:1")))
    assert chosen["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert chosen["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_LOGGING_LEVEL" not in chosen
    assert "CUDA_VISIBLE_DEVICES" not in VllmEngine.environment(spec())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5,7"
    at_the_context = VllmEngine.environment(spec(longest=spec().source.context))
    assert at_the_context["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"


def test_arguments_that_change_scores_go_into_the_fingerprint() -> None:
    given = {"quantization": "fp8", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "max_num_seqs": 8}
    assert VllmEngine.lasting_arguments(given) == {"quantization": "fp8", "tensor_parallel_size": 2}
