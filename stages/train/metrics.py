"""Metrics under TRL's names, summed over pairs or tokens so that they are those of all, however these were batched."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .losses.types import LossOutput, ResponseTokens
from .parallel import Parallel

PER_PAIR = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "phi",
)
OF_PAIRS_ALONE = ("rewards/", "logps/rejected", "phi", "f/")
"""Beginnings of the metrics that say nothing where rejected responses are left out."""


@dataclass
class MetricSums:
    """Sums over the pairs and response tokens that were added; plain numbers, so that a checkpoint can hold them."""

    pairs: int = 0
    loss_count: int = 0
    """What the loss is the mean over: the pairs, or their chosen tokens."""
    pair_sums: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    f_sum: float = 0.0
    f_negative: int = 0
    f_min: float = float("inf")
    f_max: float = float("-inf")

    @torch.no_grad()
    def add(
        self, output: LossOutput, chosen: ResponseTokens, rejected: ResponseTokens, *, per_token: bool = False
    ) -> None:
        """Adds a batch; `per_token` makes the loss a mean over chosen tokens."""
        rewards_w, rewards_l = output.rewards_chosen, output.rewards_rejected
        per_pair = (
            output.losses,
            rewards_w,
            rewards_l,
            rewards_w > rewards_l,
            rewards_w - rewards_l,
            chosen.masked_sum(chosen.policy_logps),
            rejected.masked_sum(rejected.policy_logps),
            output.phi,
        )
        self.pairs += len(output.losses)
        self.loss_count += int(chosen.lengths.sum()) if per_token else len(output.losses)
        for name, values in zip(PER_PAIR, per_pair, strict=True):
            self.pair_sums[name] = self.pair_sums.get(name, 0.0) + values.double().sum().item()
        self._add_f(torch.cat([output.f_chosen[chosen.completion_mask], output.f_rejected[rejected.completion_mask]]))

    def _add_f(self, f: Tensor) -> None:
        self.tokens += f.numel()
        self.f_sum += f.double().sum().item()
        self.f_negative += int((f < 0).sum())
        self.f_min = min(self.f_min, f.min().item())
        self.f_max = max(self.f_max, f.max().item())

    def merge(self, other: "MetricSums") -> None:
        """Adds the sums of other pairs."""
        self.pairs += other.pairs
        self.loss_count += other.loss_count
        for name, total in other.pair_sums.items():
            self.pair_sums[name] = self.pair_sums.get(name, 0.0) + total
        self.tokens += other.tokens
        self.f_sum += other.f_sum
        self.f_negative += other.f_negative
        self.f_min = min(self.f_min, other.f_min)
        self.f_max = max(self.f_max, other.f_max)

    def of_all(self, parallel: Parallel) -> "MetricSums":
        """The sums over all processes, on each; `self` stays this process's."""
        own = [self.pair_sums.get(name, 0.0) for name in PER_PAIR]
        counts = [self.pairs, self.loss_count, self.tokens, self.f_negative]
        sums = parallel.sum(torch.tensor([*counts, self.f_sum, *own], dtype=torch.float64)).tolist()
        pairs, loss_count, tokens, f_negative = map(int, sums[:4])
        f_sum, *totals = sums[4:]
        # The largest is the smallest of the negatives.
        f_min, f_max = parallel.minimum(torch.tensor([self.f_min, -self.f_max], dtype=torch.float64)).tolist()
        pair_sums = dict(zip(PER_PAIR, totals, strict=True))
        return MetricSums(pairs, loss_count, pair_sums, tokens, f_sum, f_negative, f_min, -f_max)

    def means(self) -> dict[str, float]:
        """Means over pairs, of the loss over what it counts; of f, mean, extremes and share below zero over response
        tokens. Empty without pairs."""
        if self.pairs == 0:
            return {}
        means = {name: total / self.pairs for name, total in self.pair_sums.items()}
        return means | {
            "loss": self.pair_sums["loss"] / self.loss_count,
            "f/mean": self.f_sum / self.tokens,
            "f/min": self.f_min,
            "f/max": self.f_max,
            "f/negative": self.f_negative / self.tokens,
        }

    def to_json(self) -> dict[str, Any] | None:
        """The sums, or None without pairs (JSON has no infinity)."""
        return asdict(self) if self.pairs else None

    @classmethod
    def from_json(cls, sums: dict[str, Any] | None) -> "MetricSums":
        """What `to_json` gave; 0.1.0 took the mean of every loss over pairs."""
        return cls(**{"loss_count": sums["pairs"], **sums}) if sums else cls()
