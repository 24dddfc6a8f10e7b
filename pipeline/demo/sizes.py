"""How large the demo is. The defaults take about a minute on one core."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """Every number of the demo that is not the product's own default."""

    word_lengths: tuple[int, int] = (6, 10)
    """Letters of the shortest and the longest word to sort."""
    slip_rate: float = 0.5
    """Share of the demonstrations with a slip, so that the base has something left to gain."""

    hidden_size: int = 128
    """Width of the base, with two layers of four heads."""
    base_steps: int = 600
    """Steps of the base's training."""
    base_batch_size: int = 64
    """Demonstrations per step."""
    base_learning_rate: float = 2e-3
    """Peak learning rate of the base's training."""

    train_prompts: int = 3000
    """Prompts that pairs are made from."""
    answers_per_prompt: int = 4
    """Answers sampled for each of them; a prompt with a right and a wrong one gives a pair."""
    held_out_prompts: int = 1000
    """Prompts that the models are judged on."""

    learning_rate: float = 2e-5
    """Peak learning rate of guide and policies: a small model needs more than the product's default, but at 5e-5 DPO
    already ends below the base, with answers that are too long."""
    batch_size: int = 32
    """Pairs per step of guide and policies."""


DEFAULT_SIZES = DemoSizes()
