"""The structures of train_step.py, head.py and score_throughput.py as items, each in the item's own process."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import head
import score_throughput
import torch
import train_step
from common import DEVICE, MODELS
from floor import Lengths, PairFlops, pair_flops

from tgdpo.stages.hardware import parameters

from .card import shares
from .item import Context, Figures, ItemError, SkippedError
from .training import LENGTHS, is_small

FLOPS = {
    "three-models": "three_models", "two-models": "two_models", "trl-online": "two_models", "trl-liger": "two_models",
    "trl-cached": "cached",
}  # fmt: skip
"""Whose operations a structure cannot do without; the others are ours, whatever they add to it."""


def step_of(context: Context, variant: str, model: str, *, options: list[str]) -> Figures:
    """A training step of one structure with bfloat16 weights."""
    lengths = Lengths(20, 20, 20) if context.small else LENGTHS
    name = is_small(model, context)
    given = ["--models", name, "--dtypes", "bfloat16", "--variant", variant, *options]
    given += ["--prompt", *[str(lengths.prompt)] * 2, "--response", *[str(lengths.chosen)] * 2]
    if context.small:
        given += ["--pairs", "2", "--warm", "1", "--steps", "1"]
    parsed = train_step.arguments().parse_args(given)
    result = train_step.run_variant(parsed)
    if not result:
        raise ItemError("does not fit in the card's memory", {})
    flops = _flops(variant, name, lengths)
    return {
        "seconds_a_step": result["seconds"],
        "pairs": parsed.pairs,
        "tokens_per_second": result["tokens"] / result["seconds"],
        "flops_a_step": flops * parsed.pairs,
        "peak_gib": result["peak_mb"] / 1024,
        **shares(context, flops * parsed.pairs / result["seconds"]),
        "first_loss": result.get("first"),
    }


def _flops(variant: str, model: str, lengths: Lengths) -> float:
    flops: PairFlops = pair_flops(parameters({"model_type": "llama", **MODELS[model]}), lengths)
    return float(getattr(flops, FLOPS.get(variant, "shared_prompt")))


def head_of(context: Context, variant: str, model: str) -> Figures:
    """Forward and backward of one library's head."""
    if reason := head.missing(variant):
        raise SkippedError(reason)
    if variant == "cce" and not context.on_gpu:
        raise SkippedError("compiles for minutes on a CPU")
    tokens, repeats = (64, 1) if context.small else (4096, 10)
    # A CPU's compiler takes half a minute; what it is given is tried without it.
    quick = patch.object(head, "compiled", lambda: torch.compile(head.full_logits, backend="aot_eager"))
    with quick if context.small else nullcontext():
        result = head.run_variant(variant, is_small(model, context), "bfloat16", tokens, repeats)
    return {
        "us_a_token": result["seconds"] / tokens * 1e6,
        "peak_gib": result["peak_mb"] / 1024,
        "largest_error": result["error"],
    }


def scoring_of(context: Context, variant: str, model: str, *, pairs: int) -> Figures:
    """Scores without a cache around them, beside the body and the head's product and nothing else."""
    count, repeats = (2, 1) if context.small else (pairs, 3)
    name, prompt = is_small(model, context), 40 if context.small else 512
    result = score_throughput.run_variant(variant, name, "bfloat16", prompt, count, repeats)
    return {"tokens_per_second": result["tokens"] / result["seconds"], "peak_gib": result["peak_mb"] / 1024}


def profile_of(context: Context, model: str) -> Figures:
    """The fifteen kernels that take most of one step of ours; on a CPU, operators."""
    from torch.profiler import ProfilerActivity, profile

    options = ["--models", is_small(model, context), "--dtypes", "bfloat16"]
    name, lengths = is_small(model, context), (20, 20) if context.small else (512, 512)
    parsed = train_step.arguments().parse_args(options)
    made = train_step.make_pairs(4 * parsed.pairs, MODELS[name]["vocab_size"], prompt=lengths, response=lengths)
    steps = [made[i * parsed.pairs : (i + 1) * parsed.pairs] for i in range(4)]
    step = train_step.our_step("ours", train_step.Setup(name, "bfloat16"), steps)
    for i in range(3):
        step(i)
    on_gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step(3)
        if on_gpu:
            torch.cuda.synchronize()
    return {"rows": _kernels(profiler.key_averages(), on_gpu=on_gpu)}


def _kernels(averages: Any, *, on_gpu: bool, most: int = 15) -> list[Figures]:
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    wanted = [one for one in averages if not on_gpu or "cuda" in str(one.device_type).lower()]
    total = sum(getattr(one, attribute) for one in wanted) or 1.0
    wanted.sort(key=lambda one: getattr(one, attribute), reverse=True)
    return [
        {"kernel": one.key[:100], "calls": one.count, "ms": getattr(one, attribute) / 1e3,
         "share": getattr(one, attribute) / total}
        for one in wanted[:most]
    ]  # fmt: skip
