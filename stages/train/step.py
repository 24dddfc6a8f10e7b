"""Forward and backward of one optimizer step: a global batch in passes of a token budget.

Legend: B pairs, L response tokens of the longest response, R response tokens of all rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...data.cache import ScoredPair, Scores
from ...data.packing import Layout, batches, collate
from ...errors import TrainingError
from ..logps import to_device
from .finite import NOT_FINITE_FIX, listed
from .losses import Loss, LossSettings, ResponseTokens
from .metrics import MetricSums


class StepRunner:
    """Computes the objective on pairs.

    Args:
        accelerator: device, autocast and loss scaling.
        forward: `ResponseLogps` of the policy, prepared by the accelerator.
        loss: the objective.
        settings: its hyperparameters.
        batch_tokens: tokens of one pass, padding included.
        layout: how `forward` takes pairs.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        forward: nn.Module,
        loss: Loss,
        settings: LossSettings,
        *,
        batch_tokens: int,
        layout: Layout,
    ) -> None:
        self._accelerator = accelerator
        self._forward = forward
        self._loss = loss
        self._settings = settings
        self._batch_tokens = batch_tokens
        self._layout = layout

    def backward(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> None:
        """Accumulates the gradient of the mean loss over `pairs`, whatever passes they are split into.

        Raises:
            TrainingError: the loss of a pair is not finite.
        """
        for batch in self._passes(pairs):
            losses = self._losses(batch, metrics)
            self._accelerator.backward(losses.sum() / len(pairs))

    @torch.no_grad()
    def evaluate(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> None:
        """Adds `pairs` to `metrics`."""
        self._forward.eval()
        for batch in self._passes(pairs):
            self._losses(batch, metrics)
        self._forward.train()

    def _passes(self, pairs: Sequence[ScoredPair]) -> list[list[ScoredPair]]:
        grouped = batches([pair.ids for pair in pairs], self._batch_tokens, self._layout)
        return [[pairs[i] for i in indices] for indices in grouped]

    def _losses(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> Tensor:
        """Losses [B] of one pass."""
        device = self._accelerator.device
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
        output = self._loss(chosen, rejected, self._settings)
        finite = torch.isfinite(output.losses)
        if not finite.all():
            names = [pair.pair_id for pair, good in zip(pairs, finite.tolist(), strict=True) if not good]
            raise TrainingError(
                f"the loss of {len(names)} pairs is not finite (pair_id {listed(names)})",
                fix=f"look at them with tgdpo inspect --pair; {NOT_FINITE_FIX}",
            )
        metrics.add(output, chosen, rejected, self._settings.beta)
        return output.losses


def _padded(rows: Sequence[Scores], width: int) -> Tensor:
    """[B, L] float32, zeros on the right."""
    padded = np.zeros((len(rows), width), np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
