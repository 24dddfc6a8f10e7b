"""`tgdpo demo`: base, pairs, guide, rewards, TGDPO and DPO, and what an exact checker says of each model.

The guide is DPO on the first half of the pairs, so that it is not the DPO policy over again. Both policies are trained
from one cache with all pairs, the same settings, seed and number of steps. What is finished is not done again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from ...errors import UsageError
from ...stages.console import log, quiet_libraries
from ...stages.score.config import ScoreConfig
from ...stages.score.run import score
from ...stages.train.config import TrainConfig
from ...stages.train.run import train
from ..configuration import build
from .base import make_base
from .folder import DemoFolder
from .judging import judge, write_answers
from .pairs import make_pairs
from .report import Made, report
from .sampling import Sampler
from .sizes import DEFAULT_SIZES, DemoSizes
from .task import demonstrations, make_split

DEVICE = "cpu"
"""Also where there is a GPU: so small a model gains little by it, and the figures are the same with and without."""
THREADS = 1
"""A second one saves a third of the time where its core is free, but on cores that others use, threads of such small
steps wait for each other: a demo of one minute then took nine."""
LARGEST_SEED = 2**32 - 1
"""What training takes."""


def demo(output: Path, *, seed: int, sizes: DemoSizes = DEFAULT_SIZES) -> str:
    """Makes everything in `output`, or what is missing there.

    Returns:
        What to show: a table of held-out accuracies, the paths, the next commands.

    Raises:
        TgdpoError: `output` holds another demo or something else, or the seed is too large.
    """
    if seed > LARGEST_SEED:
        raise UsageError(f"--seed {seed} is too large", fix=f"use one of 0 to {LARGEST_SEED}")
    quiet_libraries()
    folder = DemoFolder(output.expanduser())
    folder.claim(seed, sizes)
    with torch_threads(THREADS):
        made = DemoRun(folder, seed, sizes).finish()
    return report(folder, judge(folder.answers), made, seed=seed, sizes=sizes)


class DemoRun:
    """A demo on its folder; `finish` does what is missing there."""

    def __init__(self, folder: DemoFolder, seed: int, sizes: DemoSizes) -> None:
        self.folder = folder
        self.seed = seed
        self.sizes = sizes
        self.split = make_split(
            self._random("prompts"),
            train=sizes.train_prompts,
            held_out=sizes.held_out_prompts,
            lengths=sizes.word_lengths,
        )

    def finish(self) -> Made:
        """Makes what is missing, in order."""
        folder = self.folder
        log("1/6 base: a small model learns to sort letters from demonstrations with slips")
        self._base()
        log("2/6 pairs: its own answers, right against wrong")
        pairs = self._pairs()
        log("3/6 guide: DPO on the first half of the pairs")
        self._score(folder.guide_cache, limit=pairs // 2)
        self._train("dpo", folder.guide_cache, folder.guide)
        log("4/6 score: a reward for every token of every pair")
        self._score(folder.cache, guidance=str(folder.guide))
        log("5/6 train: DPO and TGDPO from the same cache")
        self._train("dpo", folder.cache, folder.dpo)
        summary = self._train("tgdpo", folder.cache, folder.tgdpo)
        log("6/6 judge: all models answer the held-out prompts")
        self._answers()
        return Made(pairs, f_range=(summary["f/min"], summary["f/max"]))

    def _random(self, use: str) -> Random:
        return Random(f"{use} {self.seed}")

    def _base(self) -> None:
        if self.folder.base.is_dir():
            return
        shown = demonstrations(
            self._random("demonstrations"),
            held_out=self.split.held_out,
            lengths=self.sizes.word_lengths,
            slip_rate=self.sizes.slip_rate,
        )
        make_base(self.folder.base, shown, seed=self.seed, sizes=self.sizes)

    def _pairs(self) -> int:
        file = self.folder.pairs
        if not file.is_file():
            count = self.sizes.answers_per_prompt
            make_pairs(
                file, self._sampler(self.folder.base), self.split.train, answers_per_prompt=count, seed=self.seed
            )
        with file.open(encoding="utf-8") as lines:
            return sum(1 for _ in lines)

    def _score(self, output: Path, **options: Any) -> None:
        files = {"dataset": str(self.folder.pairs), "reference": str(self.folder.base), "output": str(output)}
        score(build(ScoreConfig, files, {"device": DEVICE}, options))

    def _train(self, loss: Literal["dpo", "tgdpo"], cache: Path, output: Path) -> dict[str, Any]:
        files = {"cache": str(cache), "model": str(self.folder.base), "output": str(output)}
        settings = {
            "loss": loss,
            "learning_rate": self.sizes.learning_rate,
            "batch_size": self.sizes.batch_size,
            "seed": self.seed,
            "device": DEVICE,
        }
        return train(build(TrainConfig, files, settings)).summary

    def _answers(self) -> None:
        if self.folder.answers.is_file():
            return
        prompts = self.split.held_out
        models = (self.folder.base, self.folder.guide, self.folder.dpo, self.folder.tgdpo)
        # Another seed than the pairs', the same for every model.
        answers = {model.name: self._sampler(model).answers(prompts, seed=self.seed + 1) for model in models}
        texts = {name: [answer.text for answer in of_model] for name, of_model in answers.items()}
        write_answers(self.folder.answers, prompts, texts)

    def _sampler(self, model: Path) -> Sampler:
        return Sampler(model, max_tokens=self.sizes.word_lengths[1] + 2)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """With more, sums come in another order, and figures would depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
