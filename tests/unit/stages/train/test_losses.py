"""The objectives against the golden vectors, a naive form, autograd, and their own invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgdpo.stages.train.losses import LOSSES, LossSettings, ResponseTokens
from tgdpo.stages.train.shapes import SHAPES

GOLDEN_CHOSEN = ([-0.5, -1.2, -0.1], [-0.7, -1.0, -0.3], [-0.2, -2.0, -0.3])
GOLDEN_REJECTED = ([-0.9, -2.0], [-0.8, -1.5], [-1.8, -0.5])

Row = tuple[list[float], list[float], list[float]]


def padded(rows: list[Row], *, width: int | None = None, garbage: float = 0.0) -> ResponseTokens:
    """(policy, ref, guide) log-probs of some responses in fp64; `garbage` lies under the padding."""
    width = width or max(len(row[0]) for row in rows)
    tensors = [torch.full((len(rows), width), garbage, dtype=torch.float64) for _ in range(3)]
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        for tensor, values in zip(tensors, row, strict=True):
            tensor[i, : len(values)] = torch.tensor(values, dtype=torch.float64)
        mask[i, : len(row[0])] = True
    policy, ref, guide = tensors
    return ResponseTokens(policy.requires_grad_(), ref, guide - ref, mask)


def naive(chosen: list[Row], rejected: list[Row], s: LossSettings) -> tuple[list[Tensor], list[Tensor]]:
    """The formula of the paper, token by token in Python. Returns losses and phi per pair."""
    losses, phis = [], []
    for w, l in zip(chosen, rejected, strict=True):  # noqa: E741
        phi = torch.zeros((), dtype=torch.float64)
        for sign, (policy, ref, guide) in ((1, w), (-1, l)):
            for t in range(len(policy)):
                r = (s.beta if s.beta_r is None else s.beta_r) * (guide[t] - ref[t])
                f = 1 + sign * s.alpha * float(s.shape(torch.tensor(r, dtype=torch.float64)))
                if s.f_clip is not None:
                    f = min(max(f, 1 - s.f_clip), 1 + s.f_clip)
                phi = phi + sign * s.beta * f * (policy[t] - ref[t])
        zero = torch.zeros_like(phi)
        log_sigmoid = -torch.logaddexp(zero, -phi), -torch.logaddexp(zero, phi)
        losses.append(-(1 - s.label_smoothing) * log_sigmoid[0] - s.label_smoothing * log_sigmoid[1])
        phis.append(phi)
    return losses, phis


@pytest.mark.parametrize(
    ("beta", "alpha", "phi", "loss"),
    [
        (0.1, 0.0, 0.08, 0.6539469673),
        (0.1, 0.5, 0.0795, 0.6541870038),
        (0.1, 2.0, 0.078, 0.6549074879),
        (1.0, 0.5, 0.75, 0.3868710061),
    ],
)
def test_golden_vectors(beta: float, alpha: float, phi: float, loss: float) -> None:
    chosen, rejected = padded([GOLDEN_CHOSEN]), padded([GOLDEN_REJECTED])
    output = LOSSES["tgdpo"](chosen, rejected, LossSettings(beta=beta, alpha=alpha))
    assert output.phi.item() == pytest.approx(phi, abs=1e-12)
    assert output.losses.item() == pytest.approx(loss, abs=1e-9)


_logps = st.floats(-8, 0)


@st.composite
def ragged_rows(draw: st.DrawFn, count: int) -> list[Row]:
    rows = []
    for _ in range(count):
        length = draw(st.integers(1, 6))
        rows.append(tuple(draw(st.lists(_logps, min_size=length, max_size=length)) for _ in range(3)))
    return rows  # type: ignore[return-value]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    count = draw(st.integers(1, 5))
    return draw(ragged_rows(count)), draw(ragged_rows(count))


loss_settings = st.builds(
    LossSettings,
    beta=st.floats(0.01, 2),
    alpha=st.floats(0, 3),
    beta_r=st.none() | st.floats(0, 2),
    shape=st.sampled_from(list(SHAPES.values())),
    f_clip=st.none() | st.floats(0.1, 3),
    label_smoothing=st.floats(0, 0.4),
)


@settings(deadline=None, max_examples=200)
@given(batches(), loss_settings, st.integers(0, 3), st.floats(-5, 5))
def test_equals_the_naive_form_whatever_the_padding(
    batch: tuple[list[Row], list[Row]], s: LossSettings, extra: int, garbage: float
) -> None:
    chosen_rows, rejected_rows = batch
    width = max(len(row[0]) for row in chosen_rows + rejected_rows) + extra
    chosen = padded(chosen_rows, width=width, garbage=garbage)
    rejected = padded(rejected_rows, garbage=garbage)
    output = LOSSES["tgdpo"](chosen, rejected, s)
    losses, phis = naive(chosen_rows, rejected_rows, s)
    torch.testing.assert_close(output.phi, torch.stack(phis), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.losses, torch.stack(losses), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=100)
@given(batches(), loss_settings)
def test_gradients_match_autograd_of_the_naive_form(batch: tuple[list[Row], list[Row]], s: LossSettings) -> None:
    chosen_rows, rejected_rows = batch
    chosen, rejected = padded(chosen_rows), padded(rejected_rows)
    LOSSES["tgdpo"](chosen, rejected, s).losses.mean().backward()

    def leaves(rows: list[Row]) -> list[Row]:
        return [(torch.tensor(p, dtype=torch.float64, requires_grad=True), r, g) for p, r, g in rows]  # type: ignore[misc]

    naive_chosen, naive_rejected = leaves(chosen_rows), leaves(rejected_rows)
    losses, _ = naive(naive_chosen, naive_rejected, s)
    torch.stack(losses).mean().backward()
    for side, rows in ((chosen, naive_chosen), (rejected, naive_rejected)):
        assert side.policy_logps.grad is not None
        for i, (policy, _, _) in enumerate(rows):
            torch.testing.assert_close(side.policy_logps.grad[i, : len(policy)], policy.grad, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr, attr-defined]


@settings(deadline=None, max_examples=50)
@given(batches(), st.floats(0.01, 2), st.floats(0, 0.4))
def test_alpha_zero_is_dpo_bit_for_bit(batch: tuple[list[Row], list[Row]], beta: float, smoothing: float) -> None:
    outputs = []
    for name in ("tgdpo", "dpo"):
        chosen, rejected = padded(batch[0]), padded(batch[1])
        output = LOSSES[name](chosen, rejected, LossSettings(beta=beta, alpha=0.0, label_smoothing=smoothing))
        output.losses.sum().backward()
        assert chosen.policy_logps.grad is not None
        outputs.append((output.losses, output.phi, chosen.policy_logps.grad))
    for ours, dpo in zip(*outputs, strict=True):
        assert torch.equal(ours, dpo)


def test_the_gradient_is_the_papers() -> None:
    """dL = -sigmoid(-phi) * beta * f per chosen token, plus per rejected token: f is a constant in it."""
    chosen, rejected = padded([GOLDEN_CHOSEN]), padded([GOLDEN_REJECTED])
    chosen.rewards.requires_grad_()
    output = LOSSES["tgdpo"](chosen, rejected, LossSettings(beta=0.1, alpha=2.0))
    output.losses.sum().backward()
    scale = -torch.sigmoid(-output.phi.detach()) * 0.1
    torch.testing.assert_close(chosen.policy_logps.grad, scale * output.f_chosen)
    torch.testing.assert_close(rejected.policy_logps.grad, -scale * output.f_rejected)
    assert chosen.rewards.grad is None


def test_a_policy_that_is_the_guide_gains_the_squared_rewards() -> None:
    """phi rises by alpha * (sum r^2 over both sides) when pi_theta = pi_guide (method, Fig. 1)."""

    def phi(alpha: float) -> float:
        sides = [padded([(row[2], row[1], row[2])]) for row in (GOLDEN_CHOSEN, GOLDEN_REJECTED)]
        return LOSSES["tgdpo"](*sides, LossSettings(beta=0.3, alpha=alpha)).phi.item()

    sides = GOLDEN_CHOSEN, GOLDEN_REJECTED
    rewards = [0.3 * (g - r) for _, refs, guides in sides for r, g in zip(refs, guides, strict=True)]
    squares = sum(reward**2 for reward in rewards)
    assert phi(1.5) - phi(0.0) == pytest.approx(1.5 * squares)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_leaves_zero_rewards_alone(shape: Callable[[Tensor], Tensor]) -> None:
    assert shape(torch.zeros(1)).item() == 0


def test_the_sigmoid_shape_is_bounded() -> None:
    values = SHAPES["sigmoid"](torch.tensor([-1e3, -1.0, 1.0, 1e3]))
    assert values.abs().max() <= 1
    assert values[2].item() == pytest.approx(2 / (1 + math.exp(-1)) - 1)
