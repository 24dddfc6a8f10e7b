"""Scoring one model, side by side: `python benchmarks/score_throughput.py [--models S-32k …] [--prompts 128 512]`.

Tokens per second are nominal: a pair's prompt counts once per response, as a model without prompt sharing reads it.
Every variant runs in a process of its own on the same pairs, one thread:

    padded-full   padded batches of 16 rows, full logits, log-softmax in float32
    ours          the scoring engine's forward: packed pairs, shared prompt, head in blocks on response positions
    ours-padded   ours without packing
    bare          floor: the transformer body over the packed rows and the head's matrix product, nothing else
"""

import argparse
import json

import torch
from common import DEVICE, MODELS, VariantError, in_process, machine, make_model, make_pairs, measure, peak_mb, table

from tgdpo.data.packing import batches, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.logps import ResponseLogps, to_device

VARIANTS = ["padded-full", "ours", "ours-padded", "bare"]
BATCH_TOKENS = 4096


@torch.inference_mode()
def padded_full(model: torch.nn.Module, pairs: list[PairIds]) -> float:
    """Rows of plain sequences, 16 at a time, as a simple script would do it."""
    total = 0.0
    for start in range(0, len(pairs), 8):
        batch = to_device(collate(pairs[start : start + 8], "padded"), DEVICE)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
        width = batch.input_ids.shape[1]
        total += float(logps[batch.places // width, batch.places % width - 1].sum())
    return total


@torch.inference_mode()
def ours(wrapped: ResponseLogps, pairs: list[PairIds]) -> float:
    """What the transformers engine does with a shard."""
    total = 0.0
    for indices in batches(pairs, lambda: BATCH_TOKENS, wrapped.layout):
        total += float(wrapped(to_device(collate([pairs[i] for i in indices], wrapped.layout), DEVICE)).sum())
    return total


@torch.inference_mode()
def bare(wrapped: ResponseLogps, pairs: list[PairIds]) -> float:
    """Body and head product alone, on the same rows; its value means nothing."""
    model = wrapped.model
    total = 0.0
    for indices in batches(pairs, lambda: BATCH_TOKENS, wrapped.layout):
        batch = to_device(collate([pairs[i] for i in indices], wrapped.layout), DEVICE)
        hidden = model.get_decoder()(  # type: ignore[operator]
            input_ids=batch.input_ids, position_ids=batch.position_ids, packed_row=batch.packed_row, use_cache=False
        ).last_hidden_state[0][batch.predicting]
        weight = model.get_output_embeddings().weight  # type: ignore[operator]
        for part in hidden.split(512):
            total += float((part @ weight.T)[0, 0])
    return total


def run_variant(variant: str, name: str, dtype: str, prompt: int, count: int, repeats: int) -> dict[str, float]:
    """One variant in this process."""
    spread = (prompt - prompt // 4, prompt + prompt // 4)
    pairs = make_pairs(count, MODELS[name]["vocab_size"], prompt=spread, response=(50, 250))
    before = peak_mb()
    model = make_model(name, dtype).eval().requires_grad_(False)
    if variant == "padded-full":
        result = measure(lambda _: padded_full(model, pairs), repeats)
    else:
        wrapped = ResponseLogps(model, "padded" if variant == "ours-padded" else None)
        work = bare if variant == "bare" else ours
        result = measure(lambda _: work(wrapped, pairs), repeats)
    return result | {"peak_mb": result["peak_mb"] - before, "tokens": sum(pair.tokens for pair in pairs)}


def main() -> None:
    """Prints one table per model, dtype and prompt length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["S-32k"], choices=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512], help="mean prompt lengths in tokens")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="timed passes, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        one = (options.models[0], options.dtypes[0], options.prompts[0])
        print(json.dumps(run_variant(options.variant, *one, options.pairs, options.repeats)))
        return
    print(machine(), f"{options.threads} thread(s), medians of {options.repeats} passes", sep=", ")
    for model in options.models:
        for dtype in options.dtypes:
            for prompt in options.prompts:
                print(f"\n{model} {dtype}, prompt {prompt}, {options.pairs} pairs\n")
                print(compare(model, dtype, prompt, options))


def compare(model: str, dtype: str, prompt: int, options: argparse.Namespace) -> str:
    """A row per variant, relative to the first."""
    rows = [["variant", "tokens/s", "times as fast", "peak MB"]]
    first = 0.0
    for variant in options.variants:
        arguments = ["--models", model, "--dtypes", dtype, "--prompts", prompt]
        arguments += ["--pairs", options.pairs, "--repeats", options.repeats]
        try:
            result = in_process(__file__, variant, [str(argument) for argument in arguments], options.threads)
        except VariantError as error:
            rows.append([variant, str(error), "", ""])
            continue
        speed = result["tokens"] / result["seconds"]
        first = first or speed
        rows.append([variant, f"{speed:,.0f}", f"{speed / first:.2f}", f"{result['peak_mb']:,.0f}"])
    return table(rows)


if __name__ == "__main__":
    main()
