"""What the corpus is made of: odd inputs by kind, each with what becomes of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import STANDARD_ROWS

READ = "read"
"""The outcome of an input that is read; of any other it is a part of the line that answers it."""
MOST = 10
"""Inputs of one kind."""

ROWS: list[dict[str, str]] = STANDARD_ROWS[:3]


@dataclass(frozen=True)
class FileInput:
    """A file or a folder: `make` writes it into an empty folder and returns its path."""

    make: Callable[[Path], Path]
    outcome: str = READ
    rows: list[dict[str, Any]] | None = None
    """What it holds, where datasets itself cannot read it or reads other values; None where datasets says."""
    split: str = "train"
    configuration: str | None = None


@dataclass(frozen=True)
class RowInput:
    """A row, to be rendered with a template (None for plain text) and tokenized."""

    row: dict[str, Any]
    outcome: str = READ
    template: str | None = "chatml"
    as_trl: dict[str, Any] | None = None
    """The row that TRL gets, where the odd one is read as this."""


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind, by name."""

    subject: str
    name: str
    reference: str
    """What those that are read are compared with."""
    inputs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert 0 < len(self.inputs) <= MOST, self.name


def lines(rows: list[Any]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def text_file(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    """Makes a file of text."""
    return bytes_file(name, text.encode(encoding))


def bytes_file(name: str, content: bytes) -> Callable[[Path], Path]:
    """Makes a file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make
