"""The KL estimated from samples of the reference against the exact one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import Models

from tgdpo.data.packing import Layout, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages import head
from tgdpo.stages.logps import ResponseLogps, to_device
from tgdpo.stages.score.samples import draws_of
from tgdpo.stages.train.reference import LogpsAndKl, ReferenceStates
from tgdpo.stages.train.sampled import LogpsOfSamples, estimated_kl

CPU = torch.device("cpu")


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).float()


def test_value_and_gradient_are_unbiased() -> None:
    """The mean over all tokens, each as often as the reference draws it, is the exact KL."""
    torch.manual_seed(0)
    ref_logps = torch.randn(4, 7, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(-1)
    exact = torch.nn.functional.kl_div(logps, ref_logps, reduction="none", log_target=True).sum(-1)
    each = torch.stack([estimated_kl(ref_logps[:, [token]], logps[:, [token]]) for token in range(7)], 1)
    expected = (ref_logps.exp() * each).sum(-1)
    torch.testing.assert_close(expected, exact)
    weights = torch.linspace(-1, 2, 4, dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * kl).sum(), logits, retain_graph=True)[0] for kl in (expected, exact)]
    torch.testing.assert_close(*gradients)


def test_where_policy_and_reference_agree_there_is_no_noise() -> None:
    ref_logps = torch.randn(3, 5, dtype=torch.float64).log_softmax(-1)
    logps = ref_logps.clone().requires_grad_()
    kl = estimated_kl(ref_logps, logps)
    assert kl.tolist() == [0, 0, 0]
    kl.sum().backward()
    assert not logps.grad.any()  # type: ignore[union-attr]


@pytest.fixture
def pairs() -> list[PairIds]:
    rng = np.random.default_rng(0)
    lengths = [(3, 6, 4), (5, 2, 9), (4, 20, 15)]
    return [PairIds(*(rng.integers(5, 300, n).astype(np.int32) for n in each)) for each in lengths]


def kl_of(forward: Any, reference: ResponseLogps, pairs: list[PairIds], per_token: int) -> torch.Tensor:
    """Estimated from tokens drawn as stage one draws them."""
    batch = to_device(collate(pairs, forward.layout), CPU)
    draws = draws_of([f"pair {number}" for number in range(len(pairs))], pairs, per_token)
    uniforms = torch.from_numpy(np.concatenate([draws(number) for number in range(len(pairs))]))
    with torch.no_grad():
        ids, ref_logps = reference.draw(batch, uniforms)
    logps = forward(batch, ids)
    return estimated_kl(ref_logps, logps[:, 1:])


def near(models: Models) -> Any:
    """A policy not far from the reference."""
    policy = load(models.reference)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.1 * parameter.data.std() * torch.randn_like(parameter)
    return policy


def test_it_comes_to_the_exact_value_as_samples_grow(models: Models, pairs: list[PairIds]) -> None:
    forward, reference = LogpsOfSamples(near(models)), ResponseLogps(load(models.reference))
    batch = to_device(collate(pairs, "packed"), CPU)
    with torch.no_grad():
        exact = LogpsAndKl(near(models))(batch, ReferenceStates(reference, reference.states(batch)))[1]
        errors = {
            count: (kl_of(forward, reference, pairs, count) - exact).pow(2).mean().sqrt().item()
            for count in (4, 64, 1024, 16384)
        }
    # Sixteen times the samples, a quarter of the error.
    assert errors[64] < 0.5 * errors[4]
    assert errors[1024] < 0.5 * errors[64]
    assert errors[16384] < 0.5 * errors[1024]
    assert errors[16384] < 0.02 * exact.mean()


def test_the_gradient_comes_to_the_exact_one(models: Models, pairs: list[PairIds]) -> None:
    policies, reference = [near(models), near(models)], ResponseLogps(load(models.reference))
    batch = to_device(collate(pairs, "packed"), CPU)
    with torch.no_grad():
        states = ReferenceStates(reference, reference.states(batch))
    LogpsAndKl(policies[0])(batch, states)[1].sum().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in policies[0].parameters()])
    forward, errors = LogpsOfSamples(policies[1]), []
    for count in (64, 4096):
        forward.zero_grad()
        kl_of(forward, reference, pairs, count).sum().backward()
        found = torch.cat([parameter.grad.flatten() for parameter in policies[1].parameters()])
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.05


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("rows", [1000, 3])
def test_several_tokens_of_a_distribution_equal_full_logits(
    layout: Layout, rows: int, models: Models, pairs: list[PairIds], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, other = load(models.reference), load(models.reference)
    monkeypatch.setattr(head, "CPU_BLOCK_BYTES", rows * 4 * policy.config.vocab_size)
    forward = LogpsOfSamples(policy, "padded" if layout == "padded" else None)
    assert forward.layout == layout
    batch = to_device(collate(pairs, layout), CPU)
    sampled = torch.randint(0, 300, (len(batch.places), 6))
    sampled[:, 5] = sampled[:, 4]  # one that is drawn twice
    found = forward(batch, sampled)

    parts, start = [], 0
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            ids = torch.tensor(np.concatenate([pair.prompt, response]), dtype=torch.int64)[None]
            logps = other(ids).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
            targets = torch.cat([torch.tensor(response)[:, None], sampled[start : start + len(response)]], 1)
            parts.append(logps.gather(1, targets.long()))
            start += len(response)
    expected = torch.cat(parts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)
