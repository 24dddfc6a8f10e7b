"""What the benchmarks share: random models of fixed sizes, pairs of fixed lengths, and one process per measurement."""

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tgdpo.data.tokenization import PairIds

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "vocab_size": 320, "tie_word_embeddings": False},
    "S-32k": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
              "vocab_size": 32_000, "tie_word_embeddings": False},
    "M-32k": {"hidden_size": 640, "intermediate_size": 1760, "num_hidden_layers": 12, "num_attention_heads": 10,
              "vocab_size": 32_000, "tie_word_embeddings": False},
    "M-128k": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8,
               "vocab_size": 128_256, "tie_word_embeddings": True},
    "Llama-3-1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                   "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True},
    "Llama-3-8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
                   "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False},
}  # fmt: skip
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(name: str, dtype: str, seed: int = 0) -> Any:
    """A randomly initialised Llama on `DEVICE`."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(max_position_embeddings=8192, dtype=getattr(torch, dtype), **MODELS[name])
    with DEVICE:
        return transformers.AutoModelForCausalLM.from_config(config)


def make_pairs(
    count: int, vocabulary: int, *, prompt: tuple[int, int], response: tuple[int, int], seed: int = 0
) -> list[PairIds]:
    """Pairs of random ids with lengths drawn evenly from the ranges."""
    rng = np.random.default_rng(seed)
    ranges = (prompt, response, response)
    return [
        PairIds(*(rng.integers(5, vocabulary, rng.integers(low, high + 1)).astype(np.int32) for low, high in ranges))
        for _ in range(count)
    ]


def measure(step: Callable[[int], float], steps: int, warm: int = 1) -> dict[str, float]:
    """Runs `step(0)` to `step(warm - 1)` to warm up, then `steps` more.

    Returns:
        Median seconds, the first and last value of `step` (a loss, to compare variants), and peak memory in MB.
    """
    values = [step(i) for i in range(warm)]
    first, seconds = values[0], []
    for i in range(warm, warm + steps):
        start = time.perf_counter()
        value = step(i)  # a float, so the device has finished
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "first": first, "last": value, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Highest memory of this process so far: what PyTorch held on the GPU, else resident memory."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss begins with what the process that started this one had
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """`peak_mb` counts from what is held now, where the system can do that."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class VariantError(Exception):
    """A variant that did not end well, in a line."""


def in_process(script: str, variant: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Runs `script --variant …` in a process of its own and reads the JSON object of its last line.

    Raises:
        VariantError: it failed; what it printed is on stderr.
    """
    command = [sys.executable, script, "--variant", variant, *arguments]
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | environment)
    if done.returncode:
        print(f"{variant} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
        last = done.stderr.strip().splitlines()[-1:]
        raise VariantError(f"failed: {last[0] if last else done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


_CALL = """
import json, resource, sys, time
start = time.perf_counter()
from tgdpo import cli
sys.argv = ["tgdpo", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as exit_:
    assert exit_.code == 0, exit_.code
used = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss begins with what the process that started this one had; VmHWM is this program's own.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
found = {
    "seconds": time.perf_counter() - start,
    "cpu": used.ru_utime + used.ru_stime,
    "peak_mb": int(peak.split()[1]) / 1024,
}
print(json.dumps(found), file=sys.stderr)
"""


def run_tgdpo(*arguments: object) -> dict[str, float]:
    """Runs the command line in a process of its own, one thread.

    Returns:
        `seconds`, `cpu` seconds of the processor, and `peak_mb`, its highest resident memory.
    """
    command = [sys.executable, "-c", _CALL, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return result


def machine() -> str:
    """One line on what the figures were measured on."""
    gpu = f"{torch.cuda.get_device_name()}, " if DEVICE.type == "cuda" else ""
    cpu = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{len(names)} x {names[0]}" if names else cpu
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{gpu}{cpu}, {versions}"


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
