"""What `tgdpo train --plan` says against what training takes: `python benchmarks/plan_memory.py [--models S-32k …]`.

Each row is a process of its own: a random model, two optimizer steps over pairs of one length in one pass. Measured
is the highest resident memory above what the process had before the model was made.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from common import MODELS, VariantError, in_process, machine, make_model, peak_mb, table
from torch._subclasses.fake_tensor import FakeTensorMode

from tgdpo import TrainConfig
from tgdpo.data.packing import collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.hardware import empty_model
from tgdpo.stages.logps import ResponseLogps, to_device
from tgdpo.stages.train import memory
from tgdpo.stages.train.optimizers import make_optimizer

LENGTHS = (128, 192, 192)
MIB = 2**20
CPU = torch.device("cpu")


def config_of(checkpointing: bool) -> TrainConfig:
    """The run's options."""
    return TrainConfig(cache="", model="", output="", gradient_checkpointing=checkpointing)


def planned(name: str, dtype: torch.dtype, pairs: int, *, checkpointing: bool) -> dict[str, float]:
    """MiB by part."""
    config = config_of(checkpointing)
    settings = {"model_type": "llama", "max_position_embeddings": 4096, **MODELS[name]}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = empty_model(settings, dtype).train()
        activations = memory.activation_bytes(model, LENGTHS, pairs, dtype)
        parts = {
            "weights, gradients, optimizer": memory.weight_bytes(config, model)
            + memory.gradient_bytes(model)
            + memory.optimizer_bytes(config, model),
            "activations": activations.recomputed if checkpointing else activations.kept,
            "logits": memory.logits_bytes(model, pairs * sum(LENGTHS[1:]), dtype, on_gpu=False),
        }
    return {name: size / MIB for name, size in parts.items()}


def measured(name: str, dtype: str, pairs: int, *, checkpointing: bool) -> float:
    """MiB above the interpreter's."""
    before = peak_mb()
    model = make_model(name, dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forward = ResponseLogps(model)
    optimizer = make_optimizer(config_of(checkpointing), [{"params": list(model.parameters())}], CPU)
    rng = np.random.default_rng(0)
    vocabulary = MODELS[name]["vocab_size"]
    ids = [PairIds(*(rng.integers(5, vocabulary, n).astype(np.int32) for n in LENGTHS)) for _ in range(pairs)]
    for _ in range(2):
        forward(to_device(collate(ids, forward.layout), CPU)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak_mb() - before


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["S-32k", "M-32k"], choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant")
    arguments = parser.parse_args()
    if arguments.variant:
        name, dtype, kind = arguments.variant.split("/")
        print(json.dumps(measured(name, dtype, arguments.pairs, checkpointing=kind == "checkpointing")))
        return
    heading = ["model", "dtype", "", "weights, gradients, optimizer", "activations", "logits", "planned", "measured"]
    rows: list[list[str]] = [heading]
    for name in arguments.models:
        for dtype in arguments.dtypes:
            for kind in ("plain", "checkpointing"):
                checkpointing = kind == "checkpointing"
                parts = planned(name, getattr(torch, dtype), arguments.pairs, checkpointing=checkpointing)
                options = ["--pairs", str(arguments.pairs)]
                figures = [f"{size:,.0f}" for size in (*parts.values(), sum(parts.values()))]
                try:
                    found: Any = in_process(__file__, f"{name}/{dtype}/{kind}", options, arguments.threads)
                    figures.append(f"{found:,.0f}")
                except VariantError as error:
                    figures.append(str(error))
                rows.append([name, dtype, kind, *figures])
    print(machine())
    print(f"{arguments.pairs} pairs of {LENGTHS} tokens, MiB\n")
    print(table(rows))


if __name__ == "__main__":
    main()
