"""KL(pi_ref || pi_theta) estimated from tokens that stage one has drawn from the reference, for TDPO without the
reference in memory.

Legend: R response tokens of all rows, K tokens drawn at each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.cache import RewardCache, ScoredPair
from ...data.schema import SAMPLES_SCHEMA
from ...errors import CacheError
from ..logps import DeviceBatch, ResponseLogps
from .config import TrainConfig
from .losses import LOSSES


def estimates_kl(config: TrainConfig, cache: RewardCache) -> bool:
    """Whether the objective of `config` estimates its KL from the cache's samples.

    Raises:
        CacheError: it is to, or names no reference to compute the KL with, and the cache has no samples.
    """
    if not LOSSES[config.loss].needs_reference or config.kl == "exact" or (config.kl is None and config.reference):
        return False
    if cache.manifest.reference_samples == 0:
        raise CacheError(
            f"{cache.storage} has no samples of the reference, from which --loss {config.loss} would estimate its KL",
            fix=f"add some with tgdpo score --reuse {cache.storage} --reference-samples 8 --output NEW, or name the "
            "model with --reference for the exact KL",
        )
    return True


def estimated_kl(ref_logps_RK: Tensor, logps_RK: Tensor) -> Tensor:
    """KL(pi_ref || pi_theta) [R], in nats, from tokens drawn from pi_ref; its gradient flows through `logps_RK`.

    The mean over K of rho - 1 - log rho with rho = pi_theta / pi_ref: unbiased, value and gradient, since the mean of
    rho under pi_ref is 1; never negative; and without noise where the two are equal, as at the start of training.
    """
    log_rho_RK = logps_RK - ref_logps_RK
    return (torch.expm1(log_rho_RK) - log_rho_RK).mean(-1)


class Samples(NamedTuple):
    """Tokens drawn from the reference at each response token."""

    ids: Tensor
    """int64 [R, K]"""
    ref_logps: Tensor
    """log pi_ref of them, float32 [R, K], in nats."""


class SampleReader:
    """Takes the samples out of pairs that were read with `columns`."""

    columns = tuple(SAMPLES_SCHEMA.names)

    def __init__(self, per_token: int) -> None:
        self._per_token = per_token

    def of(self, pairs: Sequence[ScoredPair], device: torch.device) -> Samples:
        """The samples of some pairs, in the order of their response tokens: chosen and rejected of each."""
        ids, ref_logps = (
            np.concatenate(
                [pair.further[f"{side}_sampled_{what}"] for pair in pairs for side in ("chosen", "rejected")]
            )
            for what in ("ids", "ref_logps")
        )
        on_device = (torch.from_numpy(flat.reshape(-1, self._per_token)).to(device) for flat in (ids, ref_logps))
        return Samples(next(on_device).long(), next(on_device))


class LogpsOfSamples(ResponseLogps):
    """`ResponseLogps` of the policy that scores tokens drawn at each place as well."""

    def forward(self, batch: DeviceBatch, sampled_ids_RK: Tensor | None = None) -> Tensor:
        """Returns log pi_theta(y_t | x, y_<t) and those of the tokens drawn there, float32 [R, 1 + K], in nats; without
        any the first alone, [R]."""
        if sampled_ids_RK is None:
            return super().forward(batch)
        targets_R = batch.input_ids.flatten()[batch.places]
        return self.logps_of(batch, torch.cat([targets_R[:, None], sampled_ids_RK], 1))
