"""An item of a stage, what it is given, and the line that it leaves."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
"""JSON values by name. `rows`, a list of objects with the same keys, becomes a table of its own."""


class SkippedError(Exception):
    """Why an item does not run here."""


class ItemError(Exception):
    """What an item found wrong; its figures are kept."""

    def __init__(self, reason: str, figures: Figures) -> None:
        super().__init__(reason)
        self.figures = figures


@dataclass(frozen=True)
class Context:
    """What an item is given."""

    small: bool
    """Tiny models, so that the code runs on a CPU in seconds."""
    lines: Path
    """The stage's file of JSON lines."""
    card: Figures
    """What card.py found."""
    folder: Path
    """For files; removed after the item."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is a card."""
        return self.card.get("memory_gib") is not None

    def write(self, line: Figures) -> None:
        """Appends a line to the stage's file at once."""
        write_line(self.lines, line)

    def inside(self, folder: Path) -> "Context":
        """The same with another folder for files."""
        return replace(self, folder=folder)


@dataclass(frozen=True)
class Item:
    """A thing to do on the card.

    Args:
        work: in a process of its own; returns figures, or raises `SkippedError` or `ItemError`.
        seconds: after which the process is killed.
        group: the table that it belongs to.
        needs: "cuda", or packages.
        gib: memory of the card that it cannot do without.
        disk_gib: space for files.
    """

    name: str
    work: Callable[[Context], Figures]
    seconds: float
    group: str
    needs: tuple[str, ...] = ()
    gib: float = 0.0
    disk_gib: float = 0.0


def write_line(path: Path, line: Figures) -> None:
    """Appends one JSON object as a line and flushes it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[Figures]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
