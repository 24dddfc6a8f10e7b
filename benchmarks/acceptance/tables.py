"""Markdown from the JSON lines of stages: on any machine, whatever was measured and whatever was not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .item import Figures, read_lines

ABOUT = ("item", "stage", "group", "card", "status", "seconds", "reason", "detail", "rows", "test", "start")
OURS = {"8b-ours", "ours"}
"""Items that the others of their group are compared with."""


def tables(folder: Path) -> str:
    """Of all stage-*.jsonl there, a chapter each."""
    return "\n\n".join(_chapter(path) for path in sorted(folder.glob("stage-*.jsonl")))


def _chapter(path: Path) -> str:
    lines = read_lines(path)
    # An item that ran again counts as it came out last.
    whole = {line["item"]: line for line in lines if "test" not in line}
    first = whole.pop("card")
    items = list(whole.values())
    parts = [f"## Stage {first['stage']}: {first.get('card', 'unknown card')}", _facts(first)]
    for group in dict.fromkeys(line["group"] for line in items):
        parts += [f"### {group}", _table(_compared([line for line in items if line["group"] == group]))]
        parts += [_rows(line) for line in items if line["group"] == group and line.get("rows")]
    tests = {(line["item"], line["test"]): line for line in lines if "test" in line}
    failed = [line for line in tests.values() if line["status"] == "failed"]
    if failed:
        listed = "\n".join(f"- `{line['item']}::{line['test']}`: {line.get('reason', '')}" for line in failed)
        parts += ["### Tests that failed", listed]
    return "\n\n".join(parts)


def _facts(first: Figures) -> str:
    """The machine and its ceilings, a line."""
    flat = {name: value for name, value in first.items() if name not in (*ABOUT, "versions") and value is not None}
    named = [f"{name} {value}" for name, value in first.get("versions", {}).items()]
    return ", ".join([*named, *(f"{_shown(name)} {_number(value)}" for name, value in flat.items())])


def _compared(lines: list[Figures]) -> list[Figures]:
    """Those with a time a step get it relative to ours, measured and by operations alone."""
    ours = next((line for line in lines if line["item"] in OURS and "seconds_a_step" in line), None)
    if ours is None:
        return lines
    return [
        line
        if "seconds_a_step" not in line
        else line
        | {
            "ours_is_times_as_fast": line["seconds_a_step"] / ours["seconds_a_step"],
            "by_operations": line["flops_a_step"] / ours["flops_a_step"],
        }
        for line in lines
    ]


def _table(lines: list[Figures]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line if name not in ABOUT))
    heading = ["item", *map(_shown, columns), "status"]
    rows = [[line["item"], *(_number(line.get(name)) for name in columns), _status(line)] for line in lines]
    return _markdown([heading, *rows])


def _rows(line: Figures) -> str:
    """An item's own table."""
    heading = list(line["rows"][0])
    return f"{line['item']}:\n\n" + _markdown(
        [heading, *([_number(row.get(name)) for name in heading] for row in line["rows"])]
    )


def _status(line: Figures) -> str:
    return f"{line['status']}: {line['reason']}" if "reason" in line else str(line["status"])


def _shown(name: str) -> str:
    return name.replace("_", " ").replace(" gib", ", GiB")


def _number(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _markdown(rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count(" | ") + 1), *lines[1:]])
