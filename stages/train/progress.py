"""What a person sees of a step beside the bar, short enough for a line of 80 columns with the bar's own parts."""

from typing import Any

import psutil
import torch


def status(record: dict[str, Any], device: torch.device) -> str:
    """Loss, accuracy, margin, speed and memory, from the last logged record."""
    parts = [f"loss {record['loss']:.3f}"]
    if "rewards/margins" in record:
        parts.append(f"acc {record['rewards/accuracies']:.2f} margin {record['rewards/margins']:.3g}")
    return " ".join([*parts, f"{_short(record['tokens_per_second'])} tok/s {memory(device)}"])


def memory(device: torch.device) -> str:
    """The most that tensors took on a GPU so far; what the process takes now on a CPU."""
    on_gpu = device.type == "cuda"
    gib = (torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss) / 2**30
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB"


def _short(number: float) -> str:
    if number < 1000:
        return f"{number:.0f}"
    thousands = number / 1000
    return f"{thousands:.0f}k" if thousands >= 10 else f"{thousands:.1f}k"
