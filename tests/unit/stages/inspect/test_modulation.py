"""f as inspect shows it is f as training computes it."""

from typing import get_args

import numpy as np
import pytest
import torch

from tgdpo.stages.inspect.config import InspectConfig
from tgdpo.stages.inspect.modulation import SHAPES, Modulation
from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.losses.dpo import tgdpo
from tgdpo.stages.train.losses.types import LossSettings, ResponseTokens
from tgdpo.stages.train.shapes import SHAPES as TRAIN_SHAPES


def trained_f(rewards: np.ndarray, settings: LossSettings) -> tuple[np.ndarray, np.ndarray]:
    """Of chosen and rejected tokens with these rewards, by the loss itself."""
    values = torch.tensor(rewards)[None]
    tokens = ResponseTokens(values, values, values, torch.ones_like(values, dtype=torch.bool))
    output = tgdpo(tokens, tokens, settings)
    return output.f_chosen[0].numpy(), output.f_rejected[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("beta_r", [None, 0.0, 1.7])
def test_f_is_that_of_the_loss(shape: str, clip: float | None, beta_r: float | None) -> None:
    rewards = np.random.default_rng(0).normal(0, 20, 1000)
    config = InspectConfig(alpha=0.7, beta=0.2, beta_r=beta_r, f_shape=shape, f_clip=clip)
    ours = Modulation.of(config)
    settings = LossSettings(alpha=0.7, beta=0.2, beta_r=beta_r, shape=TRAIN_SHAPES[shape], f_clip=clip)
    for side, theirs in zip(("chosen", "rejected"), trained_f(rewards, settings), strict=True):
        np.testing.assert_allclose(ours(rewards, side), theirs, rtol=1e-12, atol=1e-12)


def test_the_options_of_f_are_those_of_training() -> None:
    assert SHAPES.keys() == TRAIN_SHAPES.keys() - {"rank"}
    assert get_args(InspectConfig.model_fields["f_shape"].annotation) == tuple(SHAPES)
    for name in ("alpha", "beta", "beta_r", "f_clip"):
        ours, theirs = InspectConfig.model_fields[name], TrainConfig.model_fields[name]
        assert (ours.annotation, ours.default, ours.metadata) == (theirs.annotation, theirs.default, theirs.metadata)
        assert get_args(ours.annotation) == get_args(theirs.annotation)
