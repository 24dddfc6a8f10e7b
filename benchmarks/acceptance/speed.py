"""Stage B: speed with Llama-3-1B: the trainer, its peers, the heads, a profile, scoring."""

from functools import partial
from unittest.mock import patch

from tgdpo.stages import logps
from tgdpo.stages.attention import SHARED_PROMPT

from .item import Context, Figures, Item
from .training import Job, measured
from .variants import head_of, profile_of, scoring_of, step_of

MODEL = "Llama-3-1B"
TRAINER, STEP, HEAD, SCORING = (
    "Trainer, Llama-3-1B",
    "A step of 4 pairs, Llama-3-1B bfloat16",
    "Head, forward and backward",
    "Scoring",
)
STEPS = ["--warm", "3", "--steps", "10"]
JOBS = {
    "master": Job(model=MODEL),
    "bf16": Job(model=MODEL, dtype="bfloat16", options={"dtype": "bfloat16"}),
    "master-checkpointing": Job(model=MODEL, options={"gradient_checkpointing": True}),
}
"""master is the product's default: float32 weights, bfloat16 autocast."""


def trainer(context: Context, job: Job) -> Figures:
    """`tgdpo train`."""
    return measured(context, job)


def no_flex(context: Context, job: Job) -> Figures:
    """The same with attention pair by pair."""
    with patch.object(logps, "_attentions", lambda _: [SHARED_PROMPT]):
        return measured(context, job)


def _step(variant: str, *needs: str) -> Item:
    return Item(variant, partial(step_of, variant=variant, model=MODEL, options=STEPS), 90, STEP, needs)


ITEMS = [
    Item("trainer-master", partial(trainer, job=JOBS["master"]), 120, TRAINER),
    Item("trainer-bf16", partial(trainer, job=JOBS["bf16"]), 90, TRAINER),
    Item("trainer-no-flex", partial(no_flex, job=JOBS["master"]), 90, TRAINER),
    *(_step(variant) for variant in ("ours", "three-models", "two-models", "no-cache", "no-flex")),
    *(_step(variant, "trl") for variant in ("trl-cached", "trl-online")),
    _step("trl-liger", "cuda", "trl", "liger_kernel"),
    Item("profile", partial(profile_of, model=MODEL), 60, "Kernels of a step"),
    *(
        Item(f"head-{variant}", partial(head_of, variant=variant, model=MODEL), 60, HEAD)
        for variant in ("ours", "float32-product", "compiled", "liger", "cce", "torch", "full-logits")
    ),
    *(
        Item(f"scoring-{variant}", partial(scoring_of, variant=variant, model=MODEL, pairs=128), 60, SCORING)
        for variant in ("ours", "bare", "padded-full")
    ),
    Item("trainer-checkpointing", partial(trainer, job=JOBS["master-checkpointing"]), 90, TRAINER),
]
