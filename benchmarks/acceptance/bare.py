"""A bare card: what the product needs beside torch and transformers comes from the folder of `make gpu-pack`.

Imports nothing that has to be installed.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = "wheels"
NEEDED = (
    "accelerate", "datasets", "fsspec", "huggingface_hub", "jinja2", "numpy", "peft", "psutil", "pyarrow", "pydantic",
    "rich", "safetensors", "tokenizers", "torch", "transformers", "typer", "yaml",
    "pytest",
)  # fmt: skip
"""Modules: those of tgdpo's own imports, and pytest for the correctness part."""


def provide(scratch: Path) -> list[str]:
    """Makes this checkout's package importable, and those of the pack's wheels that are not installed or are newer.

    Here, and in processes started from here.

    Args:
        scratch: an empty folder that stays as long as the process.

    Returns:
        Modules that are missing all the same.
    """
    (scratch / "package").mkdir()
    (scratch / "package" / "tgdpo").symlink_to(ROOT, target_is_directory=True)
    site = scratch / "site"
    for folder in (ROOT.parent / WHEELS, ROOT / "gpu-pack" / WHEELS):
        for wheel in sorted(folder.glob("*.whl")):
            if _is_wanted(wheel.name):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
    paths = [str(scratch / "package"), str(ROOT / "tests"), str(site)]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _is_wanted(wheel: str) -> bool:
    """Whether a wheel's package is not installed, or older."""
    name, version = wheel.split("-")[:2]
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return True
    return _numbers(installed) < _numbers(version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """For `provide`."""
    return tempfile.TemporaryDirectory(prefix="gpu-check-")
