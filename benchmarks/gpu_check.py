"""All that has to be seen on a GPU, in one command: `python benchmarks/gpu_check.py [--gpu H100]`.

    1. a training step of Llama-3-1B and 8B with random weights: the authors' structure, plain DPO, ours, and ours
       without FlexAttention; against the floors of floor.py, with the share of the GPU's peak that ours reaches
    2. full fine-tuning of 8B with float32 master weights on this one GPU, and its peak memory
    3. the head beside those of other libraries
    4. scoring beside padded batches with full logits
    5. scoring engines: conformance, and memory that is given back between passes

`--small` runs the same with small models, which is how it is tried on a machine without a GPU: there, shares of a peak
are left out, and the floors say little, since small models spend their time elsewhere.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from common import DEVICE, MODELS, machine, table
from floor import Lengths, PairFlops, pair_flops
from train_step import Result, as_rows, results_of
from train_step import arguments as train_step_arguments

from tgdpo.stages.hardware import GPUS, parameters

FOLDER = Path(__file__).parent
OF_THE_FLOOR = 0.9
"""What ours must reach of the speed-ups that the operations alone allow."""
OF_THE_PEAK = 0.45


def training(model: str, small: bool, gpu: str) -> None:
    """Tables 1 and 2 of one model."""
    options = train_step_arguments().parse_args(["--variants", "three-models", "two-models", "ours", "no-flex"])
    if small:
        options.pairs = 2
    else:
        options.prompt = options.response = [512, 512]
    print(f"\n## A training step, {model} bfloat16, {options.pairs} pairs\n", flush=True)
    results = results_of(model, "bfloat16", options)
    print(table(as_rows(results)))
    lengths = Lengths(*(sum(ends) // 2 for ends in (options.prompt, options.response, options.response)))
    flops = pair_flops(parameters({"model_type": "llama", **MODELS[model]}), lengths)
    print("\n" + "\n".join(verdicts(results, flops, options.pairs, gpu)))
    print(f"\n## Full fine-tuning with float32 master weights, {model}\n", flush=True)
    options.variants = ["float32-master"]
    print(table(as_rows(results_of(model, "bfloat16", options))))


def verdicts(results: dict[str, Result], flops: PairFlops, pairs: int, gpu: str) -> list[str]:
    """Ours against the floors, a line each."""
    lines, ours = [], results["ours"]
    for variant, operations in (("three-models", flops.three_models), ("two-models", flops.two_models)):
        floor = operations / flops.shared_prompt
        if not ours or not results[variant]:
            lines.append(f"{variant}: does not fit here; by operations alone ours is {floor:.2f} times as fast")
            continue
        found = results[variant]["seconds"] / ours["seconds"]
        met = "met" if found >= OF_THE_FLOOR * floor else "NOT met"
        lines.append(f"{variant}: ours is {found:.2f} times as fast, by operations alone {floor:.2f}: 90% is {met}")
    if ours and DEVICE.type == "cuda":
        share = pairs * flops.shared_prompt / ours["seconds"] / GPUS[gpu].flops
        met = "met" if share >= OF_THE_PEAK else "NOT met"
        lines.append(f"ours runs at {share:.0%} of {gpu}'s dense bfloat16 peak: {OF_THE_PEAK:.0%} is {met}")
    return lines


def run(title: str, script: str, *given: str) -> None:
    """Another benchmark's own table."""
    print(f"\n## {title}\n", flush=True)
    done = subprocess.run([sys.executable, str(FOLDER / script), *given])
    if done.returncode:
        print(f"{script} failed with exit code {done.returncode}")


def main() -> None:
    """Prints everything; what fails is said and the rest goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100", choices=GPUS, help="whose peak the shares are of")
    parser.add_argument("--small", action="store_true", help="small models")
    options = parser.parse_args()
    print(machine())
    models = ["S-32k"] if options.small else ["Llama-3-1B", "Llama-3-8B"]
    for model in models:
        training(model, options.small, options.gpu)
    tokens = "300" if options.small else "4096"
    run("The head", "head.py", "--models", models[-1], "--dtypes", "bfloat16", "--tokens", tokens)
    pairs = "8" if options.small else "64"
    run("Scoring", "score_throughput.py", "--models", models[-1], "--dtypes", "bfloat16", "--pairs", pairs)
    run("Engines", "engines.py", "--check", models[0])


if __name__ == "__main__":
    main()
