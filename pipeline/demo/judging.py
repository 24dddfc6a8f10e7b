"""The end of the demo: every model answers the held-out prompts, and the checker counts."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.files import publish
from .task import is_right


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers among `count`."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.right / self.count

    @property
    def standard_error(self) -> float:
        """Of the share, as of `count` independent draws."""
        return math.sqrt(self.share * (1 - self.share) / self.count)


def write_answers(file: Path, prompts: Sequence[str], answers: dict[str, list[str]]) -> None:
    """One JSON object per prompt: the prompt, and each model's answer under the model's name."""
    rows = zip(*answers.values(), strict=True)
    lines = [
        json.dumps({"prompt": prompt} | dict(zip(answers, row, strict=True))) + "\n"
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    publish(file, lambda path: path.write_text("".join(lines), encoding="utf-8"))


def judge(file: Path) -> dict[str, Accuracy]:
    """The accuracy of every model in a file of `write_answers`."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = [name for name in rows[0] if name != "prompt"]
    return {name: Accuracy(sum(is_right(row["prompt"], row[name]) for row in rows), len(rows)) for name in names}
