"""Stage D: scoring 8B, memory between passes, growing budgets, Ray, checkpoints, and a model of windows and caps."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import engines
import torch
import transformers
from common import DEVICE, MODELS, make_model
from support import STANDARD_ROWS, make_models, write_rows
from torch._dynamo.utils import counters

from tgdpo.stages.budget import TokenBudget
from tgdpo.stages.hardware import GIB
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.transformers import TransformersEngine
from tgdpo.stages.train import run as train_module
from tgdpo.stages.train.loop import TrainRun

from .item import Context, Figures, Item, ItemError
from .training import (
    LENGTHS,
    SMALL_LENGTHS,
    Job,
    RandomModel,
    Trace,
    folder_size,
    is_small,
    measured,
    model_of,
    prepared,
    traced,
)
from .variants import scoring_of

GEMMA = {
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
    "sliding_window": 512, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
"""Gemma-2-2B, with a window that its rows are longer than."""
SMALL_GEMMA = GEMMA | {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 10,
}  # fmt: skip


def budget(context: Context) -> Figures:
    """Scores with a budget that grows: each pass' tokens, what it took, and what the card gets back at the end."""
    name, rows = is_small("Llama-3-1B", context), list[Figures]()
    folder = context.folder / "model"
    make_model(name, "bfloat16").save_pretrained(folder)
    _give_back()
    lengths = SMALL_LENGTHS if context.small else LENGTHS
    pairs = engines.make_pairs(
        40 if context.small else 2048,
        MODELS[name]["vocab_size"],
        prompt=(lengths.prompt,) * 2,
        response=(1, lengths[1]),
    )
    spent = TokenBudget.spent

    def recorded(budget: TokenBudget, tokens: int) -> Any:
        rows.append({"pass": len(rows) + 1, "tokens": tokens, "limit": budget.limit(), "held_gib": _held()})
        return spent(budget, tokens)

    source = resolve(str(folder), "--model")
    spec = EngineSpec(source=source, dtype=torch.bfloat16, device=DEVICE, batch_tokens=None, longest=1024)
    before, start = _used(), time.perf_counter()
    engine = TransformersEngine(spec)
    loaded = time.perf_counter()
    with patch.object(TokenBudget, "spent", recorded):
        engine.score(pairs, lambda *_: None)
    scored = time.perf_counter()
    engine.close()
    return {
        "seconds_to_load": loaded - start,
        "tokens_per_second": sum(pair.tokens for pair in pairs) / (scored - loaded),
        "passes": len(rows),
        "largest_pass": max(row["tokens"] for row in rows),
        "used_before_gib": before,
        "used_after_gib": _used(),
        "rows": rows[:40],
    }


def _give_back() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _held() -> float:
    return torch.cuda.memory_reserved() / GIB if DEVICE.type == "cuda" else 0.0


def _used() -> float:
    """Of the card, by whomever."""
    if DEVICE.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def growing_training(context: Context) -> Figures:
    """Trains with a budget that grows."""
    trace = Trace()
    job = Job(model=is_small("Llama-3-1B", context), pairs=4 if context.small else 128, warm=1, steps=4)
    model = model_of(job)
    config, tokenizer = prepared(context, job, model.config, SMALL_LENGTHS if context.small else LENGTHS)
    grown = config.model_copy(update={"batch_tokens": None})
    with traced(trace, lambda _: nullcontext()):
        train_module.train(grown, start=RandomModel.of(model), tokenizer=tokenizer)
    rows = [{"pass": number, "tokens": tokens} for number, tokens in enumerate(trace.passes, 1)]
    return {
        "seconds_first_step": trace.seconds[0],
        "seconds_last_step": trace.seconds[-1],
        "largest_pass": max(trace.passes),
        "rows": rows[:40],
    }


def conformance(context: Context) -> Figures:
    """The engines against the naive float32 forward, and their memory before, loaded and closed."""
    names = ["transformers", *(["vllm"] if engines.installed_version() else [])]
    rows = engines.check(is_small("Llama-3-1B", context), names, ["float32", "bfloat16"], DEVICE, 4)
    return {"rows": rows}


def ray(context: Context) -> Figures:
    """`tgdpo score --launcher ray` with one worker, text to cache."""
    models = make_models(context.folder / "models", chat=False)
    rows = write_rows(context.folder / "pairs.jsonl", STANDARD_ROWS)
    command = [sys.executable, "-m", "tgdpo", "score", "--dataset", rows, "--reference", models.reference, "--guidance",
               models.guidance, "--output", context.folder / "cache", "--launcher", "ray", "--workers", 1]  # fmt: skip
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, encoding="utf-8", errors="replace", env=environment
    )
    if done.returncode:
        raise ItemError(f"exit code {done.returncode}", {"detail": done.stderr[-1500:]})
    return {"seconds_in_all": time.perf_counter() - start}


def checkpoint(context: Context) -> Figures:
    """A run stopped after a checkpoint and resumed from it."""
    job = Job(model=is_small("Llama-3-1B", context), pairs=4, warm=0, steps=4)
    model = model_of(job)
    config, tokenizer = prepared(context, job, model.config, SMALL_LENGTHS if context.small else LENGTHS)
    config = config.model_copy(update={"save_steps": 2})
    saving: list[float] = []
    save, trace = TrainRun._save_checkpoint, Trace()

    def timed(run: TrainRun) -> None:
        start = time.perf_counter()
        save(run)
        saving.append(time.perf_counter() - start)
        raise KeyboardInterrupt

    with patch.object(TrainRun, "_save_checkpoint", timed), traced(trace, lambda _: nullcontext()):
        try:
            train_module.train(config, start=RandomModel.of(model), tokenizer=tokenizer)
        except KeyboardInterrupt:
            del model
    size = folder_size(Path(config.output) / "checkpoints")
    resumed, start = Trace(), time.perf_counter()
    with traced(resumed, lambda _: nullcontext()):
        train_module.train(config, start=RandomModel.of(model_of(job)), tokenizer=tokenizer)
    if len(resumed.losses) != 2:
        raise ItemError(f"resumed with {len(resumed.losses)} steps to go instead of 2", {})
    seconds = time.perf_counter() - start - sum(resumed.seconds)
    return {"checkpoint_gib": size, "seconds_to_save": saving[0], "seconds_to_resume": seconds}


def windows_and_caps(context: Context) -> Figures:
    """Trains and evaluates a 2B Gemma 2, and counts the graphs that its attention is compiled into."""
    counters.clear()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    config = transformers.Gemma2Config(**(SMALL_GEMMA if context.small else GEMMA))
    options = {"eval_fraction": 0.25, "eval_steps": 2, "gradient_checkpointing": True}
    figures = measured(context, Job(model=config, pairs=16, warm=1, steps=3, options=options))
    return figures | {"graphs": counters["stats"]["unique_graphs"]}


SCORING, MEMORY, RUNS = "Scoring, Llama-3-8B bfloat16", "Memory of passes, Llama-3-1B", "Whole runs"

ITEMS = [
    *(
        Item(f"8b-scoring-{variant}", partial(scoring_of, variant=variant, model="Llama-3-8B", pairs=64), 90, SCORING,
             gib=gib)
        for variant, gib in (("ours", 20), ("bare", 20), ("padded-full", 40))
    ),
    Item("gemma-2-2b", windows_and_caps, 150, RUNS, gib=45),
    Item("growing-scores", budget, 90, MEMORY, disk_gib=4),
    Item("growing-training", growing_training, 90, MEMORY, gib=25),
    Item("engines", conformance, 120, "Engines against the naive float32 forward", disk_gib=8),
    Item("checkpoint", checkpoint, 120, RUNS, gib=25, disk_gib=20),
    Item("ray", ray, 150, RUNS, needs=("ray",)),
]  # fmt: skip
