"""The corpus as a table. `PYTHONPATH=tests python -m corpus.table` writes it into docs/reliability.md."""

import re
from pathlib import Path

from . import files, folders, rows
from .inputs import READ

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
KINDS = [*files.KINDS, *rows.KINDS, *folders.KINDS]
FIRST, LAST = "<!-- corpus -->", "<!-- end of corpus -->"


def table() -> str:
    """A line a kind: how many inputs are read as the reference reads them, and how many are answered by one line."""
    lines = ["| | kind | inputs | read | as | one line |", "|---|---|---|---|---|---|"]
    for kind in KINDS:
        read = sum(source.outcome == READ for source in kind.inputs.values())
        reference = kind.reference if read else "-"
        lines.append(
            f"| {kind.subject} | {kind.name} | {len(kind.inputs)} | {read} | {reference} | {len(kind.inputs) - read} |"
        )
    every = [source for kind in KINDS for source in kind.inputs.values()]
    read = sum(source.outcome == READ for source in every)
    lines.append(f"| all | | {len(every)} | {read} | | {len(every) - read} |")
    return "\n".join(lines)


def main() -> None:
    """Writes the table between its marks."""
    text = DOCUMENT.read_text()
    between = re.compile(f"(?<={re.escape(FIRST)}\n).*(?={re.escape(LAST)})", re.DOTALL)
    assert between.search(text), f"{DOCUMENT} has no marks for the table"
    DOCUMENT.write_text(between.sub(lambda _: f"\n{table()}\n\n", text))


if __name__ == "__main__":
    main()
