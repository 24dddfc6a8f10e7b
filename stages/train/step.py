"""Forward and backward of one optimizer step: this process's part of a global batch, in passes of a token budget.

Legend: B pairs, L response tokens of the longest response, R response tokens of all rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...data.cache import ScoredPair, Scores
from ...data.packing import Layout, collate
from ...errors import TrainingError
from ..logps import to_device
from .losses import Loss, LossSettings, ResponseTokens
from .metrics import MetricSums
from .parallel import Parallel
from .split import Pass, split


class StepRunner:
    """Computes the objective on pairs.

    Args:
        parallel: the processes, device and autocast.
        forward: `ResponseLogps` of the policy, prepared by `parallel`.
        loss: the objective.
        settings: its hyperparameters.
        batch_tokens: tokens of one pass, padding included.
        layout: how `forward` takes pairs.
    """

    def __init__(
        self,
        parallel: Parallel,
        forward: nn.Module,
        loss: Loss,
        settings: LossSettings,
        *,
        batch_tokens: int,
        layout: Layout,
    ) -> None:
        self._parallel = parallel
        self._forward = forward
        self._loss = loss
        self._settings = settings
        self._batch_tokens = batch_tokens
        self._layout = layout

    def backward(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> list[int]:
        """Accumulates the gradient of the mean loss over `pairs`, whatever passes and processes they are split into.

        Args:
            pairs: the global batch, the same on every process.
            metrics: gets this process's pairs.

        Returns:
            How often each pair was trained on, over all processes.

        Raises:
            TrainingError: the loss of a pair is not finite.
        """
        seen = torch.zeros(2, len(pairs), dtype=torch.int64, device=self._parallel.device)
        passes = self._passes(pairs)
        for number, one in enumerate(passes, 1):
            with self._parallel.one_pass(self._forward, is_last=number == len(passes)):
                losses = self._losses(pairs, one, metrics, seen)
                weight = 1.0 if one.counts else 0.0
                self._parallel.backward(losses.sum() * weight / len(pairs))
        return self._seen_by_all(pairs, seen)

    @torch.no_grad()
    def evaluate(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> None:
        """Adds this process's part of `pairs` to `metrics`."""
        seen = torch.zeros(2, len(pairs), dtype=torch.int64, device=self._parallel.device)
        self._forward.eval()
        for one in self._passes(pairs):
            with self._parallel.one_pass(self._forward, is_last=True):
                self._losses(pairs, one, metrics, seen)
        self._forward.train()
        self._seen_by_all(pairs, seen)

    def _passes(self, pairs: Sequence[ScoredPair]) -> list[Pass]:
        """This process's passes over the global batch."""
        return split(
            [pair.ids for pair in pairs],
            processes=self._parallel.count,
            batch_tokens=self._batch_tokens,
            layout=self._layout,
        )[self._parallel.rank]

    def _seen_by_all(self, batch: Sequence[ScoredPair], seen: Tensor) -> list[int]:
        times, not_finite = self._parallel.sum(seen).tolist()
        names = [pair.pair_id for pair, is_bad in zip(batch, not_finite, strict=True) if is_bad]
        if names:
            raise TrainingError(
                f"the loss of {len(names)} pairs is not finite (pair_id {', '.join(names[:5])})",
                fix="look at them with tgdpo inspect --pair; lower --learning-rate, or use --mixed-precision no",
            )
        counts: list[int] = times
        return counts

    def _losses(self, batch: Sequence[ScoredPair], one: Pass, metrics: MetricSums, seen: Tensor) -> Tensor:
        """Losses [B] of one pass. `seen` [2, pairs of the batch] counts the pairs, and those that are not finite."""
        pairs = [batch[i] for i in one.pairs]
        chosen, rejected = self._responses(pairs)
        output = self._loss(chosen, rejected, self._settings)
        if one.counts:
            seen[0, one.pairs] += 1
            seen[1, one.pairs] += ~torch.isfinite(output.losses)
            metrics.add(output, chosen, rejected, self._settings.beta)
        return output.losses

    def _responses(self, pairs: Sequence[ScoredPair]) -> tuple[ResponseTokens, ResponseTokens]:
        """Forward of one pass: chosen and rejected."""
        device = self._parallel.device
        batch = collate([pair.ids for pair in pairs], 0, self._layout)
        logps_R = self._forward(to_device(batch, device))
        lengths = torch.from_numpy(batch.response_lengths).to(device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        policy_logps = logps_R.new_zeros(mask.shape)
        policy_logps[mask] = logps_R

        def side(first_row: int, ref_logps: list[Scores], rewards: list[Scores]) -> ResponseTokens:
            return ResponseTokens(
                policy_logps[first_row::2],
                _padded(ref_logps, mask.shape[1]).to(device),
                _padded(rewards, mask.shape[1]).to(device),
                mask[first_row::2],
            )

        chosen = side(0, [pair.chosen_ref_logps for pair in pairs], [pair.chosen_rewards for pair in pairs])
        rejected = side(1, [pair.rejected_ref_logps for pair in pairs], [pair.rejected_rewards for pair in pairs])
        return chosen, rejected


def _padded(rows: Sequence[Scores], width: int) -> Tensor:
    """[B, L] float32, zeros on the right."""
    padded = np.zeros((len(rows), width), np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
