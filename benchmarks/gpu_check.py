"""The acceptance on a GPU: `python benchmarks/gpu_check.py --stage A --out DIR --seconds 540`.

    A   correctness: pytest -m gpu, and how often a pass waits for the card
    B   speed with Llama-3-1B: the trainer, its peers, the heads, the kernels of a step, scoring
    C   Llama-3-8B on one card of 141 GB: full fine-tuning, LoRA, the peers
    D   scoring 8B, budgets that grow, engines, checkpoints, Ray, a model of windows and caps

Models have random weights, made on the spot. Each item is a child process with a time limit; as it ends it leaves a
line in DIR/stage-X.jsonl, {item, stage, status: ok, failed, skipped or timeout, seconds, reason, figures …}, so that a
failure is a line and never an end. The first line says what the figures were measured on, with the card's ceilings.
`--tables DIR` makes Markdown from the lines, on any machine. `--small` does all of it with tiny models, on a CPU too.

A bare card has torch and transformers: `make gpu-pack` collects the rest.
"""

import argparse
import os
import sys
from pathlib import Path

from acceptance.bare import provide, scratch_folder
from acceptance.item import write_line


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", nargs="+", choices=list("ABCD"), help="one or more, in this order")
    what.add_argument("--tables", type=Path, metavar="DIR", help="print tables of the lines in a folder")
    what.add_argument("--list", action="store_true", help="print the items")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the lines, a file a stage")
    parser.add_argument("--seconds", type=float, default=540, help="for each stage; what is left is skipped")
    parser.add_argument("--items", nargs="+", help="names of items, instead of all of a stage")
    parser.add_argument("--small", action="store_true", help="tiny models")
    return parser


def main() -> int:
    """1 where something failed, or packages are missing."""
    options = arguments().parse_args()
    # Children are forked from this process, which must not touch CUDA; this way it can ask whether there is one.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with scratch_folder() as scratch:
        missing = provide(Path(scratch))
        if options.tables:
            from acceptance.tables import tables

            print(tables(options.tables))
            return 0
        if missing:
            return refused(missing, options)
        from acceptance.run import run_stage
        from acceptance.stages import STAGES

        if options.list:
            for stage, items in STAGES.items():
                for item in items:
                    needs = f", needs {', '.join(item.needs)}" if item.needs else ""
                    print(f"{stage} {item.name}: at most {item.seconds:.0f} s{needs}")
            return 0
        lines = [
            line
            for stage in options.stage
            for line in run_stage(stage, options.out, seconds=options.seconds, small=options.small, only=options.items)
        ]
    return int(any(line["status"] in ("failed", "timeout") for line in lines))


def refused(missing: list[str], options: argparse.Namespace) -> int:
    """Says what is not installed, on stderr and in the stages' files."""
    reason = f"not installed and not in the pack: {', '.join(missing)}; run make gpu-pack where pip has a network"
    print(reason, file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in options.stage or []:
        line = {"item": "card", "stage": stage, "group": "Card", "status": "failed", "seconds": 0.0, "reason": reason}
        write_line(options.out / f"stage-{stage}.jsonl", line)
    return 1


if __name__ == "__main__":
    sys.exit(main())
