"""`tgdpo.tgdpo_loss` against numbers worked out by hand in float64, and against its definition."""

import pytest
import torch
from torch import Tensor

import tgdpo

CHOSEN = [-0.5, -1.2, -0.1], [-0.7, -1.0, -0.3], [-0.2, -2.0, -0.3]
REJECTED = [-0.9, -2.0], [-0.8, -1.5], [-1.8, -0.5]
"""Under policy, reference and guidance."""


def arguments(padding: float = 0.0) -> dict[str, Tensor]:
    """One pair; the rejected response is padded by one token."""
    policy_w, ref_w, guide_w = (torch.tensor([values], dtype=torch.float64) for values in CHOSEN)
    policy_l, ref_l, guide_l = (torch.tensor([[*values, padding]], dtype=torch.float64) for values in REJECTED)
    return {
        "chosen_logps": policy_w,
        "rejected_logps": policy_l,
        "ref_chosen_logps": ref_w,
        "ref_rejected_logps": ref_l,
        "chosen_rewards": guide_w - ref_w,
        "rejected_rewards": torch.cat([(guide_l - ref_l)[:, :2], guide_l[:, 2:]], 1),
        "chosen_mask": torch.tensor([[True, True, True]]),
        "rejected_mask": torch.tensor([[True, True, False]]),
    }


@pytest.mark.parametrize("padding", [0.0, -50.0, float("nan")])
@pytest.mark.parametrize(
    ("beta", "alpha", "phi", "loss"),
    [
        (0.1, 0.0, 0.08, 0.6539469673),
        (0.1, 0.5, 0.0795, 0.6541870038),
        (0.1, 2.0, 0.078, 0.6549074879),
        (1.0, 0.5, 0.75, 0.3868710061),
    ],
)
def test_golden_numbers(beta: float, alpha: float, phi: float, loss: float, padding: float) -> None:
    output = tgdpo.tgdpo_loss(**arguments(padding), beta=beta, alpha=alpha)
    assert output.phi.item() == pytest.approx(phi, abs=1e-12)
    assert output.losses.item() == pytest.approx(loss, abs=1e-10)


def test_the_gradient_flows_through_the_policy_alone() -> None:
    given = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in arguments().items()}
    tgdpo.tgdpo_loss(**given, alpha=2.0).losses.sum().backward()
    assert given["chosen_logps"].grad is not None
    assert given["chosen_rewards"].grad is None


def test_options_are_those_of_training() -> None:
    plain = tgdpo.tgdpo_loss(**arguments(), alpha=2.0, beta=1.0)
    clipped = tgdpo.tgdpo_loss(**arguments(), alpha=2.0, beta=1.0, f_clip=0.1)
    assert plain.f_chosen.max() > 1.1
    assert clipped.f_chosen.max() == pytest.approx(1.1)
    bounded = tgdpo.tgdpo_loss(**arguments(), alpha=0.5, f_shape="sigmoid", beta_r=100.0)
    assert bounded.f_chosen.max() == pytest.approx(1.5)
