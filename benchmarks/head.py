"""The head, side by side: `python benchmarks/head.py [--models S-32k …] [--dtypes bfloat16 …]`.

Per-token log-probabilities from hidden states and their gradients, forward and backward, each in a process of its own:

    ours            stages/head.py
    full-logits     the plain formula on all rows at once, float32
    torch           torch.nn.functional.linear_cross_entropy(reduction="none")
    float32-product the plain formula with logits that come out of the product in float32, made twice as ours are
    compiled        the plain formula through torch.compile
    cce             cut-cross-entropy, gradients unfiltered: its compiled form on a CPU, its Triton kernels on CUDA
    liger           liger-kernel's fused linear cross-entropy, on CUDA

The last two are skipped where their packages are not installed (`pip install cut-cross-entropy liger-kernel`; both
import Triton), torch where this torch has no such function. Errors are those of the log-probabilities, in nats, against
float64 on the same inputs.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from common import DEVICE, MODELS, VariantError, in_process, machine, measure, peak_mb, reset_peak, table
from torch import Tensor

from tgdpo.stages.head import LogitTransform, target_logps

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits as the model makes them, then float32."""
    return (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Of apple/ml-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if DEVICE.type == "cuda" else "torch_compile"
    return -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None, impl=impl).float()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Of linkedin/Liger-Kernel."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return -liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none").float()


class Float32Product(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[targets] from logits that were never rounded to half precision."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """[R] in float32."""
        logits = float32_product(hidden, weight)
        normalisers = logits.logsumexp(-1)
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - normalisers

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Of hidden and weight."""
        hidden, weight, targets, normalisers = ctx.saved_tensors
        grad = (float32_product(hidden, weight) - normalisers[:, None]).exp_()
        grad.scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=torch.float32))
        half = grad.mul_(-grad_outputs[0][:, None]).to(hidden.dtype)
        return half @ weight, half.T @ hidden, None


def float32_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden @ weight.T in float32; on a CPU, whose product has no such form, rounded on the way."""
    if DEVICE.type == "cuda" and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return (hidden @ weight.T).float()


@cache
def compiled() -> Head:
    """`full_logits` as torch.compile makes it."""
    return torch.compile(full_logits)


HEADS: dict[str, Head] = {
    "ours": lambda hidden, weight, targets: target_logps(hidden, weight, targets, LogitTransform()),
    "full-logits": full_logits,
    "torch": lambda *inputs: -F.linear_cross_entropy(*inputs, reduction="none").float(),  # type: ignore[attr-defined]
    "float32-product": Float32Product.apply,
    "compiled": lambda *inputs: compiled()(*inputs),
    "cce": cut_cross_entropy,
    "liger": liger,
}
NEEDS = {"cce": "cut_cross_entropy", "liger": "liger_kernel"}


def missing(variant: str) -> str | None:
    """Why a variant does not run here; None where it does."""
    if not importlib.util.find_spec(NEEDS.get(variant, "torch")):
        return f"{NEEDS[variant]} is not installed"
    if variant == "liger" and DEVICE.type == "cpu":
        return "needs CUDA"
    if variant == "torch" and not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy"
    return None


def run_variant(variant: str, name: str, dtype: str, tokens: int, repeats: int) -> dict[str, float]:
    """One variant in this process."""
    torch.manual_seed(0)
    size, vocabulary = MODELS[name]["hidden_size"], MODELS[name]["vocab_size"]
    hidden = torch.randn(tokens, size, device=DEVICE).to(getattr(torch, dtype)).requires_grad_()
    weight = (torch.randn(vocabulary, size, device=DEVICE) / size**0.5).to(getattr(torch, dtype)).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device=DEVICE)
    factors = torch.randn(tokens, device=DEVICE)
    reset_peak()
    before = peak_mb()

    def step(_: int) -> float:
        hidden.grad = weight.grad = None
        logps = HEADS[variant](hidden, weight, targets)
        (logps * factors).sum().backward()
        return float(weight.grad[0, 0])  # type: ignore[index]

    result = measure(step, repeats)
    result["peak_mb"] -= before
    few = slice(0, 64)
    with torch.no_grad():
        found = HEADS[variant](hidden, weight, targets)[few].double()
        logits = hidden[few].double() @ weight.double().T
        exact = logits.gather(-1, targets[few, None]).squeeze(-1) - logits.logsumexp(-1)
    return result | {"error": float((found - exact).abs().max())}


def main() -> None:
    """Prints one table per model and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["S-32k", "M-128k"], choices=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=list(HEADS), choices=HEADS)
    parser.add_argument("--tokens", type=int, default=1200, help="response tokens")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=HEADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        one = (options.models[0], options.dtypes[0])
        print(json.dumps(run_variant(options.variant, *one, options.tokens, options.repeats)))
        return
    print(machine(), f"{options.threads} thread(s), medians of {options.repeats}", sep=", ")
    for model in options.models:
        for dtype in options.dtypes:
            print(f"\n{model} {dtype}, {options.tokens} response tokens\n")
            print(compare(model, dtype, options))


def compare(model: str, dtype: str, options: argparse.Namespace) -> str:
    """A row per variant that can run here."""
    rows = [["variant", "us a token", "peak MB", "largest error"]]
    for variant in options.variants:
        if missing(variant):
            rows.append([variant, "not here", "", ""])
            continue
        arguments = ["--models", model, "--dtypes", dtype, "--tokens", options.tokens, "--repeats", options.repeats]
        try:
            result = in_process(__file__, variant, [str(argument) for argument in arguments], options.threads)
        except VariantError as error:
            rows.append([variant, str(error), "", ""])
            continue
        speed = result["seconds"] / options.tokens * 1e6
        rows.append([variant, f"{speed:,.0f}", f"{result['peak_mb']:,.0f}", f"{result['error']:.1e}"])
    return table(rows)


if __name__ == "__main__":
    main()
