"""The least torch that pyproject.toml allows has every name of torch that the package uses.

What is compared is names: modules, functions, classes and their attributes, as the source spells them. Methods of
tensors and keyword arguments are not seen. benchmarks/ may use newer ones.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LISTED = Path(__file__).with_name("torch_names.txt")
OUTSIDE = {"tests", "benchmarks", "docs", "build", "site"}


def sources() -> list[Path]:
    """The package's modules."""
    folders = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return [ROOT / path for path in folders if path.parts[0] not in OUTSIDE and not path.parts[0].startswith(".")]


def names_in(source: str) -> Iterator[str]:
    """Dotted names under `torch`, aliases resolved."""
    tree = ast.parse(source)
    meaning: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    meaning[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := _chain(node)) and chain[0] in meaning:
            yield ".".join([meaning[chain[0]], *chain[1:]])


def _chain(node: ast.expr) -> list[str]:
    """a.b.c as its parts; nothing for what does not begin with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    before = _chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*before, node.attr] if before and isinstance(node, ast.Attribute) else []


def found(name: str) -> Any:
    """What the installed torch has by that name."""
    parts = name.split(".")
    here: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        here = getattr(here, part) if hasattr(here, part) else importlib.import_module(".".join(parts[:number]))
    return here


def test_names_are_found_behind_their_aliases() -> None:
    source = "import torch\nfrom torch import nn as n\nimport torch.nn.functional as F\ntorch.cuda.x(n.Y, F.z, other.w)"
    assert set(names_in(source)) == {
        "torch", "torch.nn", "torch.nn.functional", "torch.cuda", "torch.cuda.x", "torch.nn.Y", "torch.nn.functional.z",
    }  # fmt: skip


def test_every_name_is_listed() -> None:
    used = {name for path in sources() for name in names_in(path.read_text())}
    listed = LISTED.read_text().split()
    assert "torch.nn.Module" in used, "nothing is found"
    assert listed == sorted(set(listed))
    least = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert least
    new, gone = sorted(used - set(listed)), sorted(set(listed) - used)
    assert not new, f"check that torch {least[1]} has them, then add them to {LISTED.name}: {new}"
    assert not gone, f"not used any more, take them out of {LISTED.name}: {gone}"


@pytest.mark.parametrize("name", LISTED.read_text().split())
def test_the_installed_torch_has_it(name: str) -> None:
    found(name)
