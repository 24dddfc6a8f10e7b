"""vLLM's V2 model runner on a CPU, for tests: its Triton kernels run in Triton's interpreter.

The runner is that of GPUs, and with it the route of target ids, from the request to the scores; only the attention and
the compiler of its kernels are others.
"""

from types import SimpleNamespace
from typing import Any

from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.vllm import VllmEngine
from tgdpo.stages.score.engines.vllm_worker import InProcessVllm


class VllmV2Engine(VllmEngine):
    """As `VllmEngine`, with the V2 runner."""

    inner = f"{__name__}.InProcessVllmV2"

    @staticmethod
    def environment(spec: EngineSpec) -> dict[str, str]:
        """See `ProcessEngine.environment`."""
        own = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "TORCHDYNAMO_DISABLE": "1"}
        return VllmEngine.environment(spec) | own


class InProcessVllmV2(InProcessVllm):
    """Runs in the child."""

    def __init__(self, spec: EngineSpec) -> None:
        import triton.backends

        backends: dict[str, Any] = triton.backends.backends
        backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
        super().__init__(spec)
        assert self._by_target_ids
