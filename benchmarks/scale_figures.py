"""A million and a hundred million pairs worked through: `python benchmarks/scale_figures.py`.

Prints the tables of docs/scaling.md, with the functions of `tgdpo score --plan`. Models are the 8B and 70B of Llama 3
by their published sizes, as reference and as guidance. Pairs have 200 tokens of prompt and 250 of each response; their
bytes are those of a written shard of random ids and words, which compress worse than real ones.
"""

import argparse
from functools import partial

import numpy as np
import pyarrow as pa
import torch
import transformers
from common import make_pairs, table

from tgdpo.data.schema import list_column
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.hardware import GPUS, size_of
from tgdpo.stages.score.estimate import Load, Scorer, byte_text, gpu_hours, load_of
from tgdpo.stages.score.prepare import TOKENS_SCHEMA, attended

VOCABULARY = 128_256
SIZES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
GPU_HOURS_BETWEEN_FAILURES = 16_384 * 54 * 24 / 419
"""The Llama 3 report (arXiv 2407.21783, table 5): 419 unexpected interruptions in 54 days on 16,384 GPUs."""
PAIRS_PER_SHARD = 8192
CASES = {10**6: [8, 64], 10**8: [64, 512]}
"""Pairs, and the numbers of GPUs that they are worked through with."""


def scorer(name: str) -> Scorer:
    """A model that is made without memory."""
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=8, **SIZES[name])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return Scorer(name, size_of(model), torch.bfloat16)


def sample(count: int = 512) -> Load:
    """Pairs of fixed lengths."""
    pairs = make_pairs(count, VOCABULARY, prompt=(200, 200), response=(250, 250))
    words = np.random.default_rng(0).integers(97, 123, (5000, 4)).astype(np.uint8)
    spell = partial(_text, [bytes(word).decode() for word in words])
    parts = dict(zip(PairIds._fields, zip(*pairs, strict=True), strict=True))
    columns = {
        "pair_id": [f"{n:032x}" for n in range(count)],
        "source_row": list(range(count)),
        **{part: [spell(ids) for ids in column] for part, column in parts.items()},
        **{f"{part}_ids": list_column(column, pa.int32()) for part, column in parts.items()},
        "content_hash": list(range(count)),
    }
    return load_of(pa.table(columns, schema=TOKENS_SCHEMA), attended(200, 250, 250) * count, "")


def _text(words: list[str], ids: np.ndarray) -> str:
    return " ".join(words[i % len(words)] for i in ids)


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100", choices=GPUS)
    parser.add_argument("--utilisation", type=float, default=0.4)
    options = parser.parse_args()
    gpu, one = GPUS[options.gpu], sample()
    disk = [["pairs", "tokens", "shards", "cache", "work files", "a shard"]]
    time = [["pairs", "models", "GPU hours", "GPUs", "hours", "a shard takes", "weights read", "shards written",
             "failures a day", "computed again for them"]]  # fmt: skip
    for pairs, fleets in CASES.items():
        load = one.times(pairs / one.pairs)
        shards = -(-pairs // PAIRS_PER_SHARD)
        tokens = load.prompt_tokens + load.response_tokens
        disk.append([f"{pairs:,}", f"{tokens:,}", f"{shards:,}", byte_text(load.cache_bytes),
                     byte_text(load.work_bytes), byte_text(load.cache_bytes / shards)])  # fmt: skip
        for name in SIZES:
            model = scorer(name)
            hours = gpu_hours(model.flops(load), gpu, options.utilisation)  # of one pass
            held = -(-model.weight_bytes // round(0.9 * gpu.memory))  # GPUs of a worker
            for gpus in fleets:
                total = 2 * hours / gpus
                failures = gpus / GPU_HOURS_BETWEEN_FAILURES  # an hour
                again = 0.5 * (hours / shards) * failures / gpus  # half a shard's GPU hours, of the fleet's
                time.append(
                    [f"{pairs:,}", name, f"{2 * hours:,.0f}", str(gpus), f"{total:,.1f}",
                     f"{60 * hours / shards / held:.1f} min", byte_text(gpus / held * model.weight_bytes),
                     f"{byte_text(load.cache_bytes / total / 3600)}/s", f"{24 * failures:.2g}", f"{again:.1e}"]
                )  # fmt: skip
    print(f"{gpu.name}, {options.utilisation:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s\n\n{table(disk)}\n\n{table(time)}")


if __name__ == "__main__":
    main()
