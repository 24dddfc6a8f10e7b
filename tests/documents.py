"""Code blocks of README, CONTRIBUTING and docs/."""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PROGRAMS = (
    "accelerate", "aws", "make", "pip", "pre-commit", "python", "ray", "sbatch", "tgdpo", "torchrun", "wait", "for",
)  # fmt: skip
"""First words of a command."""


@dataclass(frozen=True)
class Block:
    """A code block; `line` counts from 1."""

    page: str
    line: int
    kind: str
    """bash, python, yaml; site for a directive, which building the site tries; listing for what is no command."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All of them, fenced or indented, in their order."""
    tokens = MarkdownIt().enable("table").parse(page.read_text())
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, token.map[0] + 1, _kind(token.info, token.content), token.content)
        for token in tokens
        if token.type in ("fence", "code_block") and token.map
    ]


def _kind(info: str, text: str) -> str:
    language = info.strip()
    if language in ("bash", "python", "yaml"):
        return language
    if language.startswith("{"):
        return "site"
    if language not in ("", "text", "bibtex"):
        raise ValueError(f"a block in {language}: say in tests/documents.py what is to be done with it")
    is_command = [
        line.split()[0] in PROGRAMS for line in text.splitlines() if line.strip() and not line.startswith(" ")
    ]
    return "bash" if is_command and all(is_command) else "listing"
