"""Training from caches of growing size: `python benchmarks/train_stream.py [--pairs 10000 100000]`.

    start    seconds from the command to the end of the first step
    reading  an epoch read in its order by the trainer's reader: pairs a second, peak resident memory
    memory   peak resident memory of `tgdpo train` over an epoch of short pairs

Every figure is of a process of its own, one thread. The caches are made on the spot: one shard of 8,192 random pairs
under many names (hard links), so that a million pairs need no more disk than one shard; every name is opened, hashed
and read as a shard of its own. The policy is a Llama of one layer and width 32: the figures are about data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from common import machine, make_pairs, table

from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Counts, Manifest, Shard
from tgdpo.data.schema import METADATA_KEY, ROW_GROUP_PAIRS, SHARD_SCHEMA, list_column, shard_name, write_parquet
from tgdpo.data.tokenization import PairIds, vocabulary_hash

VOCABULARY = 400
SHARD_PAIRS = 8192
LENGTHS: dict[str, dict[str, tuple[int, int]]] = {
    "long": {"prompt": (60, 140), "response": (50, 250)},
    "short": {"prompt": (4, 12), "response": (4, 12)},
}


def make_policy(folder: Path) -> Any:
    """A one-layer Llama and a tokenizer; returns the tokenizer."""
    words = {f"w{n}": n for n in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_cache(folder: Path, pairs: int, tokenizer: Any, lengths: str) -> None:
    """A cache of `pairs` pairs, rounded up to whole shards."""
    folder.mkdir()
    made = make_pairs(SHARD_PAIRS, VOCABULARY, **LENGTHS[lengths])
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
        fingerprint=dict.fromkeys(("dataset_sha256", "reference_sha256", "guidance_sha256"), "random"),
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
    schema = SHARD_SCHEMA.with_metadata({METADATA_KEY: b"{}"})
    return pa.table({field.name: columns[field.name] for field in schema}, schema=schema)


_READ = """
import sys, time, resource
import pyarrow
from tgdpo.data.cache import RewardCache
from tgdpo.stages.train.order import PairOrder
start = time.perf_counter()
count = sum(1 for _ in PairOrder(RewardCache(sys.argv[1]), seed=0, eval_fraction=0).epoch(0))
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count / seconds, pyarrow.default_memory_pool().max_memory() / 2**20, peak / 1024)
"""


def read(cache: Path) -> tuple[float, float, float]:
    """Reads an epoch; pairs a second, peak of the decoded data and peak resident memory in MB."""
    done = subprocess.run([sys.executable, "-c", _READ, cache], check=True, capture_output=True, text=True)
    speed, data, peak = map(float, done.stdout.split())
    return speed, data, peak


def train(work: Path, cache: Path, name: str, *options: object) -> tuple[float, float, float]:
    """Runs `tgdpo train`; seconds to the first step's end, seconds in all, peak memory in MB."""
    output = work / name
    command = [sys.executable, "-m", "tgdpo", "train", "--cache", cache, "--model", work / "policy", "--output", output,
               "--device", "cpu", "--save-steps", 0, "--attn-implementation", "sdpa", *options]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    first = 0.0
    metrics = output / "metrics.jsonl"
    while process.returncode is None:
        if not first and metrics.is_file() and metrics.stat().st_size:
            first = time.perf_counter() - start
        # Of the processes waited for, this one alone says what it used.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"tgdpo train failed on {cache}")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps[0] == 1
    return first, time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-pairs", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--read-pairs", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 100_000])
    arguments = parser.parse_args()
    print(machine() + ", 1 thread\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = make_policy(work / "policy")

        def cache(pairs: int, lengths: str) -> tuple[Path, str]:
            path = work / f"{lengths}-{pairs}"
            if not path.exists():
                make_cache(path, pairs, tokenizer, lengths)
            size = sum(file.stat().st_size for file in path.glob("*.parquet")) / 2**20
            return path, f"{size:,.0f}"

        rows = [["pairs", "MB of shards", "s to the end of the first step of 32 pairs"]]
        for pairs in arguments.start_pairs:
            path, size = cache(pairs, "long")
            first, *_ = train(work, path, f"run-{path.name}", "--max-steps", 2, "--batch-size", 32)
            rows.append([f"{len(RewardCache(path)):,}", size, f"{first:.1f}"])
        print("start\n\n" + table(rows) + "\n", flush=True)

        rows = [["pairs", "MB of shards", "pairs/s", "peak MB of decoded data", "peak MB of the process"]]
        for pairs in arguments.read_pairs:
            path, size = cache(pairs, "long")
            speed, data, peak = read(path)
            rows.append([f"{len(RewardCache(path)):,}", size, f"{speed:,.0f}", f"{data:,.1f}", f"{peak:,.0f}"])
        print("reading\n\n" + table(rows) + "\n", flush=True)

        rows = [["pairs", "MB of shards", "s", "peak MB"]]
        for pairs in arguments.pairs:
            path, size = cache(pairs, "short")
            _, seconds, peak = train(work, path, f"run-{path.name}", "--batch-size", 512)
            rows.append([f"{len(RewardCache(path)):,}", size, f"{seconds:.0f}", f"{peak:,.0f}"])
        print("memory\n\n" + table(rows))


if __name__ == "__main__":
    main()
