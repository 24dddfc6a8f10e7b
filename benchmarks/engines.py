"""The scoring engines, side by side: `python benchmarks/engines.py [--models M-32k …] [--prompts 128 512]`.

Every variant runs in a process of its own on the same pairs. Needs vllm beside tgdpo (`make test-vllm` makes such an
environment, .venv-vllm, for CPUs):

    vllm-plain    vLLM's own LLM.generate with prompt_logprobs=0 and flat results, all sequences in one call
    vllm          vLLM through `--engine vllm`, in the process of its own that users get
    transformers  `--engine transformers`

`--overhead` measures what our Python adds to vLLM's own time, `--rounding` what bfloat16 does to the scores of two
models and to the rewards between them. `--check [MODEL …]` compares the engines with the naive float32 forward and
prints the memory before, during and after each engine; it runs on a GPU where there is one.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from common import MODELS, VariantError, in_process, machine, make_model, make_pairs, table

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.console import quiet_libraries
from tgdpo.stages.models import pick_device, resolve
from tgdpo.stages.score.engines import Engine, EngineSpec, engine_class
from tgdpo.stages.score.engines.dummy import DummyEngine
from tgdpo.stages.score.engines.process import ProcessEngine
from tgdpo.stages.score.engines.vllm import VllmEngine, installed_version
from tgdpo.stages.score.engines.vllm_worker import InProcessVllm

VARIANTS = ["vllm-plain", "vllm", "transformers"]
BATCH_TOKENS = 4096
OVERHEAD_MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "num_key_value_heads": 1, "vocab_size": 512}  # fmt: skip


def spec_of(folder: Path, dtype: str, device: torch.device, pairs: Sequence[PairIds]) -> EngineSpec:
    """The model in `folder` for these pairs."""
    return EngineSpec(
        source=resolve(str(folder), "--model"),
        dtype=getattr(torch, dtype),
        device=device,
        batch_tokens=BATCH_TOKENS,
        longest=max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs),
    )


# Throughput


def measure(work: Callable[[], float], repeats: int) -> dict[str, float]:
    """Runs `work` once to warm up and `repeats` times more; median wall seconds, and CPU seconds of a pass over all
    processes of ours: on one thread these are what an idle machine would need."""
    value = work()
    seconds, before = [], _cpu_seconds()
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "cpu": (_cpu_seconds() - before) / repeats, "last": value}


def _cpu_seconds() -> float:
    process = psutil.Process()
    times = [p.cpu_times() for p in [process, *process.children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def plain(spec: EngineSpec, pairs: Sequence[PairIds], repeats: int) -> dict[str, float]:
    """vLLM without us, with the settings of our engine but for the prefix cache, which it does not read by itself."""
    os.environ.update(VllmEngine.environment(spec))
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=str(spec.source.folder), dtype=str(spec.dtype).removeprefix("torch."), enforce_eager=True, seed=0,
        enable_prefix_caching=False, max_model_len=(spec.longest or 0) + 1, max_num_batched_tokens=2048,
        max_num_seqs=256, disable_log_stats=True, skip_tokenizer_init=True,
    )  # fmt: skip
    parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True)

    def work() -> float:
        ids = [np.concatenate([pair.prompt, part]).tolist() for pair in pairs for part in pair[1:]]
        prompts = [TokensPrompt(prompt_token_ids=row) for row in ids]
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        starts = [len(pair.prompt) - 1 for pair in pairs for _ in range(2)]
        return float(sum(sum(o.prompt_logprobs.logprobs[s:]) for o, s in zip(outputs, starts, strict=True)))

    return measure(work, repeats)


def through_us(name: str, spec: EngineSpec, pairs: Sequence[PairIds], repeats: int) -> dict[str, float]:
    """An engine as `tgdpo score` runs it."""
    engine = engine_class(name)(spec)

    def work() -> float:
        scores = engine.score(pairs, lambda *_: None)
        return float(sum(side.sum(dtype=np.float64) for pair in scores for side in pair))

    result = measure(work, repeats)
    engine.close()
    return result


def run_variant(variant: str, name: str, dtype: str, prompt: int, count: int, repeats: int) -> dict[str, float]:
    """One variant in this process."""
    spread = (prompt - prompt // 4, prompt + prompt // 4)
    pairs = make_pairs(count, MODELS[name]["vocab_size"], prompt=spread, response=(50, 250))
    with tempfile.TemporaryDirectory() as folder:
        make_model(name, dtype).save_pretrained(folder)
        spec = spec_of(Path(folder), dtype, pick_device("auto"), pairs)
        result = plain(spec, pairs, repeats) if variant == "vllm-plain" else through_us(variant, spec, pairs, repeats)
    return result | {"tokens": sum(pair.tokens for pair in pairs)}


def compare(model: str, dtype: str, prompt: int, options: argparse.Namespace) -> str:
    """A row per variant, relative to the first."""
    rows = [["variant", "tokens/s", "tokens per CPU second", "times as many", "sum of log-probabilities"]]
    first = 0.0
    for variant in options.variants:
        arguments = ["--models", model, "--dtypes", dtype, "--prompts", prompt]
        arguments += ["--pairs", options.pairs, "--repeats", options.repeats]
        try:
            result = in_process(__file__, variant, [str(argument) for argument in arguments], options.threads)
        except VariantError as error:
            rows.append([variant, str(error), "", "", ""])
            continue
        per_cpu = result["tokens"] / result["cpu"]
        first = first or per_cpu
        speed = result["tokens"] / result["seconds"]
        rows.append([variant, f"{speed:,.0f}", f"{per_cpu:,.0f}", f"{per_cpu / first:.2f}", f"{result['last']:,.1f}"])
    return table(rows)


# What our Python adds


class _DummyInProcess(ProcessEngine):
    """The pipe alone."""

    inner = f"{DummyEngine.__module__}.{DummyEngine.__name__}"

    @staticmethod
    def versions() -> dict[str, str]:
        """See `Engine.versions`."""
        return {}


def overhead(sequences: int) -> str:
    """Time in our code and in vLLM's own; the model is very small, which makes our share as large as it gets."""
    pairs = make_pairs(sequences // 2, OVERHEAD_MODEL["vocab_size"], prompt=(64, 128), response=(50, 250))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(max_position_embeddings=4096, **OVERHEAD_MODEL)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        spec = spec_of(Path(folder), "float32", pick_device("auto"), pairs)
        pipe: Engine = _DummyInProcess(spec)
        piped = _seconds(pipe, pairs)
        pipe.close()
        dummy = _seconds(DummyEngine(spec), pairs)
        os.environ.update(VllmEngine.environment(spec))
        engine = InProcessVllm(spec)
        in_vllm = _timed_calls(engine._engine, ["add_request", "step"])
        total = _seconds(engine, pairs)
    theirs = sum(in_vllm)
    rows = [
        ["", "seconds", "of vLLM's own time"],
        [f"vLLM's own time, {sequences:,} sequences", f"{theirs:.2f}", "100 %"],
        ["our requests and results", f"{total - theirs:.2f}", f"{100 * (total - theirs) / theirs:.1f} %"],
        ["our pipe to the process", f"{piped - dummy:.2f}", f"{100 * (piped - dummy) / theirs:.1f} %"],
    ]
    return table(rows)


def _seconds(engine: Engine, pairs: Sequence[PairIds]) -> float:
    start = time.perf_counter()
    engine.score(pairs, lambda *_: None)
    return time.perf_counter() - start


def _timed_calls(thing: Any, names: Sequence[str]) -> list[float]:
    """Wraps methods so that the list returned gathers the seconds of their calls."""
    gathered: list[float] = []

    def timed(method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                gathered.append(time.perf_counter() - start)

        return call

    for name in names:
        setattr(thing, name, timed(getattr(thing, name)))
    return gathered


# Conformance and memory


def check(
    model: str, engines: Sequence[str], dtypes: Sequence[str], device: torch.device, count: int = 16
) -> list[dict[str, Any]]:
    """Compares engines with the naive float32 forward of `model`; a row each, with the memory it takes and gives back.

    Args:
        model: a folder or hub name, or one of `MODELS`.
        engines: names as of `--engine`.
        dtypes: of the weights while the engine runs; the naive forward is in float32 always.
        device: where all of it runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        if model in MODELS:
            make_model(model, "bfloat16").save_pretrained(folder)
            model = folder
        source = resolve(model, "--check")
        pairs = make_pairs(count, source.vocabulary_size or 512, prompt=(1, 300), response=(1, 250))
        pairs.append(pairs[0])
        spec = spec_of(source.folder, "float32", device, pairs)
        expected = naive(source.folder, pairs, device)
        return [
            {"engine": name, "dtype": dtype}
            | _check_one(name, replace(spec, dtype=getattr(torch, dtype)), pairs, expected)
            for name in engines
            for dtype in dtypes
        ]


def naive(folder: Path, pairs: Sequence[PairIds], device: torch.device) -> np.ndarray:
    """log pi of all response tokens in float32, one sequence at a time through full logits; the model is gone after."""
    # The checkpoint's values, computed in float32.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows = []
    for prompt, *responses in pairs:
        for response in responses:
            ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None].to(device)
            with torch.inference_mode():
                logps = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
            rows.append(logps[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)[len(prompt) - 1 :].cpu().numpy())
    del model, logps, ids
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return np.concatenate(rows)


def _check_one(name: str, spec: EngineSpec, pairs: Sequence[PairIds], expected: np.ndarray) -> dict[str, Any]:
    used = [_used_gb(spec.device)]
    engine = engine_class(name)(spec)
    scores = engine.score(pairs, lambda *_: None)
    used.append(_used_gb(spec.device))
    engine.close()
    used.append(_used_gb(spec.device))
    gap = np.abs(np.concatenate([side for pair in scores for side in pair]) - expected)
    return {
        "mean difference": f"{gap.mean():.2g}",
        "largest": f"{gap.max():.2g}",
        "memory before, loaded, closed (GB)": ", ".join(f"{gb:.2f}" for gb in used),
    }


def _used_gb(device: torch.device) -> float:
    """Memory in use: of the GPU by whomever, or of this process and its children."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 1e9
    process = psutil.Process()
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 1e9


# Rounding

ROUNDING_MODEL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "vocab_size": 400, "initializer_range": 0.08}  # fmt: skip


def rounding(noise: float, engines: Sequence[str], count: int = 80) -> str:
    """Errors of bfloat16 against the same weights in float32, of two models and of the rewards between them.

    Args:
        noise: how far guidance is from the reference, as a share of each weight's spread.
        engines: names as of `--engine`; a row each, and one for guidance by the last and the reference by the first.
        count: pairs.
    """
    pairs = make_pairs(count, ROUNDING_MODEL["vocab_size"], prompt=(10, 40), response=(20, 60))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folders = _two_models(Path(name), noise)
        specs = [spec_of(folder, "bfloat16", pick_device("auto"), pairs) for folder in folders]
        exact = [_flat("transformers", replace(spec, dtype=torch.float32), pairs) for spec in specs]
        found = {engine: [_flat(engine, spec, pairs) for spec in specs] for engine in engines}
    found[f"guidance {engines[-1]}, reference {engines[0]}"] = [found[engines[0]][0], found[engines[-1]][1]]
    starts = np.cumsum([0, *(len(side) for pair in pairs for side in pair[1:])][:-1])
    rewards = exact[1] - exact[0]
    rows = [
        ["bfloat16 by", "reference", "guidance", "rewards", "largest", "signed", "correlation", "sum of a response"]
    ]
    for name, scores in found.items():
        errors = [ours - theirs for ours, theirs in zip(scores, exact, strict=True)]
        of_rewards = errors[1] - errors[0]
        means = [f"{np.abs(error).mean():.3f}" for error in (*errors, of_rewards)]
        rows.append(
            [name, *means, f"{np.abs(of_rewards).max():.2f}", f"{of_rewards.mean():.4f}",
             f"{np.corrcoef(*errors)[0, 1]:.2f}", f"{np.abs(np.add.reduceat(of_rewards, starts)).mean():.2f}"]
        )  # fmt: skip
    own = np.abs(rewards).mean(), np.abs(np.add.reduceat(rewards, starts)).mean()
    return (
        f"{table(rows)}\n\nThe rewards' own size: {own[0]:.3f}, of a response's sum {own[1]:.2f}; {len(rewards)} tokens"
    )


def _two_models(folder: Path, noise: float) -> list[Path]:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(max_position_embeddings=256, **ROUNDING_MODEL))
    model = model.bfloat16()
    model.save_pretrained(folder / "reference")
    for parameter in model.parameters():
        weights = parameter.data.float()
        parameter.data = (weights + noise * weights.std() * torch.randn_like(weights)).bfloat16()
    model.save_pretrained(folder / "guidance")
    return [folder / "reference", folder / "guidance"]


def _flat(name: str, spec: EngineSpec, pairs: Sequence[PairIds]) -> np.ndarray:
    engine = engine_class(name)(spec)
    scores = engine.score(pairs, lambda *_: None)
    engine.close()
    return np.concatenate([side for pair in scores for side in pair]).astype(np.float64)


def main() -> None:
    """Prints one table per model, dtype and prompt length, or what was asked for instead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["M-32k", "M-128k"], choices=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512], help="mean prompt lengths in tokens")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="timed passes, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--overhead", nargs="?", type=int, const=10_000, metavar="SEQUENCES")
    parser.add_argument("--check", nargs="*", metavar="MODEL", help="S-32k where none is named")
    parser.add_argument("--rounding", nargs="*", type=float, metavar="NOISE", help="0.05 and 0.01 where none is given")
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"], help="of --check and --rounding")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        one = (options.models[0], options.dtypes[0], options.prompts[0])
        print(json.dumps(run_variant(options.variant, *one, options.pairs, options.repeats)))
        return
    quiet_libraries()
    print(machine(), f"vllm {installed_version()}, {options.threads} thread(s)", sep=", ")
    if options.overhead:
        print(f"\n{overhead(options.overhead)}")
    elif options.rounding is not None:
        for noise in options.rounding or [0.05, 0.01]:
            print(f"\nguidance {noise:.0%} from the reference, mean |error| per token in nats\n")
            print(rounding(noise, options.engines), flush=True)
    elif options.check is not None:
        device = pick_device("auto")
        for model in options.check or ["S-32k"]:
            print(f"\n{model} on {device}\n")
            rows = check(model, options.engines, options.dtypes, device)
            print(table([list(rows[0]), *(list(row.values()) for row in rows)]))
    else:
        for model in options.models:
            for dtype in options.dtypes:
                for prompt in options.prompts:
                    print(f"\n{model} {dtype}, prompt {prompt}, {options.pairs} pairs, {options.repeats} passes\n")
                    print(compare(model, dtype, prompt, options), flush=True)


if __name__ == "__main__":
    main()
