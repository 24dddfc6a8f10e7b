"""The objectives, one line each: a pure function of tensors, the options it reads and what it takes from the cache.

torch is imported with a function, not before: the command line reads this table for `--help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .types import Loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective by name."""

    function: str
    """Module of this package and function in it."""
    options: tuple[str, ...]
    """Options of `TrainConfig` that it reads; the other loss options do nothing with it."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Defaults of these options where they are not `TrainConfig`'s."""
    needs_rewards: bool = False
    """Whether it reads the reward columns, which a cache scored without guidance lacks."""
    needs_guides: bool = False
    """Whether it compares two guides of the cache."""
    needs_reference: bool = False
    """Whether it needs the reference's distributions: the reference in memory, or samples of it in the cache."""
    chosen_only: bool = False
    """Whether rejected responses are left out; the loss of a step is then the mean over its response tokens."""

    def load(self) -> Loss:
        """The function."""
        module, name = self.function.split(".")
        loss: Loss = getattr(import_module(f".{module}", __name__), name)
        return loss


_DPO = ("beta", "label_smoothing")

LOSSES: dict[str, Objective] = {
    "tgdpo": Objective(
        function="dpo.tgdpo", options=(*_DPO, "alpha", "beta_r", "f_shape", "f_clip"), needs_rewards=True
    ),
    "dpo": Objective(function="dpo.dpo", options=_DPO),
    "simpo": Objective(function="reference_free.simpo", options=(*_DPO, "gamma_beta_ratio"), defaults={"beta": 2.5}),
    "tdpo1": Objective(function="tdpo.tdpo1", options=(*_DPO, "reference", "kl"), needs_reference=True),
    "tdpo2": Objective(function="tdpo.tdpo2", options=(*_DPO, "reference", "kl", "tdpo_alpha"), needs_reference=True),
    "ipo": Objective(function="dpo.ipo", options=("beta",)),
    "ld-dpo": Objective(function="dpo.ld_dpo", options=(*_DPO, "ld_alpha")),
    "d2po": Objective(function="dpo.d2po", options=(*_DPO, "d2po_gamma")),
    "tis-dpo": Objective(
        function="dpo.tis_dpo", options=(*_DPO, "positive_guide", "negative_guide", "tis_spread"), needs_guides=True
    ),
    "sepo": Objective(
        function="reference_free.sepo", options=("beta", "sepo_ratio"), defaults={"beta": 1.0}, needs_rewards=True
    ),
    "sft": Objective(function="reference_free.sft", options=(), chosen_only=True),
}

LOSS_OPTIONS = tuple(dict.fromkeys(option for objective in LOSSES.values() for option in objective.options))
"""All options that some objective reads."""
