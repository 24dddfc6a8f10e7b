"""What a run writes line by line: metrics.jsonl and pairs.jsonl."""

import json
from pathlib import Path
from typing import Any

from ...data.files import replace, sync
from ...errors import TrainingError


class JsonLines:
    """A file of one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines; a last one that was cut by a kill is left out. Raises TrainingError where one is damaged."""
        if not self._path.is_file():
            return []
        lines = self._path.read_bytes().split(b"\n")[:-1]
        return [self._record(line, number) for number, line in enumerate(lines, 1)]

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError("the step is no number")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrainingError(
                f"{self._path}, line {number} is damaged", fix="mend or remove the line, or name another --output"
            ) from error
        return record

    def cut(self, step: int) -> None:
        """Keeps the lines up to `step`; none for step 0, which is evaluated again."""
        if not self._path.is_file():
            return
        kept = [record for record in self.read() if step and record["step"] <= step]
        content = "".join(json.dumps(record) + "\n" for record in kept)
        replace(self._path, lambda path: path.write_text(content))

    def sync(self) -> None:
        """Waits until what was appended is on disk."""
        if self._path.is_file():
            sync(self._path)
