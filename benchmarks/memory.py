"""Peak memory of a stage with few and with many pairs: `python benchmarks/memory.py [--stage score train]`.

Runs `tgdpo score` and `tgdpo train` as a user does, each in a process of its own, on a very small model and pairs of
random words, and prints the highest resident memory of each. It should not grow with the number of pairs.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from common import machine, run_tgdpo, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import make_model, make_tokenizer

STAGES = ["score", "train"]
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "sky",
    "green",
    "blue",
    "story",
    "girl",
    "park",
]


def write_pairs(path: Path, count: int) -> Path:
    """`count` pairs of random words, about a hundred tokens each."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen, rejected = (" " + " ".join(rng.choices(WORDS, k=12)) for _ in range(2))
            row = {"prompt": f"{number}: {' '.join(rng.choices(WORDS, k=12))}", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")
    return path


def measure(folder: Path, stages: list[str], count: int, shard: int) -> dict[str, dict[str, float]]:
    """Seconds and peak MB of each stage with `count` pairs."""
    model, pairs, cache = folder / "model", write_pairs(folder / "pairs.jsonl", count), folder / "cache"
    results = {}
    call = ("score", "--dataset", pairs, "--reference", model, "--output", cache, "--pairs-per-shard", shard)
    results["score"] = run_tgdpo(*call)
    if "train" in stages:
        results["train"] = run_tgdpo(
            *("train", "--cache", cache, "--model", model, "--output", folder / "policy", "--loss", "dpo"),
            *("--batch-size", 256, "--device", "cpu"),
        )
        shutil.rmtree(folder / "policy")
    shutil.rmtree(cache)
    return {stage: results[stage] for stage in stages}


def main() -> None:
    """Prints one row per stage and number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--pairs", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--pairs-per-shard", type=int, default=2048)
    options = parser.parse_args()
    print(machine())
    first: dict[str, float] = {}
    rows = [["stage", "pairs", "seconds", "peak MB", "of the first's"]]
    with tempfile.TemporaryDirectory() as folder:
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        make_model(Path(folder) / "model", make_tokenizer(chat=False), seed=0, **small, num_key_value_heads=1)
        for count in options.pairs:
            for stage, used in measure(Path(folder), options.stage, count, options.pairs_per_shard).items():
                peak = used["peak_mb"]
                share = peak / first.setdefault(stage, peak)
                rows.append([stage, f"{count:,}", f"{used['seconds']:.0f}", f"{peak:,.0f}", f"{share:.3f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
