"""The trainer's loader alone, beside a training step: `python benchmarks/loader.py [--pairs 10000 1000000]`.

    loading  an epoch read in its order, split into passes, packed and made tensors: tokens a second, peak of the data
    start    seconds from the command `tgdpo train` to the end of the first step

Every figure is of a process of its own, one thread. Tokens are those of packed rows, in both columns. The caches are
made on the spot: one shard of 8,192 random pairs under many names (hard links), so that a million pairs need no more
disk than one shard; every name is opened, hashed and read as a shard of its own. The policy of `start` is a Llama of
one layer and width 32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import torch
import transformers
from common import MODELS, in_process, machine, make_pairs, table

from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Counts, Manifest, Shard
from tgdpo.data.packing import collate
from tgdpo.data.schema import (
    ROW_GROUP_PAIRS,
    SHARD_SCHEMA,
    list_column,
    shard_metadata,
    shard_name,
    write_parquet,
)
from tgdpo.data.tokenization import PairIds, vocabulary_hash
from tgdpo.stages.budget import DEFAULT_TOKENS
from tgdpo.stages.logps import to_device
from tgdpo.stages.train.order import PairOrder
from tgdpo.stages.train.split import split

TRAIN_STEP = str(Path(__file__).with_name("train_step.py"))
BATCH_SIZE = 128
VOCABULARY = 400
SHARD_PAIRS = 8192
FINGERPRINT = dict.fromkeys(("dataset_sha256", "reference_sha256", "guidance_sha256"), "random")
LENGTHS: dict[str, tuple[int, int]] = {"prompt": (60, 140), "response": (50, 250)}


def make_policy(folder: Path) -> Any:
    """A one-layer Llama and a tokenizer; returns the tokenizer."""
    words = {f"w{n}": n for n in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_cache(folder: Path, pairs: int, tokenizer: Any) -> None:
    """A cache of `pairs` pairs, rounded up to whole shards."""
    folder.mkdir()
    made = make_pairs(SHARD_PAIRS, VOCABULARY, **LENGTHS)
    count = -(-pairs // SHARD_PAIRS)
    first = folder / shard_name(0, count)
    write_parquet(shard_table(made), first)
    shards = []
    for n in range(count):
        path = folder / shard_name(n, count)
        if n:
            os.link(first, path)
        shards.append(
            Shard(
                name=path.name,
                rows=SHARD_PAIRS,
                prompt_tokens=sum(len(pair.prompt) for pair in made),
                chosen_tokens=sum(len(pair.chosen) for pair in made),
                rejected_tokens=sum(len(pair.rejected) for pair in made),
                bytes=path.stat().st_size,
                sha256=shards[0].sha256 if shards else sha256_file(path),
            )
        )
    rows = count * SHARD_PAIRS
    Manifest(
        created="2026-01-01T00:00:00Z",
        reward_kind="log-ratio",
        dataset="random",
        reference="random",
        guidance="random",
        tokenizer="random",
        tokenizer_vocabulary_sha256=vocabulary_hash(tokenizer),
        conversational=False,
        row_group_pairs=ROW_GROUP_PAIRS,
        settings={},
        fingerprint=FINGERPRINT,
        counts=Counts(read=rows, scored=rows, set_aside=0, duplicates=0, truncated=0),
        set_aside_reasons={},
        shards=shards,
    ).write(folder)


def shard_table(pairs: list[PairIds]) -> pa.Table:
    """Random scores beside the pairs' ids; text of about the length that tokens have."""
    rng = np.random.default_rng(0)
    text = {side: ["word " * len(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected")}
    ids = {f"{side}_ids": list_column([getattr(pair, side) for pair in pairs], pa.int32()) for side in text}
    scores = {
        f"{side}_{kind}": list_column(
            [rng.normal(size=len(getattr(pair, side))).astype(np.float32) for pair in pairs], pa.float32()
        )
        for side in ("chosen", "rejected")
        for kind in ("ref_logps", "rewards")
    }
    columns = (
        {"pair_id": [f"{n:064x}" for n in range(len(pairs))], "source_row": range(len(pairs))} | text | ids | scores
    )
    schema = SHARD_SCHEMA.with_metadata(shard_metadata(FINGERPRINT))
    return pa.table({field.name: columns[field.name] for field in schema}, schema=schema)


def load(cache: Path) -> dict[str, float]:
    """Loads an epoch: packed tokens a second, and the peak of the decoded data in MB."""
    start, tokens = time.perf_counter(), 0
    pairs = PairOrder(RewardCache(cache), seed=0, eval_fraction=0).epoch(0)
    while batch := [pair.ids for pair in islice(pairs, BATCH_SIZE)]:
        (passes,) = split(batch, processes=1, batch_tokens=DEFAULT_TOKENS, layout="packed")
        for one in passes:
            row = to_device(collate([batch[i] for i in one.pairs], "packed"), torch.device("cpu"))
            tokens += row.input_ids.numel()
    seconds = time.perf_counter() - start
    return {"tokens": tokens / seconds, "data_mb": pa.default_memory_pool().max_memory() / 2**20}


def seconds_to_first_step(work: Path, cache: Path) -> float:
    """Runs two steps of `tgdpo train`."""
    output = work / f"run-{cache.name}"
    command = [sys.executable, "-m", "tgdpo", "train", "--cache", cache, "--model", work / "policy", "--output", output,
               "--device", "cpu", "--save-steps", 0, "--max-steps", 2, "--batch-size", 32]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    metrics = output / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        if process.poll():
            sys.exit(f"tgdpo train failed on {cache}")
        time.sleep(0.01)
    first = time.perf_counter() - start
    process.wait()
    return first


def training_tokens(model: str, dtype: str) -> float:
    """Packed tokens a second of one model's training step."""
    result = in_process(TRAIN_STEP, "ours", ["--models", model, "--dtypes", dtype, "--steps", "3"], threads=1)
    return result["packed_tokens"] / result["seconds"]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--model", default="S-32k", choices=MODELS, help="whose step to compare with")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Prints both tables."""
    options = arguments().parse_args()
    if options.variant:
        print(json.dumps(load(Path(options.variant))))
        return
    print(machine() + ", 1 thread\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = make_policy(work / "policy")
        training = training_tokens(options.model, options.dtype)
        loading = [["pairs", "MB of shards", "tokens/s", f"of the {training:,.0f} tokens/s that training "
                    f"{options.model} {options.dtype} takes", "peak MB of decoded data"]]  # fmt: skip
        start = [["pairs", "MB of shards", "s to the end of the first step of 32 pairs"]]
        for pairs in options.pairs:
            cache = work / str(pairs)
            make_cache(cache, pairs, tokenizer)
            about = [f"{len(RewardCache(cache)):,}", f"{sum(f.stat().st_size for f in cache.iterdir()) / 2**20:,.0f}"]
            speed = in_process(__file__, str(cache), [], threads=1)
            times = f"{speed['tokens'] / training:.0f} times"
            loading.append([*about, f"{speed['tokens']:,.0f}", times, f"{speed['data_mb']:,.1f}"])
            start.append([*about, f"{seconds_to_first_step(work, cache):.1f}"])
        print(f"loading\n\n{table(loading)}\n\nstart\n\n{table(start)}")


if __name__ == "__main__":
    main()
