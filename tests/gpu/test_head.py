"""The head in blocks against the plain formula in float64 on the CPU."""

import pytest
import torch
from torch import Tensor

from tgdpo.stages import head
from tgdpo.stages.head import LogitTransform, target_logps

pytestmark = pytest.mark.gpu

ROWS, WIDTH, VOCABULARY = 200, 64, 3001
TOLERANCES = {"float32": 1e-4, "bfloat16": 6e-2, "autocast": 6e-2}
"""In nats, and of the largest gradient; bfloat16 logits are a few units large."""


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform) -> Tensor:
    logps = transform(hidden @ weight.T).log_softmax(-1)
    return logps.gather(1, targets.view(len(targets), -1)).view(targets.shape)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("drawn", [(), (5,)], ids=["R", "RM"])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 3.0)], ids=["plain", "scaled-capped"])
def test_values_and_gradients(
    precision: str,
    drawn: tuple[int, ...],
    transform: LogitTransform,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over several blocks of rows forward and of the vocabulary backward."""
    for name in ("BLOCK_BYTES", "CPU_BLOCK_BYTES"):
        monkeypatch.setattr(head, name, 4 * 60 * VOCABULARY)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    states, weights = torch.randn(ROWS, WIDTH).to(dtype), (torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5).to(dtype)
    targets, factors = torch.randint(0, VOCABULARY, (ROWS, *drawn)), torch.randn(ROWS, *drawn)

    expected_inputs = [x.double().requires_grad_() for x in (states, weights)]
    expected = exact(*expected_inputs, targets, transform)
    (expected * factors).sum().backward()
    inputs = [x.to(device).requires_grad_() for x in (states, weights)]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
        found = target_logps(*inputs, targets.to(device), transform)
    (found * factors.to(device)).sum().backward()

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().cpu(), expected, atol=TOLERANCES[precision], rtol=0)
    for x, y in zip(inputs, expected_inputs, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        error = (x.grad.double().cpu() - y.grad).abs().max()
        assert error <= TOLERANCES[precision] * y.grad.abs().max()
