"""Options, columns and manifest keys that the documents name are those of the program."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import typer
from documents import PAGES, ROOT
from markdown_it import MarkdownIt

from tgdpo.cli import app
from tgdpo.data.manifest import Manifest
from tgdpo.data.schema import SHARD_SCHEMA

OF_OTHERS = {"--num_processes", "--bnb-4bit-", "--load-in-"}
"""accelerate's; beginnings of several names."""


def code_in_text(page: Path) -> Iterator[str]:
    """`code` within a sentence or table."""
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        yield from (child.content for child in token.children or [] if child.type == "code_inline")


def options() -> set[str]:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    return {
        name for one in commands for parameter in one.params for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_options_exist(page: Path) -> None:
    named = {name for code in code_in_text(page) for name in re.findall(r"(?<!\S)--[a-zA-Z0-9_-]+", code)}
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    unknown = named - options() - OF_OTHERS - {"--help", "--version"}
    assert {name for name in unknown if f'"{name}"' not in benchmarks} == set()


def table_of(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its first two lines."""
    section = page.read_text().split(f"## {heading}\n", 1)[1]
    lines = takewhile(lambda line: line.startswith("|"), section[section.index("\n|") + 1 :].splitlines())
    return [[cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")] for line in lines][2:]


CACHE_FORMAT = ROOT / "docs" / "cache-format.md"


def test_the_columns_are_the_schemas() -> None:
    documented = {name: row[1] for row in table_of(CACHE_FORMAT, "Columns") for name in row[0].split(", ")}
    types = {field.name: str(field.type) for field in SHARD_SCHEMA}
    assert documented == {
        name: kind.replace("element: ", "").replace("item: ", "").replace("float", "float32")
        for name, kind in types.items()
    }


def test_the_keys_are_the_manifests() -> None:
    documented = {name for row in table_of(CACHE_FORMAT, "The manifest") for name in row[0].split(", ")}
    assert documented == set(Manifest.model_fields)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Those of docs/ are the site's matter, which does not build with a broken one."""
    tokens = [child for token in MarkdownIt().parse(page.read_text()) for child in token.children or []]
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens]
    local = [target.partition("#")[0] for target in targets if target and "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []
