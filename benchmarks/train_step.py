"""One optimizer step, side by side: `python benchmarks/train_step.py [--models S-32k …] [--dtypes float32 …]`.

Every variant runs in a process of its own on the same pairs: forward, loss, backward and AdamW, one thread; on CUDA
where there is one. The peers' structures are written out here from their published form:

    three-models    the TGDPO authors' structure: policy, reference and guide resident, run one after the other at every
                    step on padded rows, full float32 logits; the policy's stay until the loss for their logged mean
    two-models      plain DPO: policy and reference in the same way
    trl-online      TRL's DPOTrainer, reference run at every step
    trl-cached      TRL's DPOTrainer with precomputed reference log-probabilities, the step alone
    trl-liger       trl-online with Liger's kernels, on CUDA; not in the tables by itself

Ours is the policy alone from cached scores: packed pairs, shared prompt, head in blocks at response positions. Each
speed-up switched off in turn:

    ours
    no-cache            reference and guide run at every step, through the same forward pass
    no-shared-prompt    packed, but the prompt once for each response
    no-packing          two padded rows a pair
    no-response-only    the head at every position, prompts included
    no-blocks           the logits of all response positions at once

And, not in the tables by themselves:

    no-flex             on CUDA, packed attention pair by pair instead of in one FlexAttention kernel
    float32-master      ours with float32 weights, bfloat16 autocast and gradient checkpointing, in two passes
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from common import DEVICE, MODELS, VariantError, in_process, machine, make_model, make_pairs, measure, peak_mb, table
from torch import Tensor
from trl_step import measure_trl

from tgdpo.data.packing import Batch, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.attention import SHARED_PROMPT
from tgdpo.stages.head import LogitTransform, target_logps
from tgdpo.stages.logps import DeviceBatch, ResponseLogps, to_device
from tgdpo.stages.train.losses.dpo import tgdpo
from tgdpo.stages.train.losses.types import LossSettings, ResponseTokens

PEERS = ["three-models", "two-models", "trl-online", "trl-cached"]
OURS = ["ours", "no-cache", "no-shared-prompt", "no-packing", "no-response-only", "no-blocks"]
VARIANTS = PEERS + OURS + ["trl-liger", "no-flex", "float32-master"]
Step = Callable[[int], float]
NOTHING = np.zeros(0, np.int32)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-5, fused=True),
    "sgd": partial(torch.optim.SGD, lr=1e-5),
}


class Setup(NamedTuple):
    """What a step is made of beside its variant."""

    name: str
    dtype: str
    optimizer: str = "adamw"
    checkpointing: bool = False

    def policy(self, dtype: str) -> tuple[Any, torch.optim.Optimizer]:
        """In training mode, with its optimizer."""
        policy = make_model(self.name, dtype).train()
        if self.checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return policy, OPTIMIZERS[self.optimizer](policy.parameters())


def responses(flat: Tensor, batch: Batch, ref: Tensor, rewards: Tensor) -> tuple[ResponseTokens, ResponseTokens]:
    """Flat per-token values as chosen and rejected [B, L]."""
    # A pair whose prompt is not shared stands there as two, each with an empty second response.
    lengths = torch.from_numpy(batch.response_lengths[batch.response_lengths > 0]).to(flat.device)
    mask = torch.arange(int(lengths.max()), device=flat.device) < lengths[:, None]

    def padded(values: Tensor) -> Tensor:
        result = values.new_zeros(mask.shape)
        result[mask] = values
        return result

    columns = [padded(values) for values in (flat, ref, rewards)]
    return tuple(ResponseTokens(*(c[side::2] for c in columns), mask[side::2]) for side in (0, 1))  # type: ignore[return-value]


def full_logits(model: Any, batch: DeviceBatch) -> Tensor:
    """Float32 logits [N, T, V]."""
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.float()


def logps_of(logits: Tensor, batch: DeviceBatch) -> Tensor:
    """A log-softmax over everything, as the peers do it; then the response tokens."""
    per_token = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    rows, columns = batch.places // batch.input_ids.shape[1], batch.places % batch.input_ids.shape[1]
    return per_token[rows, columns - 1]


def peer_step(variant: str, setup: Setup, steps: list[list[PairIds]]) -> Step:
    """A step of the authors' structure or of plain DPO."""
    policy, optimizer = setup.policy(setup.dtype)
    resident = 2 if variant == "three-models" else 1
    frozen = [make_model(setup.name, setup.dtype, seed=i).eval().requires_grad_(False) for i in range(resident)]

    def step(i: int) -> float:
        batch = collate(steps[i], "padded")
        on_device = to_device(batch, DEVICE)

        def loss_of_batch() -> Tensor:
            policy_logits = full_logits(policy, on_device)
            flat = logps_of(policy_logits, on_device)
            with torch.no_grad():
                scores = [logps_of(full_logits(model, on_device), on_device) for model in frozen]
            sides = responses(flat, batch, scores[0], scores[-1] - scores[0])
            loss = tgdpo(*sides, LossSettings()).losses.mean()
            policy_logits.mean().item()
            return loss

        loss = loss_of_batch()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(variant: str, setup: Setup, steps: list[list[PairIds]]) -> Step:
    """A step of ours, or with one speed-up off. What the cache holds is made up: its values do not change the cost."""
    is_master = variant == "float32-master"
    policy, optimizer = setup._replace(checkpointing=setup.checkpointing or is_master).policy(
        "float32" if is_master else setup.dtype
    )

    def autocast() -> torch.autocast:
        """As the trainer's: around forward and backward, weights cast again where they are used again."""
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=is_master, cache_enabled=not is_master)

    with autocast():
        wrapped = ResponseLogps(policy, "padded" if variant == "no-packing" else None)
    if variant == "no-flex" and DEVICE.type == "cuda":
        policy.set_attn_implementation(SHARED_PROMPT)
    resident = 2 if variant == "no-cache" else 0
    frozen = [
        ResponseLogps(make_model(setup.name, setup.dtype, seed=i).eval().requires_grad_(False)) for i in range(resident)
    ]
    forward = {"no-response-only": all_positions, "no-blocks": all_logits_at_once}.get(variant, call)
    made_up = np.random.default_rng(1)

    def loss_of(pairs: list[PairIds]) -> Tensor:
        batch = collate(unshared(pairs) if variant == "no-shared-prompt" else pairs, wrapped.layout)
        on_device = to_device(batch, DEVICE)
        if frozen:
            with torch.no_grad():
                ref, guide = (model(on_device) for model in frozen)
            rewards = guide - ref
        else:
            ref = torch.from_numpy(made_up.normal(-10, 1, len(batch.places)).astype(np.float32)).to(DEVICE)
            rewards = torch.zeros_like(ref)
        flat = forward(wrapped, on_device)
        return tgdpo(*responses(flat, batch, ref, rewards), LossSettings()).losses.sum()

    def step(i: int) -> float:
        # A step's second pass has whole gradients beside it, which is when memory is at its highest.
        middle = len(steps[i]) // 2
        passes = [steps[i][:middle], steps[i][middle:]] if is_master and middle else [steps[i]]
        total = 0.0
        for pairs in passes:
            with autocast():
                loss = loss_of(pairs) / len(steps[i])
                loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def unshared(pairs: Sequence[PairIds]) -> list[PairIds]:
    """Each response with the prompt to itself."""
    return [PairIds(pair.prompt, response, NOTHING) for pair in pairs for response in (pair.chosen, pair.rejected)]


def call(wrapped: ResponseLogps, batch: DeviceBatch) -> Tensor:
    """The forward pass as it is."""
    flat: Tensor = wrapped(batch)
    return flat


def hidden_states(wrapped: ResponseLogps, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
    """[T, D] of the row, and the head's weight."""
    model: Any = wrapped.model
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, packed_row=batch.packed_row, use_cache=False
    ).last_hidden_state
    return hidden[0], model.get_output_embeddings().weight


def all_positions(wrapped: ResponseLogps, batch: DeviceBatch) -> Tensor:
    """In blocks, prompts included."""
    hidden, weight = hidden_states(wrapped, batch)
    tokens = len(hidden)
    # Every position predicts the next token, but a rejected response's first one is predicted by the prompt's last.
    apart = batch.places != batch.predicting + 1
    positions = torch.cat([torch.arange(tokens, device=hidden.device), batch.predicting[apart]])
    targets = torch.cat([batch.input_ids[0].roll(-1), batch.input_ids[0, batch.places[apart]]])
    wanted = batch.predicting.clone()
    wanted[apart] = tokens + torch.arange(int(apart.sum()), device=hidden.device)
    return target_logps(hidden[positions], weight, targets, LogitTransform())[wanted]


def all_logits_at_once(wrapped: ResponseLogps, batch: DeviceBatch) -> Tensor:
    """The plain formula at response positions."""
    hidden, weight = hidden_states(wrapped, batch)
    logits = (hidden[batch.predicting] @ weight.T).float()
    return logits.log_softmax(-1).gather(-1, batch.input_ids[0, batch.places, None]).squeeze(-1)


Result = dict[str, Any]
"""Figures, or why it failed; empty where it does not fit into memory."""


def run_variant(options: argparse.Namespace) -> Result:
    """One variant in this process; an empty result where it does not fit into memory."""
    variant, name, dtype = options.variant, options.models[0], options.dtypes[0]
    pairs, count = options.pairs, options.steps
    lengths = {"prompt": tuple(options.prompt), "response": tuple(options.response)}
    made = make_pairs((options.warm + count) * pairs, MODELS[name]["vocab_size"], **lengths)
    steps = [made[i * pairs : (i + 1) * pairs] for i in range(options.warm + count)]
    before = peak_mb()
    setup = Setup(name, dtype, options.optimizer, options.checkpointing)
    try:
        if variant.startswith("trl"):
            result = measure_trl(variant, name, dtype, steps, options.warm)
        else:
            make_step = peer_step if variant in PEERS else our_step
            result = measure(make_step(variant, setup, steps), count, options.warm)
    except torch.OutOfMemoryError:
        return {}
    tokens = sum(pair.tokens for pair in made) / len(steps)
    packed = sum(len(part) for pair in made for part in pair) / len(steps)
    return result | {"peak_mb": result["peak_mb"] - before, "tokens": tokens, "packed_tokens": packed}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["S-32k"], choices=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=PEERS + OURS, choices=VARIANTS)
    parser.add_argument("--pairs", type=int, default=4, help="pairs per step")
    parser.add_argument("--prompt", type=int, nargs=2, default=[60, 140], metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--response", type=int, nargs=2, default=[50, 250], metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warm", type=int, default=1, help="steps before them")
    parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, TRL's left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Prints one table per model and dtype."""
    options = arguments().parse_args()
    if options.variant:
        print(json.dumps(run_variant(options)))
        return
    print(machine(), f"{options.threads} thread(s), medians of {options.steps} steps", sep=", ")
    for model in options.models:
        for dtype in options.dtypes:
            print(f"\n{model} {dtype}, {options.pairs} pairs a step\n")
            print(table(as_rows(results_of(model, dtype, options))))


def results_of(model: str, dtype: str, options: argparse.Namespace) -> dict[str, Result]:
    """Every variant, each in a process of its own."""
    given: list[object] = ["--models", model, "--dtypes", dtype, "--pairs", options.pairs, "--steps", options.steps]
    given += ["--prompt", *options.prompt, "--response", *options.response]
    given += ["--warm", options.warm, "--optimizer", options.optimizer]
    given += ["--checkpointing"] if options.checkpointing else []
    results: dict[str, Result] = {}
    for variant in options.variants:
        try:
            results[variant] = in_process(__file__, variant, [str(argument) for argument in given], options.threads)
        except VariantError as error:
            results[variant] = {"failed": str(error)}
    return results


def as_rows(results: dict[str, Result]) -> list[list[str]]:
    """A row per variant, relative to the first one that fits."""
    rows = [["variant", "s a step", "tokens/s", "times as fast", "peak MB", "of the first's peak"]]
    first = next((result for result in results.values() if "seconds" in result), {})
    for variant, result in results.items():
        if "seconds" not in result:
            rows.append([variant, result.get("failed", "does not fit"), "", "", "", ""])
            continue
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
    return rows


if __name__ == "__main__":
    main()
