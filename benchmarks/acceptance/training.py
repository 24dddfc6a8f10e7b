"""The trainer itself on random weights and made pairs, its steps timed: what `tgdpo train` does, less the saving."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from caches import write_cache
from common import DEVICE, MODELS, make_model, make_pairs, peak_mb
from floor import Lengths, pair_flops
from support import make_tokenizer

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.budget import TokenBudget
from tgdpo.stages.hardware import GIB, GPUS, size_of
from tgdpo.stages.train import run as train_module
from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.loaded import LoadedModel
from tgdpo.stages.train.loop import TrainRun
from tgdpo.stages.train.plan import Speed, make_plan

from .card import known_gpu, shares, synchronize
from .item import Context, Figures, ItemError

LENGTHS = Lengths(512, 512, 512)
SMALL_LENGTHS = Lengths(12, 20, 9)


class RandomModel(LoadedModel):
    """Weights made on the card; there is no file whose hash could say which."""

    content_hash = "random"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run to be measured.

    Args:
        model: one of common.MODELS, of which a small run takes "tiny"; or a configuration of transformers.
        dtype: of the weights.
        pairs: of a step.
        warm: steps before the timed ones.
        options: of `tgdpo train`.
    """

    model: str | Any
    dtype: str = "float32"
    pairs: int = 32
    warm: int = 3
    steps: int = 10
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trace:
    """What a run did, step by step and pass by pass."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    """Tokens of each, backward ones only."""
    attention: str = ""
    layout: str = ""


def measured(context: Context, job: Job, around: Callable[[int], Any] = lambda _: nullcontext()) -> Figures:
    """Trains and returns speed, peak and what the plan says.

    Args:
        around: a context manager for each step, by its number.
    """
    if context.small:
        job = Job(model="tiny" if isinstance(job.model, str) else job.model, dtype=job.dtype, pairs=4, warm=1, steps=2,
                  options=job.options)  # fmt: skip
    lengths = SMALL_LENGTHS if context.small else LENGTHS
    model = model_of(job)
    size = size_of(model)
    config, tokenizer = prepared(context, job, model.config, lengths)
    trace = Trace()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with traced(trace, around):
        train_module.train(config, start=RandomModel.of(model), tokenizer=tokenizer)
    seconds = statistics.median(trace.seconds[job.warm :])
    flops = pair_flops(size, lengths).shared_prompt * job.pairs
    if config.lora_rank:
        flops *= 2 / 3  # no gradients of weights but the adapter's
    packed = sum(lengths) * job.pairs
    figures = {
        "seconds_a_step": seconds,
        "pairs": job.pairs,
        "tokens_per_second": (packed + lengths.prompt * job.pairs) / seconds,
        "packed_tokens_per_second": packed / seconds,
        "flops_a_step": flops,
        "peak_gib": peak_mb() / 1024,
        **shares(context, flops / seconds),
        "passes_a_step": len(trace.passes) / len(trace.seconds),
        "attention": trace.attention,
        "first_loss": trace.losses[0],
        "last_loss": trace.losses[-1],
    }
    try:
        return figures | planned(context, config)
    except Exception as error:  # the run's figures are not lost for it
        raise ItemError(f"--plan fails: {type(error).__name__}: {error}", figures) from error


def model_of(job: Job) -> Any:
    """Random weights on the device."""
    if isinstance(job.model, str):
        return make_model(job.model, job.dtype)
    torch.manual_seed(0)
    with DEVICE:
        return transformers.AutoModelForCausalLM.from_config(job.model, dtype=getattr(torch, job.dtype))


def prepared(context: Context, job: Job, model_config: Any, lengths: Lengths) -> tuple[TrainConfig, Any]:
    """The run's options and tokenizer; its cache of random pairs and the model's configuration lie in the folder."""
    tokenizer = make_tokenizer(chat=False)
    made = make_pairs(2 * job.pairs, model_config.vocab_size, prompt=(lengths.prompt,) * 2,
                      response=(lengths.chosen, lengths.chosen))  # fmt: skip
    pairs = [PairIds(p, c, r[: lengths.rejected]) for p, c, r in made]
    # As the policy starts, which is near even: the first loss is then near log 2.
    ref_logp = -math.log(model_config.vocab_size)
    rows = [row_of(number, pair, ref_logp) for number, pair in enumerate(pairs)]
    write_cache(context.folder / "cache", rows, tokenizer)
    model_config.save_pretrained(context.folder / "model")
    settings: dict[str, Any] = {
        "cache": str(context.folder / "cache"), "model": str(context.folder / "model"),
        "output": str(context.folder / "run"), "batch_size": job.pairs, "max_steps": job.warm + job.steps,
        "logging_steps": 1, "save_steps": 0, "batch_tokens": 8192,
    }  # fmt: skip
    return TrainConfig(**settings | job.options), tokenizer


def row_of(number: int, pair: PairIds, ref_logp: float) -> dict[str, Any]:
    """A row of a cache; scores do not change what a step costs."""
    row: dict[str, Any] = {
        "pair_id": f"{number:032x}",
        "source_row": number,
        "prompt": f"prompt {number}",
        "prompt_ids": pair.prompt,
    }
    for side in ("chosen", "rejected"):
        ids = getattr(pair, side)
        row |= {side: "", f"{side}_ids": ids, f"{side}_ref_logps": [ref_logp] * len(ids)}
        row[f"{side}_rewards"] = [0.1 if side == "chosen" else -0.1] * len(ids)
    return row


def planned(context: Context, config: TrainConfig) -> Figures:
    """What `tgdpo train --plan` says of the peak on this card; nothing for a card that it does not know."""
    gpu = known_gpu(context.card.get("card", ""))
    if gpu is None and context.on_gpu:
        return {}
    plan = make_plan(config, Speed(gpu=gpu.name if gpu else next(iter(GPUS))))
    return {"planned_gib": plan.total(checkpointing=config.gradient_checkpointing) / GIB}


@contextmanager
def traced(trace: Trace, around: Callable[[int], Any]) -> Iterator[None]:
    """Trains with runs that time their steps and publish nothing: an 8B policy would take minutes and 32 GB."""
    spent = TokenBudget.spent

    class MeasuredRun(TrainRun):
        """See above."""

        def _train_step(self, *arguments: Any) -> None:
            causal_lm = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
            trace.attention, trace.layout = causal_lm.config._attn_implementation, self.runner._layout
            synchronize(DEVICE)
            start = time.perf_counter()
            with around(self.step):
                super()._train_step(*arguments)
            synchronize(DEVICE)
            trace.seconds.append(time.perf_counter() - start)
            trace.losses.append(self.last_record["loss"])

        def _publish(self) -> None:
            pass

    def recorded(budget: TokenBudget, tokens: int) -> Any:
        trace.passes.append(tokens)
        return spent(budget, tokens)

    with patch.object(train_module, "TrainRun", MeasuredRun), patch.object(TokenBudget, "spent", recorded):
        yield


def is_small(name: str, context: Context) -> str:
    """The model of that name, or the tiny one."""
    assert name in MODELS
    return "tiny" if context.small else name


def folder_size(folder: Path) -> float:
    """GiB of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GIB
