"""One optimizer step, side by side: `python benchmarks/train_step.py [--models S-32k …] [--dtypes float32 …]`.

Every variant runs in a process of its own on the same pairs: forward, loss, backward and AdamW, one thread. The peers'
structures are written out here from their published form:

    three-models    the TGDPO authors' structure: policy, reference and guide resident, all run at every step, padded
                    rows, full float32 logits of all three
    two-models      plain DPO: policy and reference resident, full float32 logits
    trl-online      TRL's DPOTrainer, reference run at every step
    trl-cached      TRL's DPOTrainer with precomputed reference log-probabilities, the step alone
    ours            the policy alone from cached scores: packed pairs, shared prompt, head in blocks
    ours-padded     ours without packing: two padded rows a pair
    ours-full-head  ours-padded with full logits
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
import torch
from common import MODELS, in_process, machine, make_model, make_pairs, measure, peak_mb, table
from torch import Tensor

from tgdpo.data.packing import Batch, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.logps import DeviceBatch, ResponseLogps, to_device
from tgdpo.stages.train.losses import LossSettings, ResponseTokens, tgdpo

VARIANTS = ["three-models", "two-models", "trl-online", "trl-cached", "ours", "ours-padded", "ours-full-head"]
CPU = torch.device("cpu")
Step = Callable[[int], float]


def responses(flat: Tensor, batch: Batch, ref: Tensor, rewards: Tensor) -> tuple[ResponseTokens, ResponseTokens]:
    """Flat per-token values as chosen and rejected [B, L]."""
    lengths = torch.from_numpy(batch.response_lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(values: Tensor) -> Tensor:
        result = values.new_zeros(mask.shape)
        result[mask] = values
        return result

    columns = [padded(values) for values in (flat, ref, rewards)]
    return tuple(ResponseTokens(*(c[side::2] for c in columns), mask[side::2]) for side in (0, 1))  # type: ignore[return-value]


def full_logps(model: Any, batch: DeviceBatch) -> Tensor:
    """Log-probabilities through full float32 logits, as the peers compute them."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits.float()
    per_token = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    rows, columns = batch.places // batch.input_ids.shape[1], batch.places % batch.input_ids.shape[1]
    return per_token[rows, columns - 1]


def our_step(variant: str, name: str, dtype: str, steps: list[list[PairIds]]) -> Step:
    """A step of ours or of the authors' and DPO's structures; cached scores are computed beforehand by the caller."""
    policy = make_model(name, dtype)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)
    resident = {"three-models": 2, "two-models": 1}.get(variant, 0)
    frozen = [make_model(name, dtype, seed=i).eval().requires_grad_(False) for i in range(resident)]
    wrapped = None
    if variant.startswith("ours") and variant != "ours-full-head":
        wrapped = ResponseLogps(policy, "padded" if variant == "ours-padded" else None)
    layout = wrapped.layout if wrapped else "padded"
    scale = np.random.default_rng(1)

    def step(i: int) -> float:
        batch = collate(steps[i], 0, layout)
        on_device = to_device(batch, CPU)
        if frozen:
            with torch.no_grad():
                scores = [full_logps(model, on_device) for model in frozen]
            ref = scores[0]
            rewards = scores[-1] - ref
        else:
            # What the cache holds for a policy that starts as the reference; its values do not change the cost.
            ref = torch.from_numpy(scale.normal(-10, 1, len(batch.places)).astype(np.float32))
            rewards = torch.zeros_like(ref)
        flat = wrapped(on_device) if wrapped else full_logps(policy, on_device)
        output = tgdpo(*responses(flat, batch, ref, rewards), LossSettings())
        loss = output.losses.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def measure_trl(variant: str, name: str, dtype: str, steps: list[list[PairIds]]) -> dict[str, float]:
    """TRL's own training loop on the same ids; gradient checkpointing and bf16 autocast, its defaults, are off."""
    import datasets
    import transformers
    import trl

    class GivenIds(trl.DPOTrainer):  # type: ignore[misc]
        """Takes token ids as they are, in their order."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    rows = [{f"{part}_ids": ids.tolist() for part, ids in pair._asdict().items()} for pairs in steps for pair in pairs]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder, per_device_train_batch_size=len(steps[0]), max_steps=len(steps), max_length=None,
            bf16=False, gradient_checkpointing=False, use_cpu=True, report_to=[], learning_rate=1e-5,
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            precompute_ref_log_probs=variant == "trl-cached",
        )  # fmt: skip
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), eos_token="</s>", pad_token="</s>"
        )
        trainer = GivenIds(
            model=make_model(name, dtype),
            ref_model=make_model(name, dtype),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return {"seconds": statistics.median(clock.seconds[1:]), "peak_mb": peak_mb()}


def run_variant(variant: str, name: str, dtype: str, pairs: int, count: int) -> dict[str, float]:
    """One variant in this process."""
    made = make_pairs((count + 1) * pairs, MODELS[name]["vocab_size"], prompt=(60, 140), response=(50, 250))
    steps = [made[i * pairs : (i + 1) * pairs] for i in range(count + 1)]
    before = peak_mb()
    if variant.startswith("trl"):
        result = measure_trl(variant, name, dtype, steps)
    else:
        result = measure(our_step(variant, name, dtype, steps), count)
    tokens = sum(pair.tokens for batch in steps for pair in batch) / len(steps)
    return result | {"peak_mb": result["peak_mb"] - before, "tokens": tokens}


def main() -> None:
    """Prints one table per model and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["S-32k"], choices=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--pairs", type=int, default=4, help="pairs per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        result = run_variant(options.variant, options.models[0], options.dtypes[0], options.pairs, options.steps)
        print(json.dumps(result))
        return
    print(machine(), f"{options.threads} thread(s), medians of {options.steps} steps", sep=", ")
    for model in options.models:
        for dtype in options.dtypes:
            print(f"\n{model} {dtype}, {options.pairs} pairs a step\n")
            print(compare(model, dtype, options))


def compare(model: str, dtype: str, options: argparse.Namespace) -> str:
    """The table of one model: a row per variant, relative to the first."""
    rows = [["variant", "s a step", "tokens/s", "times as fast", "peak MB", "of the first's peak"]]
    first: dict[str, Any] = {}
    for variant in options.variants:
        arguments = ["--models", model, "--dtypes", dtype, "--pairs", options.pairs, "--steps", options.steps]
        result = in_process(__file__, variant, [str(argument) for argument in arguments], options.threads)
        first = first or result
        rows.append(
            [
                variant,
                f"{result['seconds']:.3f}",
                f"{result['tokens'] / result['seconds']:,.0f}",
                f"{first['seconds'] / result['seconds']:.2f}",
                f"{result['peak_mb']:,.0f}",
                f"{result['peak_mb'] / first['peak_mb']:.2f}",
            ]
        )
    return table(rows)


if __name__ == "__main__":
    main()
