"""What a pair costs on paper: `python benchmarks/floor.py [--gpu H100] [--lengths 512,512,512 …]`.

Floating-point operations of a training step per pair, for the structures that train_step.py measures, and the time
they take at a GPU's dense bfloat16 peak: no program is faster. A backward pass counts as two forward ones.
"""

import argparse
from typing import Any, NamedTuple

from common import MODELS, table

from tgdpo.stages.hardware import GPUS, ModelSize, forward_flops, parameters

LENGTHS = [(512, 512, 512), (1024, 1024, 1024), (1548, 500, 500)]
SIZES: dict[str, dict[str, Any]] = {
    name: {"model_type": "llama", **MODELS[name]} for name in ("Llama-3-1B", "Llama-3-8B")
} | {
    "Llama-3-70B": {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
                    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256,
                    "tie_word_embeddings": False},
}  # fmt: skip


class Lengths(NamedTuple):
    """Tokens of a pair."""

    prompt: int
    chosen: int
    rejected: int


class PairFlops(NamedTuple):
    """Operations of a step per pair."""

    three_models: float
    """Policy forward and backward, reference and guide forward, a row a response, the head everywhere."""
    two_models: float
    cached: float
    """The policy alone."""
    response_head: float
    """The same with the head at response positions."""
    shared_prompt: float
    """The same with the prompt once: ours."""


def pair_flops(size: ModelSize, lengths: Lengths) -> PairFlops:
    """Causal attention counts half the square of a row's length."""
    prompt, chosen, rejected = lengths
    rows = 2 * prompt + chosen + rejected
    attended = ((prompt + chosen) ** 2 + (prompt + rejected) ** 2) / 2
    in_full = forward_flops(size, tokens=rows, head_tokens=rows, attended=attended)
    at_responses = forward_flops(size, tokens=rows, head_tokens=chosen + rejected, attended=attended)
    shared = forward_flops(
        size,
        tokens=prompt + chosen + rejected,
        head_tokens=chosen + rejected,
        attended=(prompt + chosen) ** 2 / 2 + rejected * prompt + rejected**2 / 2,
    )
    return PairFlops(5 * in_full, 4 * in_full, 3 * in_full, 3 * at_responses, 3 * shared)


def logits_bytes(size: ModelSize, lengths: Lengths) -> tuple[int, int]:
    """Of the policy's logits in a step: in full (bfloat16, the float32 copy, its log-softmax, and the gradients of the
    last two), and at response positions in bfloat16 with one float32 copy, if they existed at once."""
    rows = 2 * lengths.prompt + lengths.chosen + lengths.rejected
    return rows * size.vocabulary * (2 + 4 * 4), (lengths.chosen + lengths.rejected) * size.vocabulary * (2 + 4)


def cache_bytes(lengths: Lengths) -> float:
    """On disk: an id of every token, two float32 scores of every response token, as they compress (see
    docs/cache-format.md); the texts come on top."""
    bytes_per_id, bytes_per_score = 1.4, 3.5
    return bytes_per_id * sum(lengths) + 2 * bytes_per_score * (lengths.chosen + lengths.rejected)


def rows_of(name: str, gpu: str, lengths: Lengths) -> list[str]:
    """The table's row of one model and one set of lengths."""
    size = parameters(SIZES[name])
    flops = pair_flops(size, lengths)
    times = [f"{operations / GPUS[gpu].flops * 1000:,.0f}" for operations in flops]
    full, ours = logits_bytes(size, lengths)
    return [
        name,
        f"{size.parameters / 1e9:.1f} B",
        ", ".join(map(str, lengths)),
        f"{flops.shared_prompt / 1e12:,.1f}",
        *times,
        f"{flops.three_models / flops.shared_prompt:.2f}",
        f"{flops.two_models / flops.shared_prompt:.2f}",
        f"{full / 2**30:.1f}",
        f"{ours / 2**30:.1f}",
        f"{cache_bytes(lengths) / 1000:.1f}",
    ]


HEADING = [
    "model", "parameters", "prompt, chosen, rejected", "TFLOP, ours", "three models, ms", "two models", "cached",
    "+ response head", "+ shared prompt: ours", "three / ours", "two / ours", "full logits, GiB",
    "at responses, GiB", "cache, kB",
]  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100", choices=GPUS)
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--lengths", nargs="+", help="prompt,chosen,rejected in tokens")
    options = parser.parse_args()
    given = [Lengths(*map(int, text.split(","))) for text in options.lengths or []]
    all_lengths = given or [Lengths(*lengths) for lengths in LENGTHS]
    gpu = GPUS[options.gpu]
    print(f"One pair on one {options.gpu}, {gpu.flops / 1e12:.0f} TFLOP/s dense bfloat16 ({gpu.source})\n")
    print(
        table([HEADING] + [rows_of(name, options.gpu, lengths) for name in options.models for lengths in all_lengths])
    )


if __name__ == "__main__":
    main()
