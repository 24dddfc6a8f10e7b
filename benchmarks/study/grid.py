"""What the study runs: a list of trainings, each with a name that is its folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

Part = Literal["main", "convergence", "guide"]

METHODS = ("sft", "dpo", "simpo", "tdpo1", "tdpo2", "ipo", "ld-dpo", "d2po", "sepo", "tgdpo")
GUIDES = ("dpo", "simpo", "weak-dpo")
ALPHAS = (0.25, 0.5, 1.0, 2.0)
CONVERGING = ("dpo", "simpo")
"""Trained to convergence beside TGDPO, as in the paper's Table 2."""


@dataclass(frozen=True)
class Spec:
    """One training and the judging of what comes out."""

    part: Part
    method: str
    learning_rate: float
    seed: int
    guide: str = ""
    """Guide of tgdpo and sepo; the others have none."""
    alpha: float = 0.0

    @property
    def name(self) -> str:
        """A folder's name."""
        guided = f"-{self.guide}-{self.alpha:g}" if self.guide else ""
        return f"{self.part}-{self.method}{guided}-lr{self.learning_rate:g}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The sizes of a study on one task."""

    seeds: int = 5
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """One of them is chosen per method, on prompts that the tables do not use."""
    methods: tuple[str, ...] = METHODS
    guides: tuple[str, ...] = GUIDES
    alphas: tuple[float, ...] = ALPHAS
    pairs: int = 1024
    """Training pairs, the first of the task's."""
    prompts: int = 400
    """Held-out prompts at most; even ones choose learning rates, odd ones make the tables."""
    batch_size: int = 32
    guide_learning_rate: float = 1e-4
    """Of the guides, and of what is trained to convergence."""
    weak_share: float = 0.125
    """Steps of the weak guide, as a share of the guide's."""
    epochs_to_convergence: float = 6.0
    convergence_loss: float = 0.35
    """Threshold of the loss's moving average over five steps; the paper's is 0.1, for models that are larger by far."""
    beta: dict[str, float] = field(default_factory=dict)
    """Of methods that shall not have their default."""

    def guide_specs(self) -> list[Spec]:
        """The guides, judged like everything else."""
        return [Spec("guide", guide, self.guide_learning_rate, seed=0) for guide in self.guides]

    def specs(self) -> list[Spec]:
        """All trainings that need nothing but caches, in a fixed order."""
        return [*self._main(), *self._convergence()]

    def _main(self) -> Iterator[Spec]:
        for seed, learning_rate, method in product(range(self.seeds), self.learning_rates, self.methods):
            if method == "tgdpo":
                for guide, alpha in product(self.guides, self.alphas):
                    yield Spec("main", method, learning_rate, seed, guide, alpha)
            else:
                yield Spec("main", method, learning_rate, seed, self.guides[0] if method == "sepo" else "")

    def _convergence(self) -> Iterator[Spec]:
        for seed in range(self.seeds):
            for method in CONVERGING:
                if method in self.methods:
                    yield Spec("convergence", method, self.guide_learning_rate, seed)
            for alpha in self.alphas:
                yield Spec("convergence", "tgdpo", self.guide_learning_rate, seed, self.guides[0], alpha)


STORIES = Grid()
SORTING = Grid(learning_rates=(2e-5, 5e-5, 1e-4), guide_learning_rate=5e-5)
SMOKE = Grid(
    seeds=2,
    learning_rates=(1e-3,),
    methods=("dpo", "tdpo2", "tgdpo"),
    guides=("dpo", "weak-dpo"),
    alphas=(0.5,),
    pairs=64,
    prompts=40,
    batch_size=16,
    guide_learning_rate=1e-3,
    epochs_to_convergence=3.0,
)
