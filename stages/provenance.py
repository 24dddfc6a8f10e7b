"""What made a run: versions, hardware, the revision of a checkout. For run.json, a policy's card, and `tgdpo env`."""

import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..data.versions import __version__

PACKAGE = Path(__file__).parents[1]
TRAINED_WITH = ("torch", "transformers", "peft", "accelerate")
"""Packages whose versions a training run records."""
LIBRARIES = (
    *TRAINED_WITH,
    *("datasets", "tokenizers", "safetensors", "huggingface-hub", "pyarrow", "numpy", "fsspec", "pydantic", "typer"),
)
OPTIONAL = ("vllm", "ray", "bitsandbytes", "torchao", "deepspeed", "triton", "s3fs", "wandb", "tensorboard", "trackio")


def made_with(device: Any, processes: int) -> dict[str, Any]:
    """What a training run records of the software and hardware that it runs on, as JSON values.

    Args:
        device: the torch.device of this process.
        processes: how many train.
    """
    return {
        "tgdpo": __version__,
        "git_revision": git_revision(),
        **versions(TRAINED_WITH),
        "device": device_name(device),
        "driver": driver() if device.type == "cuda" else None,
        "processes": processes,
    }


def environment() -> dict[str, str]:
    """What a bug report should say, a line each."""
    import torch

    gpus = [device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    optional = {name: found for name, found in versions(OPTIONAL).items() if found}
    return {
        "tgdpo": __version__,
        "git revision": git_revision() or "none: not a checkout",
        "Python": platform.python_version(),
        "platform": platform.platform(),
        **{name: found or "not installed" for name, found in versions(LIBRARIES).items()},
        **optional,
        "not installed": ", ".join(name for name in OPTIONAL if name not in optional) or "none",
        "CUDA of torch": torch.version.cuda or "none: a build for CPUs",
        "GPU driver": driver() or "none",
        "GPUs": ", ".join(gpus) or "none",
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of installed packages; None of one that is missing."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_revision() -> str | None:
    """The commit of a checkout that the package runs from, with "+changes" if tracked files differ from it; None of an
    installed package."""
    if not (PACKAGE / ".git").exists():
        return None
    revision = _output("git", "-C", str(PACKAGE), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(PACKAGE), "status", "--porcelain", "--untracked-files=no")
    return revision and revision + ("+changes" if changes else "")


def device_name(device: Any) -> str:
    """The name of a GPU, or the kind of CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def driver() -> str | None:
    """The version of the NVIDIA driver; None without one."""
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _output(*command: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10)
        return done.stdout.strip()
    return None
