"""The objectives against the golden vectors, a naive form, autograd, and their own invariances."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tgdpo.stages.train.losses import LOSSES
from tgdpo.stages.train.losses.dpo import tgdpo
from tgdpo.stages.train.losses.types import LossSettings, ResponseTokens
from tgdpo.stages.train.shapes import SHAPES

GOLDEN_CHOSEN = ([-0.5, -1.2, -0.1], [-0.7, -1.0, -0.3], [-0.2, -2.0, -0.3])
GOLDEN_REJECTED = ([-0.9, -2.0], [-0.8, -1.5], [-1.8, -0.5])

Row = tuple[list[float], list[float], list[float]]


def padded(rows: list[Row], *, width: int | None = None, garbage: float = 0.0) -> ResponseTokens:
    """(policy, ref, guide) log-probs of some responses in fp64; `garbage` lies under the padding.

    The KL of a distribution is not to be had from single log-probs; d_t^2 stands for it, with its gradient. The two
    guides of TIS-DPO differ by 2 guide - ref.
    """
    width = width or max(len(row[0]) for row in rows)
    tensors = [torch.full((len(rows), width), garbage, dtype=torch.float64) for _ in range(3)]
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        for tensor, values in zip(tensors, row, strict=True):
            tensor[i, : len(values)] = torch.tensor(values, dtype=torch.float64)
        mask[i, : len(row[0])] = True
    policy, ref, guide = tensors
    return ResponseTokens(policy.requires_grad_(), ref, guide - ref, mask, (policy - ref) ** 2, 2 * guide - ref)


class Naive:
    """The formulas as the papers write them, pair by pair and token by token, in Python and fp64.

    A side is (policy, ref, guide): lists of log-probabilities. Each gives loss and phi; named as in `LOSSES`.
    """

    @staticmethod
    def tgdpo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        beta_r = s.beta if s.beta_r is None else s.beta_r

        def f(row: Row, sign: int) -> list[float]:
            _, ref, guide = row
            rewards = torch.tensor([beta_r * (g - r) for g, r in zip(guide, ref, strict=True)], dtype=torch.float64)
            values = [1 + sign * s.alpha * g for g in s.shape(rewards).tolist()]
            if s.f_clip is not None:
                values = [min(max(value, 1 - s.f_clip), 1 + s.f_clip) for value in values]
            return values

        return Naive.weighted(w, l, f(w, +1), f(l, -1), s)

    @staticmethod
    def dpo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        return Naive.weighted(w, l, [1.0] * len(w[0]), [1.0] * len(l[0]), s)

    @staticmethod
    def ld_dpo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        shared = min(len(w[0]), len(l[0]))
        f_w, f_l = ([1.0 if t < shared else s.ld_alpha for t in range(len(row[0]))] for row in (w, l))
        return Naive.weighted(w, l, f_w, f_l, s)

    @staticmethod
    def d2po(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        f_w, f_l = ([s.d2po_gamma**t for t in range(len(row[0]))] for row in (w, l))
        return Naive.weighted(w, l, f_w, f_l, s)

    @staticmethod
    def tis_dpo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        def weights(row: Row, sign: int) -> list[float]:
            contrast = [sign * (2 * g - r) for _, r, g in zip(*row, strict=True)]
            places = [sum(b < a for b in contrast) + (sum(b == a for b in contrast) - 1) / 2 for a in contrast]
            last = len(contrast) - 1
            return [1 - s.tis_spread + 2 * s.tis_spread * place / last if last else 1.0 for place in places]

        return Naive.weighted(w, l, weights(w, +1), weights(l, -1), s)

    @staticmethod
    def ipo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        means = [total([p - r for p, r in zip(*row[:2], strict=True)]) / len(row[0]) for row in (w, l)]
        return (means[0] - means[1] - 1 / (2 * s.beta)) ** 2, means[0] - means[1]

    @staticmethod
    def tdpo1(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        phi = s.beta * (Naive.margin(w, l) - (Naive.kl(l) - Naive.kl(w)))
        return Naive.log_sigmoid(phi, s), phi

    @staticmethod
    def tdpo2(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        phi = s.beta * (Naive.margin(w, l) - s.tdpo_alpha * (Naive.kl(l) - Naive.kl(w).detach()))
        return Naive.log_sigmoid(phi, s), phi

    @staticmethod
    def margin(w: Row, l: Row) -> Tensor:  # noqa: E741
        return total([p - r for p, r in zip(*w[:2], strict=True)]) - total([p - r for p, r in zip(*l[:2], strict=True)])

    @staticmethod
    def kl(row: Row) -> Tensor:
        return total([(p - r) ** 2 for p, r in zip(*row[:2], strict=True)])

    @staticmethod
    def simpo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        means = [total(list(row[0])) / len(row[0]) for row in (w, l)]
        phi = s.beta * (means[0] - means[1] - s.gamma_beta_ratio)
        return Naive.log_sigmoid(phi, s), phi

    @staticmethod
    def sepo(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        means = []
        for sign, (policy, ref, guide) in ((1, w), (-1, l)):
            count = max(1, int(s.sepo_ratio * len(policy) + 1e-6))
            best = sorted(range(len(policy)), key=lambda t: -sign * (guide[t] - ref[t]))[:count]
            means.append(total([policy[t] for t in best]) / count)
        phi = s.beta * (means[0] - means[1])
        return torch.logaddexp(torch.zeros_like(phi), -phi), phi

    @staticmethod
    def sft(w: Row, l: Row, s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: ARG004, E741
        return -total(list(w[0])), torch.zeros((), dtype=torch.float64)

    @staticmethod
    def weighted(w: Row, l: Row, f_w: list[float], f_l: list[float], s: LossSettings) -> tuple[Tensor, Tensor]:  # noqa: E741
        sums = [
            total([f * (p - r) for f, p, r in zip(weights, *row[:2], strict=True)])
            for weights, row in ((f_w, w), (f_l, l))
        ]
        phi = s.beta * (sums[0] - sums[1])
        return Naive.log_sigmoid(phi, s), phi

    @staticmethod
    def log_sigmoid(phi: Tensor, s: LossSettings) -> Tensor:
        zero = torch.zeros_like(phi)
        right, swapped = torch.logaddexp(zero, -phi), torch.logaddexp(zero, phi)
        return (1 - s.label_smoothing) * right + s.label_smoothing * swapped


def total(values: list[Any]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64))


def naive(name: str, chosen: list[Row], rejected: list[Row], s: LossSettings) -> tuple[Tensor, Tensor]:
    """Losses and phi of all pairs."""
    one = getattr(Naive, name.replace("-", "_"))
    losses, phis = zip(*(one(*sides, s) for sides in zip(chosen, rejected, strict=True)), strict=True)
    return torch.stack(losses), torch.stack(phis)


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
    output = tgdpo(chosen, rejected, LossSettings(beta=beta, alpha=alpha))
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
    beta=st.floats(0.01, 3),
    alpha=st.floats(0, 3),
    beta_r=st.none() | st.floats(0, 2),
    shape=st.sampled_from(list(SHAPES.values())),
    f_clip=st.none() | st.floats(0.1, 3),
    label_smoothing=st.floats(0, 0.4),
    gamma_beta_ratio=st.floats(0, 2),
    ld_alpha=st.floats(0, 1),
    d2po_gamma=st.floats(0.5, 1),
    sepo_ratio=st.floats(0.05, 1),
    tdpo_alpha=st.floats(0, 2),
    tis_spread=st.floats(0, 1),
)


def leaves(rows: list[Row]) -> list[Row]:
    """Rows whose policy log-probs are a vector that takes a gradient."""
    return [(torch.tensor(p, dtype=torch.float64, requires_grad=True), r, g) for p, r, g in rows]  # type: ignore[misc]


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=40)
@given(batch=batches(), s=loss_settings, extra=st.integers(0, 3), garbage=st.floats(-5, 5))
def test_equals_the_naive_form_whatever_the_padding(
    name: str, batch: tuple[list[Row], list[Row]], s: LossSettings, extra: int, garbage: float
) -> None:
    chosen_rows, rejected_rows = map(leaves, batch)
    width = max(len(row[0]) for row in chosen_rows + rejected_rows) + extra
    chosen = padded(batch[0], width=width, garbage=garbage)
    rejected = padded(batch[1], garbage=garbage)
    output = LOSSES[name].load()(chosen, rejected, s)
    losses, phis = naive(name, chosen_rows, rejected_rows, s)
    torch.testing.assert_close(output.phi, phis, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.losses, losses, rtol=1e-10, atol=1e-10)

    output.losses.mean().backward()
    losses.mean().backward()
    for side, rows in ((chosen, chosen_rows), (rejected, rejected_rows)):
        for i, (policy, _, _) in enumerate(rows):
            found, expected = side.policy_logps.grad, policy.grad  # type: ignore[attr-defined]
            found = torch.zeros_like(side.policy_logps) if found is None else found
            expected = torch.zeros(len(policy), dtype=torch.float64) if expected is None else expected
            torch.testing.assert_close(found[i, : len(policy)], expected, rtol=1e-9, atol=1e-12)
            assert not found[i, len(policy) :].any()


@pytest.mark.parametrize("name", LOSSES)
def test_rewards_for_the_metrics_carry_no_gradient(name: str) -> None:
    output = LOSSES[name].load()(padded([GOLDEN_CHOSEN]), padded([GOLDEN_REJECTED]), LossSettings())
    assert output.losses.requires_grad
    assert not output.rewards_chosen.requires_grad
    assert not output.rewards_rejected.requires_grad
    if name in ("tgdpo", "dpo", "ipo", "ld-dpo", "d2po", "tis-dpo"):  # as every DPO trainer logs them
        assert output.rewards_chosen.item() == pytest.approx(0.1 * 0.2)
        assert output.rewards_rejected.item() == pytest.approx(-0.1 * 0.6)


@pytest.mark.parametrize("name", ["tgdpo", "ld-dpo", "d2po"])
def test_places_are_those_of_response_tokens_wherever_the_mask_has_them(name: str) -> None:
    """Padding on the left, as a loop of one's own may have it."""
    s = LossSettings(beta=0.3, alpha=1.5, shape=SHAPES["rank"], ld_alpha=0.3, d2po_gamma=0.7)
    right = padded([GOLDEN_CHOSEN], width=5), padded([GOLDEN_REJECTED], width=5)
    left = [ResponseTokens(*(tensor.flip(1) for tensor in side[:4])) for side in right]
    mirrored = [padded([tuple(values[::-1] for values in row)], width=5) for row in (GOLDEN_CHOSEN, GOLDEN_REJECTED)]  # type: ignore[misc]
    loss = LOSSES[name].load()
    torch.testing.assert_close(loss(*left, s).losses, loss(*mirrored, s).losses)


@settings(deadline=None, max_examples=50)
@given(batches(), st.floats(0.01, 2), st.floats(0, 0.4))
def test_alpha_zero_is_dpo_bit_for_bit(batch: tuple[list[Row], list[Row]], beta: float, smoothing: float) -> None:
    outputs = []
    for name in ("tgdpo", "dpo"):
        chosen, rejected = padded(batch[0]), padded(batch[1])
        output = LOSSES[name].load()(chosen, rejected, LossSettings(beta=beta, alpha=0.0, label_smoothing=smoothing))
        output.losses.sum().backward()
        assert chosen.policy_logps.grad is not None
        outputs.append((output.losses, output.phi, chosen.policy_logps.grad))
    for ours, dpo in zip(*outputs, strict=True):
        assert torch.equal(ours, dpo)


def test_the_gradient_is_the_papers() -> None:
    """dL = -sigmoid(-phi) * beta * f per chosen token, plus per rejected token: f is a constant in it."""
    chosen, rejected = padded([GOLDEN_CHOSEN]), padded([GOLDEN_REJECTED])
    chosen.rewards.requires_grad_()
    output = tgdpo(chosen, rejected, LossSettings(beta=0.1, alpha=2.0))
    output.losses.sum().backward()
    scale = -torch.sigmoid(-output.phi.detach()) * 0.1
    torch.testing.assert_close(chosen.policy_logps.grad, scale * output.f_chosen)
    torch.testing.assert_close(rejected.policy_logps.grad, -scale * output.f_rejected)
    assert chosen.rewards.grad is None


def test_a_policy_that_is_the_guide_gains_the_squared_rewards() -> None:
    """phi rises by alpha * (sum r^2 over both sides) when pi_theta = pi_guide (method, Fig. 1)."""

    def phi(alpha: float) -> float:
        sides = [padded([(row[2], row[1], row[2])]) for row in (GOLDEN_CHOSEN, GOLDEN_REJECTED)]
        return tgdpo(*sides, LossSettings(beta=0.3, alpha=alpha)).phi.item()

    sides = GOLDEN_CHOSEN, GOLDEN_REJECTED
    rewards = [0.3 * (g - r) for _, refs, guides in sides for r, g in zip(refs, guides, strict=True)]
    squares = sum(reward**2 for reward in rewards)
    assert phi(1.5) - phi(0.0) == pytest.approx(1.5 * squares)


@pytest.mark.parametrize(
    ("name", "settings_", "phi", "loss"),
    [
        # Worked by hand from the golden vectors: d_w = [0.2, -0.2, 0.2], d_l = [-0.1, -0.5],
        # means of log pi: -0.6 and -1.45.
        ("simpo", {"beta": 2.5, "gamma_beta_ratio": 0.55}, 0.75, 0.3868710061),
        # K_w = 0.12, K_l = 0.26 (see `padded`).
        ("tdpo1", {"beta": 1.0}, 0.8 - 0.14, math.log1p(math.exp(-0.66))),
        ("tdpo2", {"beta": 1.0, "tdpo_alpha": 0.5}, 0.8 - 0.07, math.log1p(math.exp(-0.73))),
        ("ipo", {"beta": 0.5}, 0.2 / 3 + 0.3, (0.2 / 3 + 0.3 - 1) ** 2),
        ("ld-dpo", {"beta": 1.0, "ld_alpha": 0.5}, 0.7, 0.4031860489),
        ("d2po", {"beta": 1.0, "d2po_gamma": 0.5}, 0.15 + 0.35, 0.4740769842),
        # Rewards: chosen [0.5, -1, 0], the best third is -0.5; rejected [-1, 1], the worst half is -0.9.
        ("sepo", {"beta": 1.0, "sepo_ratio": 0.5}, 0.4, 0.5130152524),
        # Contrast: chosen [0.3, -3, -0.3], so weights [1.3, 0.7, 1]; rejected [-2.8, 0.5], so [1.3, 0.7].
        ("tis-dpo", {"beta": 1.0, "tis_spread": 0.3}, 0.32 + 0.48, math.log1p(math.exp(-0.8))),
        ("sft", {}, 0.0, 1.8),
    ],
)
def test_values_worked_by_hand(name: str, settings_: dict[str, float], phi: float, loss: float) -> None:
    output = LOSSES[name].load()(padded([GOLDEN_CHOSEN]), padded([GOLDEN_REJECTED]), LossSettings(**settings_))
    assert output.phi.item() == pytest.approx(phi, abs=1e-9)
    assert output.losses.item() == pytest.approx(loss, abs=1e-9)


def test_an_empty_rejected_response_does_not_disturb_sft() -> None:
    """Training with --loss sft leaves rejected responses out."""
    chosen = padded([GOLDEN_CHOSEN, GOLDEN_REJECTED])
    rejected = padded([([], [], []), ([], [], [])], width=3, garbage=float("nan"))
    output = LOSSES["sft"].load()(chosen, rejected, LossSettings())
    assert output.losses.tolist() == pytest.approx([1.8, 2.9])
