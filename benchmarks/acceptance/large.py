"""Stage C: Llama-3-8B on one card of 141 GB."""

from functools import partial

from .item import Context, Figures, Item
from .training import Job, measured
from .variants import step_of

MODEL = "Llama-3-8B"
TRAINER, STEP = "Trainer, Llama-3-8B", "A step of 2 pairs, Llama-3-8B bfloat16, checkpointing, SGD"
LEAN = ["--pairs", "2", "--optimizer", "sgd", "--checkpointing", "--warm", "1", "--steps", "3"]
"""So that three models fit; the optimizer's state is not what is compared."""
ROUNDED = {"dtype": "bfloat16", "stochastic_rounding": True, "optim": "adamw_torch", "gradient_checkpointing": True}
JOBS = {
    "master": Job(model=MODEL, warm=1, steps=2, options={"gradient_checkpointing": True}),
    "stochastic-rounding": Job(model=MODEL, dtype="bfloat16", warm=1, steps=2, options=ROUNDED),
    "lora": Job(model=MODEL, dtype="bfloat16", warm=1, steps=2, options={"lora_rank": 64, "learning_rate": 7e-6}),
}


def trainer(context: Context, job: Job) -> Figures:
    """`tgdpo train` in three steps."""
    return measured(context, job)


def _step(variant: str, gib: float) -> Item:
    work = partial(step_of, variant=variant, model=MODEL, options=LEAN)
    return Item(f"8b-{variant}", work, 120, STEP, gib=gib)


# The memory asked for is that of weights, gradients and optimizer state: what a card cannot do without.
ITEMS = [
    Item("8b-master", partial(trainer, job=JOBS["master"]), 150, TRAINER, gib=120),
    _step("ours", 33),
    _step("three-models", 66),
    _step("two-models", 50),
    Item("8b-lora", partial(trainer, job=JOBS["lora"]), 90, TRAINER, gib=15),
    Item(
        "8b-stochastic-rounding",
        partial(trainer, job=JOBS["stochastic-rounding"]),
        90,
        TRAINER,
        needs=("cuda", "torchao"),
        gib=65,
    ),
    _step("no-flex", 33),
]
