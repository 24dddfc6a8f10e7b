"""The card: its name, driver, clocks and versions, what it can do at most, and its row of the data sheets."""

import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from tgdpo.stages.hardware import GIB, GPUS, Gpu

from .item import Context, Figures

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "datasets", "pydantic", "pyarrow", "torchao",
            "liger-kernel", "cut-cross-entropy", "trl", "vllm", "ray")  # fmt: skip
QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def look(context: Context) -> Figures:
    """Everything that a figure must be read with, and the ceilings: bytes copied and bfloat16 products a second."""
    found: Figures = {"python": platform.python_version(), "versions": versions()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        return found | {"card": "CPU"} | ceilings(device, small=True)
    properties = torch.cuda.get_device_properties(device)
    name = torch.cuda.get_device_name(device)
    known = known_gpu(name)
    return found | {
        "card": name,
        "memory_gib": round(properties.total_memory / GIB, 2),
        "free_gib": round(torch.cuda.mem_get_info(device)[0] / GIB, 2),
        "multiprocessors": properties.multi_processor_count,
        "data_sheet_tflops": known.flops / 1e12 if known else None,
        **smi(),
        **ceilings(device, small=context.small),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def smi() -> Figures:
    """What nvidia-smi says, if it is there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(QUERY, (value.strip() for value in values[0].split(",")), strict=False)) if values else {}


def ceilings(device: torch.device, *, small: bool) -> Figures:
    """Terabytes a second of a copy, read and written, and TFLOP/s of a square bfloat16 product of random numbers."""
    side, elements = (256, 2**20) if small else (8192, 2**32)
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = seconds_of(lambda: left @ right, device)
    source = torch.zeros(elements, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device)
    return {"matmul_tflops": 2 * side**3 / product / 1e12, "copy_tb_per_second": 2 * elements / copy / 1e12}


def seconds_of(work: object, device: torch.device, repeats: int = 10) -> float:
    """Mean seconds of a call, after three to warm up."""
    assert callable(work)
    for _ in range(3):
        work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def known_gpu(name: str) -> Gpu | None:
    """The row of the data sheets for what a driver calls a card ("NVIDIA H100 80GB HBM3"); None for one without."""
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"rtx\s+", "rtx", name.lower())))
    if "nvl" in words:  # another memory and another clock than the SXM card of that name
        return None
    fitting = [gpu for gpu in GPUS.values() if set(gpu.name.lower().split("-")) <= words]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


def shares(context: Context, flops_per_second: float) -> Figures:
    """Of the data sheet's peak and of the measured product, on a GPU; on a CPU they say nothing."""
    if not context.on_gpu:
        return {}
    peak, product = context.card.get("data_sheet_tflops"), context.card["matmul_tflops"]
    found = {"share_of_product": flops_per_second / 1e12 / product}
    return found | ({"share_of_peak": flops_per_second / 1e12 / peak} if peak else {})
