"""The study's tasks: a base model, preference pairs, held-out prompts, and a judge that made the pairs' labels too."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tgdpo.errors import UsageError
from tgdpo.pipeline.demo.base import make_base
from tgdpo.pipeline.demo.pairs import make_pairs
from tgdpo.pipeline.demo.sampling import Sampler
from tgdpo.pipeline.demo.sizes import DEFAULT_SIZES, DemoSizes
from tgdpo.pipeline.demo.task import demonstrations, is_right, make_split


@dataclass(frozen=True)
class Task:
    """What models are trained and judged on."""

    name: str
    base: Path
    pairs: Path
    """JSONL in TRL's standard form."""
    prompts: list[str]
    max_tokens: int
    """Where an answer is cut."""
    score: Callable[[str, str], float]
    """The judge's score of a prompt and an answer."""
    scale: str
    """What the score is, for tables."""


def stories(shared: Path, folder: Path) -> Task:
    """A really pretrained small model, its own continuations, and VADER's compound score of them.

    Prompts that stand in the training pairs as well are left out. Base and pairs are copied, so that a study that is
    gone on with elsewhere is the same.

    Raises:
        UsageError: `shared` has no such data.
    """
    if not (shared / "data" / "stories_train.jsonl").is_file():
        raise UsageError(f"--shared {shared} has no data/stories_train.jsonl", fix="name the folder, or --task sorting")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    base, pairs = folder / "base", folder / "pairs.jsonl"
    if not pairs.is_file():
        shutil.copytree(shared / "models" / "stories260K", base, dirs_exist_ok=True)
        shutil.copy(shared / "data" / "stories_train.jsonl", pairs)
    trained = {row["prompt"] for row in _rows(pairs)}
    test = dict.fromkeys(row["prompt"] for row in _rows(shared / "data" / "stories_test.jsonl"))
    vader = SentimentIntensityAnalyzer()
    return Task(
        name="stories",
        base=base,
        pairs=pairs,
        prompts=[prompt for prompt in test if prompt not in trained],
        max_tokens=96,
        score=lambda _, answer: float(vader.polarity_scores(answer)["compound"]),
        scale="VADER compound score, from -1 to 1",
    )


def sorting(folder: Path, sizes: DemoSizes = DEFAULT_SIZES) -> Task:
    """The task of `tgdpo demo`, made on the spot: sort the letters of a word; an exact checker judges."""
    base, pairs = folder / "base", folder / "pairs.jsonl"
    lengths = sizes.word_lengths
    split = make_split(Random("prompts 0"), train=sizes.train_prompts, held_out=sizes.held_out_prompts, lengths=lengths)
    if not base.is_dir():
        shown = demonstrations(
            Random("demonstrations 0"), held_out=split.held_out, lengths=lengths, slip_rate=sizes.slip_rate
        )
        make_base(base, shown, seed=0, sizes=sizes)
    if not pairs.is_file():
        sampler = Sampler(base, max_tokens=lengths[1] + 2)
        make_pairs(pairs, sampler, split.train, answers_per_prompt=sizes.answers_per_prompt, seed=0)
    return Task(
        name="sorting",
        base=base,
        pairs=pairs,
        prompts=split.held_out,
        max_tokens=lengths[1] + 2,
        score=lambda prompt, answer: float(is_right(prompt, answer)),
        scale="share of right answers",
    )


SMOKE_SIZES = DemoSizes(word_lengths=(3, 5), hidden_size=64, base_steps=300, train_prompts=120, held_out_prompts=100)


def _rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
