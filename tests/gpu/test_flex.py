"""Both attentions over packed pairs against the plain formula in float64 on the CPU: values and gradients."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from tgdpo.data.packing import Span
from tgdpo.stages import flex
from tgdpo.stages.attention import PackedRow, shared_prompt_attention, shared_prompt_flex_attention

pytestmark = pytest.mark.gpu

LENGTHS = (20, 63, 127, 128, 129, 1000, 8192)
"""Around the rows that CUDA's decoding kernel would take, around a block of 128, and a whole pass."""
LONGEST_ON_CPU = 200
PAIR_TOKENS = 1400
ATTENTIONS = {"pair-by-pair": shared_prompt_attention, "flex": shared_prompt_flex_attention}


class Case(NamedTuple):
    """One kernel's worth of settings."""

    groups: int = 4
    """Queries to a key."""
    size: int = 128
    window: int | None = None
    cap: float | None = None
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    """As float32 weights give it: query and key in float32, value in bfloat16."""

    @property
    def tolerance(self) -> float:
        """Of the largest number of a result."""
        return 2e-2 if self.autocast or self.dtype == torch.bfloat16 else 1e-4

    def __str__(self) -> str:
        name = "autocast" if self.autocast else str(self.dtype).removeprefix("torch.")
        return f"{self.groups}-{self.size}-window{self.window}-cap{self.cap}-{name}"


PLAIN, BF16 = Case(), Case(dtype=torch.bfloat16)
ALL_LENGTHS = [PLAIN, BF16]
AT_SOME = [
    *(PLAIN._replace(groups=groups) for groups in (1, 7, 8)),
    *(PLAIN._replace(size=size) for size in (64, 256)),
    PLAIN._replace(window=30),
    PLAIN._replace(cap=2.0),
    BF16._replace(groups=2, size=256, window=30, cap=2.0),
    PLAIN._replace(autocast=True),
]
SOME_LENGTHS = (20, 127, 1000)
SOME_FOR_GRADIENTS = (129, 1000)
"""One graph, where shorter rows would be another: backward ones take long to compile."""


def spans_of(tokens: int) -> list[Span]:
    """At least two pairs of about a third prompt, with parts of uneven lengths."""
    count = max(2, -(-tokens // PAIR_TOKENS))
    ends = np.linspace(0, tokens, count + 1).astype(int).tolist()
    spans = []
    for start, end in pairwise(ends):
        chosen = start + max(1, (end - start) * 2 // 5)
        spans.append(Span(start, chosen, chosen + max(1, (end - chosen) // 3), end))
    return spans


def positions_of(spans: list[Span]) -> Tensor:
    parts = []
    for span in spans:
        prompt = span.chosen - span.prompt
        parts += [np.arange(span.rejected - span.prompt), np.arange(prompt, prompt + span.end - span.rejected)]
    return torch.from_numpy(np.concatenate(parts))[None]


def golden(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], case: Case) -> Tensor:
    """[1, T, H, D] by the definition of who sees whom, one pair at a time."""
    query, key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (query, key, value))
    positions, outputs = positions_of(spans)[0], []
    for span in spans:
        pair = slice(span.prompt, span.end)
        visible = torch.ones(span.end - span.prompt, span.end - span.prompt, dtype=torch.bool).tril()
        visible[span.rejected - span.prompt :, span.chosen - span.prompt : span.rejected - span.prompt] = False
        if case.window:
            visible &= positions[pair, None] - positions[None, pair] < case.window
        scores = query[:, :, pair] @ key[:, :, pair].transpose(-1, -2) * case.size**-0.5
        if case.cap:
            scores = torch.tanh(scores / case.cap) * case.cap
        outputs.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[:, :, pair])
    return torch.cat(outputs, 2).transpose(1, 2)


def inputs_of(case: Case, tokens: int, device: torch.device) -> list[Tensor]:
    """Query, key and value as a layer would hand them over."""
    torch.manual_seed(tokens)
    dtypes = (case.dtype, case.dtype, torch.bfloat16 if case.autocast else case.dtype)
    heads = (case.groups, 1, 1)
    return [torch.randn(1, h, tokens, case.size).to(device, dtype) for h, dtype in zip(heads, dtypes, strict=True)]


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    error, largest = (found.double().cpu() - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * largest, f"{what}: {error:.2e} off, of {largest:.2e}"


def attend(name: str, inputs: list[Tensor], spans: list[Span], case: Case) -> Tensor:
    device = inputs[0].device
    row = PackedRow(spans, positions_of(spans).to(device))
    options: dict[str, Any] = {"scaling": case.size**-0.5, "sliding_window": case.window, "softcap": case.cap}
    with torch.autocast(device.type, torch.bfloat16, enabled=case.autocast):
        return ATTENTIONS[name](nn.Identity(), *inputs, None, packed_row=row, **options)[0]  # type: ignore[arg-type]


@pytest.fixture
def kernel(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the compiled kernel; on a CPU, whose compiled kernel knows no windows, the formula it is made from."""
    if device.type == "cpu":
        monkeypatch.setattr(flex, "_compiled", lambda *_: torch_flex.flex_attention)
        monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)


def require_case(name: str, case: Case, lengths: tuple[int, ...], device: torch.device, *, gradients: bool) -> None:
    for tokens in lengths:
        if device.type == "cpu" and tokens > LONGEST_ON_CPU:
            continue
        spans, inputs = spans_of(tokens), inputs_of(case, tokens, device)
        exact = [x.detach().double().cpu().requires_grad_(gradients) for x in inputs]
        found = attend(name, [x.requires_grad_(gradients) for x in inputs], spans, case)
        expected = golden(*exact, spans, case)
        require_close(found.detach(), expected.detach(), case.tolerance, f"{tokens} tokens")
        if gradients:
            factors = torch.randn(expected.shape, dtype=torch.float64)
            (found * factors.to(device, found.dtype)).sum().backward()
            (expected * factors).sum().backward()
            for letter, x, y in zip("qkv", inputs, exact, strict=True):
                assert x.grad is not None
                assert y.grad is not None
                require_close(x.grad, y.grad, 2 * case.tolerance, f"{tokens} tokens, gradient of {letter}")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("case", ALL_LENGTHS + AT_SOME, ids=str)
def test_values(name: str, case: Case, device: torch.device) -> None:
    if name == "flex" and device.type == "cpu" and case.autocast:
        pytest.skip("FlexAttention takes no mixed dtypes on a CPU")
    with torch.inference_mode():
        lengths = LENGTHS if case in ALL_LENGTHS else SOME_LENGTHS
        require_case(name, case, lengths, device, gradients=False)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("case", ALL_LENGTHS + AT_SOME, ids=str)
def test_gradients(name: str, case: Case, device: torch.device) -> None:
    if name == "flex" and device.type == "cpu":
        pytest.skip("FlexAttention has no backward on a CPU")
    lengths = LENGTHS if case in ALL_LENGTHS else SOME_FOR_GRADIENTS
    require_case(name, case, lengths, device, gradients=True)
