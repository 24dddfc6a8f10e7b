"""What a run writes line by line: metrics.jsonl and pairs.jsonl."""

import json
from pathlib import Path
from typing import Any

from ...data.files import replace, sync
from ...errors import TrainingError


def parse_lines(content: bytes, name: object) -> list[dict[str, Any]]:
    """One JSON object a line, each with its `step`; a last line that was cut by a kill is left out.

    Args:
        name: what the content is of, for messages.

    Raises:
        TrainingError: a line is damaged.
    """
    return [_record(line, f"{name}, line {number}") for number, line in enumerate(content.split(b"\n")[:-1], 1)]


def _record(line: bytes, name: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        if not isinstance(record["step"], int):
            raise ValueError("the step is no number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(f"{name} is damaged", fix="mend or remove the line, or name another --output") from error
    return record


class JsonLines:
    """A file of one JSON object a line, each with its `step`.

    Args:
        path: where it lies.
        name: where a person would look for it.
    """

    def __init__(self, path: Path, name: object) -> None:
        self._path = path
        self._name = name

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """As `parse_lines`; none where there is no file."""
        return parse_lines(self._path.read_bytes(), self._name) if self._path.is_file() else []

    def cut(self, step: int) -> None:
        """Keeps the lines up to `step`; none for step 0, which is evaluated again."""
        if not self._path.is_file():
            return
        kept = [record for record in self.read() if step and record["step"] <= step]
        content = "".join(json.dumps(record) + "\n" for record in kept)
        replace(self._path, lambda path: path.write_text(content, encoding="utf-8"))

    def sync(self) -> None:
        """Waits until what was appended is on disk."""
        if self._path.is_file():
            sync(self._path)
