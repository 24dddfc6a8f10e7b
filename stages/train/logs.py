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


def another_at_work(path: object, *, done: str = "written") -> TrainingError:
    """What is said where a second process has done something to a file or a checkpoint of this one's run."""
    return TrainingError(
        f"{path} was {done} by another tgdpo train, which is at work in the same --output",
        fix="let one of them end, and run its command again",
    )


class JsonLines:
    """A file of one JSON object a line, each with its `step`.

    Args:
        path: where it lies.
        name: where a person would look for it.
    """

    def __init__(self, path: Path, name: object) -> None:
        self._path = path
        self._name = name
        self._size: int | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line. Raises TrainingError where another process has added one since `cut`."""
        self.require_unchanged()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._size = self._path.stat().st_size

    def require_unchanged(self) -> None:
        """Raises TrainingError where another process has written to the file since `cut`, and FileNotFoundError where
        its folder is gone."""
        if not self._path.parent.is_dir():
            raise FileNotFoundError(str(self._path))
        if self._size is not None and self._size != self._bytes():
            raise another_at_work(self._name)

    def _bytes(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0

    def read(self) -> list[dict[str, Any]]:
        """As `parse_lines`; none where there is no file."""
        return parse_lines(self._path.read_bytes(), self._name) if self._path.is_file() else []

    def cut(self, step: int) -> None:
        """Keeps the lines up to `step`; none for step 0, which is evaluated again."""
        if self._path.is_file():
            kept = [record for record in self.read() if step and record["step"] <= step]
            content = "".join(json.dumps(record) + "\n" for record in kept)
            replace(self._path, lambda path: path.write_text(content, encoding="utf-8"))
        self._size = self._bytes()

    def sync(self) -> None:
        """Waits until what was appended is on disk."""
        if self._path.is_file():
            sync(self._path)
