"""Forward and backward of one optimizer step: this process's part of a global batch, in passes of a token budget.

Legend: B pairs, L response tokens of the longest response, R response tokens of all rows.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...data.cache import ScoredPair, Scores
from ...data.packing import Batch, Layout, collate
from ...errors import TrainingError
from ..budget import TokenBudget
from ..logps import DeviceBatch, to_device
from .contrast import Contrast
from .finite import NOT_FINITE_FIX, listed
from .losses.types import Loss, LossSettings, ResponseTokens
from .metrics import MetricSums
from .parallel import Parallel
from .reference import Reference
from .sampled import SampleReader, estimated_kl
from .split import Pass, split


class Seen(NamedTuple):
    """What a step has computed, over all processes."""

    times: list[int]
    """How often each pair of the batch was trained on."""
    loss: float
    """Mean over the pairs, or over their chosen tokens."""


class StepRunner:
    """Computes the objective on pairs.

    Args:
        parallel: the processes, device and autocast.
        forward: `ResponseLogps` of the policy, prepared by `parallel`.
        loss: the objective.
        settings: its hyperparameters.
        budget: tokens of one pass, padding included; with several processes a fixed number.
        layout: how `forward` takes pairs.
        reference: for objectives that need its distributions; `forward` is then a `LogpsAndKl`.
        samples: instead of `reference`, to estimate from; `forward` is then a `LogpsOfSamples`.
        contrast: for objectives that compare two guides.
        per_token: the loss of a step is the mean over its chosen tokens, not over its pairs.
    """

    def __init__(
        self,
        parallel: Parallel,
        forward: nn.Module,
        loss: Loss,
        settings: LossSettings,
        *,
        budget: TokenBudget,
        layout: Layout,
        per_token: bool = False,
        reference: Reference | None = None,
        samples: SampleReader | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        self._parallel = parallel
        self._forward = forward
        self._loss = loss
        self._settings = settings
        self._budget = budget
        self._layout = layout
        self._per_token = per_token
        self._reference = reference
        self._samples = samples
        self._contrast = contrast

    def backward(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> Seen:
        """Computes the gradient of the mean loss over `pairs`, whatever passes and processes they are split into.

        Where memory runs out on one process, all of it is done again in smaller passes.

        Args:
            pairs: the global batch, the same on every process.
            metrics: gets this process's pairs.

        Raises:
            TrainingError: the loss of a pair is not finite, or a pass does not fit in memory.
        """
        while True:
            added = MetricSums()
            try:
                seen = self._over_passes(pairs, added, backward=True)
            except torch.OutOfMemoryError:
                self._forward.zero_grad(set_to_none=True)
            else:
                metrics.merge(added)
                return seen
            # Outside the handler, which would keep the failed pass's tensors alive.
            torch.cuda.empty_cache()

    @torch.no_grad()
    def evaluate(self, pairs: Sequence[ScoredPair], metrics: MetricSums) -> None:
        """Adds this process's part of `pairs` to `metrics`."""
        self._forward.eval()
        self._over_passes(pairs, metrics, backward=False)
        self._forward.train()

    def _over_passes(self, pairs: Sequence[ScoredPair], metrics: MetricSums, *, backward: bool) -> Seen:
        seen = torch.zeros(3, len(pairs), device=self._parallel.device)
        passes = self._passes(pairs)
        for number, one in enumerate(passes, 1):
            is_last = not backward or number == len(passes)
            batch = collate([pairs[i].ids for i in one.pairs], self._layout)
            # Evaluation takes less memory a token, which says nothing about training.
            spent = self._budget.spent(batch.input_ids.size) if backward else nullcontext()
            try:
                with spent, self._parallel.one_pass(self._forward, is_last=is_last):
                    losses = self._losses(pairs, one, batch, metrics, seen)
                    if backward:
                        weight = 1.0 if one.counts else 0.0
                        self._parallel.backward(losses.sum() * weight / len(pairs))
            except torch.OutOfMemoryError as error:
                if backward and self._parallel.count == 1 and len(one.pairs) > 1:
                    raise
                raise self._too_large(batch, one, pairs) from error
        return self._seen_by_all(pairs, seen)

    def _too_large(self, batch: Batch, one: Pass, pairs: Sequence[ScoredPair]) -> TrainingError:
        names = listed([pairs[i].pair_id for i in one.pairs])
        smaller = "" if len(one.pairs) == 1 else "a smaller --batch-tokens, "
        return TrainingError(
            f"a pass of {batch.input_ids.size:,} tokens (pair_id {names}) does not fit in the memory of "
            f"{self._parallel.device}",
            fix=f"set {smaller}--gradient-checkpointing or --lora-rank, see tgdpo train --plan; checkpoints stay",
        )

    def _passes(self, pairs: Sequence[ScoredPair]) -> list[Pass]:
        """This process's passes over the global batch."""
        return split(
            [pair.ids for pair in pairs],
            processes=self._parallel.count,
            batch_tokens=self._budget.limit(),
            layout=self._layout,
        )[self._parallel.rank]

    def _seen_by_all(self, batch: Sequence[ScoredPair], seen: Tensor) -> Seen:
        times, not_finite, losses = self._parallel.sum(seen).tolist()
        names = [pair.pair_id for pair, is_bad in zip(batch, not_finite, strict=True) if is_bad]
        if names:
            raise TrainingError(
                f"the loss of {len(names)} pairs is not finite (pair_id {listed(names)})",
                fix=f"look at them with tgdpo inspect --pair; {NOT_FINITE_FIX}",
            )
        return Seen([int(count) for count in times], math.fsum(losses) / len(batch))

    def _losses(
        self, pairs: Sequence[ScoredPair], one: Pass, batch: Batch, metrics: MetricSums, seen: Tensor
    ) -> Tensor:
        """Losses [B] of one pass. `seen` [3, all pairs] gets how often, how often not finite, and the loss."""
        chosen, rejected = self._responses([pairs[i] for i in one.pairs], batch)
        output = self._loss(chosen, rejected, self._settings)
        losses = output.losses
        if self._per_token:
            losses = losses * (len(pairs) / sum(len(pair.ids.chosen) for pair in pairs))
        if one.counts:
            found = losses.detach()
            seen[:, one.pairs] += torch.stack([torch.ones_like(found), (~torch.isfinite(found)).float(), found])
            metrics.add(output, chosen, rejected, per_token=self._per_token)
        return losses

    def _responses(self, pairs: Sequence[ScoredPair], batch: Batch) -> tuple[ResponseTokens, ResponseTokens]:
        """Forward of one pass: chosen and rejected."""
        device = self._parallel.device
        on_device = to_device(batch, device)
        logps_R, kl_R = self._logps_and_kl(pairs, on_device)
        lengths = torch.from_numpy(batch.response_lengths).to(device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        policy_logps = _scattered(logps_R, mask)
        ref_kl = None if kl_R is None else _scattered(kl_R, mask)

        def on_tokens(rows: list[Scores]) -> Tensor:
            return _padded(rows, mask.shape[1]).to(device)

        def side(
            first_row: int, ref_logps: list[Scores], rewards: list[Scores], contrast: list[Scores]
        ) -> ResponseTokens:
            return ResponseTokens(
                policy_logps[first_row::2],
                on_tokens(ref_logps),
                on_tokens(rewards),
                mask[first_row::2],
                None if ref_kl is None else ref_kl[first_row::2],
                on_tokens(contrast) if contrast else None,
            )

        of = self._contrast
        chosen = side(
            0,
            [pair.chosen_ref_logps for pair in pairs],
            [pair.chosen_rewards for pair in pairs],
            [of.chosen(pair) for pair in pairs] if of else [],
        )
        rejected = side(
            1,
            [pair.rejected_ref_logps for pair in pairs],
            [pair.rejected_rewards for pair in pairs],
            [of.rejected(pair) for pair in pairs] if of else [],
        )
        return chosen, rejected

    def _logps_and_kl(self, pairs: Sequence[ScoredPair], batch: DeviceBatch) -> tuple[Tensor, Tensor | None]:
        """log pi_theta of the response tokens [R], and the reference's KL there [R] for objectives that need it."""
        if self._reference:
            logps_R, kl_R = self._forward(batch, self._reference.states(batch))
            return logps_R, kl_R
        if self._samples:
            samples = self._samples.of(pairs, self._parallel.device)
            logps_RM = self._forward(batch, samples.ids)
            return logps_RM[:, 0], estimated_kl(samples.ref_logps, logps_RM[:, 1:])
        return self._forward(batch), None


def _scattered(flat_R: Tensor, mask: Tensor) -> Tensor:
    """[2B, L] with `flat_R` where the mask is, zeros elsewhere."""
    scattered = flat_R.new_zeros(mask.shape)
    scattered[mask] = flat_R
    return scattered


def _padded(rows: Sequence[Scores], width: int) -> Tensor:
    """[B, L] float32, zeros on the right."""
    padded = np.zeros((len(rows), width), np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
