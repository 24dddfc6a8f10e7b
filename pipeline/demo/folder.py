"""The demo's output folder: which file is where, and whose it is.

OUTPUT/demo.json       seed and sizes; written first
OUTPUT/base/           the base model: reference of both scorings, start of guide and policies
OUTPUT/pairs.jsonl     the preference set
OUTPUT/guide-cache/    reference scores of its first half, which the guide is trained from
OUTPUT/guide/          the guide
OUTPUT/cache/          the reward cache
OUTPUT/dpo/, tgdpo/    the policies
OUTPUT/answers.jsonl   every model's answers to the held-out prompts
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...data.files import replace
from ...errors import UsageError
from .sizes import DemoSizes


class DemoFolder:
    """Paths of one demo; nothing is written before `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path / "base"
        self.pairs = path / "pairs.jsonl"
        self.guide_cache = path / "guide-cache"
        self.guide = path / "guide"
        self.cache = path / "cache"
        self.dpo = path / "dpo"
        self.tgdpo = path / "tgdpo"
        self.answers = path / "answers.jsonl"
        self._record = path / "demo.json"

    def claim(self, seed: int, sizes: DemoSizes) -> None:
        """Makes the folder this demo's, or goes on in it.

        Raises:
            UsageError: it holds a demo of another seed or of other sizes, or something else.
        """
        # Through JSON, which has no tuples, so that ours compares with what is read back.
        ours = json.loads(json.dumps({"seed": seed, "sizes": asdict(sizes)}))
        if self._record.is_file():
            self._require_same(ours)
            return
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise UsageError(f"--output {self.path} exists and holds no demo", fix="name a new or an empty folder")
        self.path.mkdir(parents=True, exist_ok=True)
        replace(self._record, lambda path: path.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8"))

    def _require_same(self, ours: dict[str, Any]) -> None:
        try:
            theirs = json.loads(self._record.read_bytes())
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict) or theirs.get("sizes") != ours["sizes"]:
            raise UsageError(
                f"--output {self.path} holds a demo.json that this version of tgdpo would not write",
                fix="name another --output",
            )
        if theirs.get("seed") != ours["seed"]:
            raise UsageError(
                f"--output {self.path} holds the demo of seed {theirs.get('seed')}, not {ours['seed']}",
                fix=f"use --seed {theirs.get('seed')}, or name another --output",
            )
