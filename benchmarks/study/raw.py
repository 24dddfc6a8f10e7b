"""Raw results of a study on one task: all that its tables and figures are made of.

FOLDER/study.json         the task's name, what its score is, and how many pairs were trained on
FOLDER/prompts.parquet    the held-out prompts: `prompt`, their number, and `text`
FOLDER/base.parquet       the base's answers, a row per seed and prompt; null where they were not kept
FOLDER/guides.parquet     a row per guide, of its rewards in nats over the tokens of all pairs: `tokens`, `rms`,
                          `correlation` with those of the first guide; null where they were not kept
FOLDER/results.parquet    a row per run and prompt: answer, score, the base's score, tokens, KL
FOLDER/curves.parquet     a row per run and step: its metrics
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from tgdpo.errors import UsageError

FRAMES = ("prompts", "base", "guides", "results", "curves")


@dataclass(frozen=True)
class About:
    """What tables say of a study beside its results."""

    task: str
    scale: str
    """What the score is."""
    pairs: int
    """Training pairs."""


@dataclass(frozen=True)
class Raw:
    """Raw results in memory."""

    about: About
    prompts: pd.DataFrame
    base: pd.DataFrame
    guides: pd.DataFrame
    results: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Raw":
        """Reads what `write` wrote.

        Raises:
            UsageError: A file is not there.
        """
        names = ["study.json", *(f"{name}.parquet" for name in FRAMES)]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UsageError(f"{folder} has no {', '.join(missing)}", fix="name a folder with a folder per task in it")
        about = About(**json.loads((folder / "study.json").read_text(encoding="utf-8")))
        return cls(about, *(pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES))

    def write(self, folder: Path) -> None:
        """Writes them, as small as they get."""
        (folder / "study.json").write_text(json.dumps(asdict(self.about), indent=2) + "\n", encoding="utf-8")
        for name in FRAMES:
            frame: pd.DataFrame = getattr(self, name)
            frame.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd", compression_level=19)
