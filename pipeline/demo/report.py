"""The text that ends the demo: the table, how it was made, the paths, the next commands."""

import shlex
from typing import NamedTuple

from .folder import DemoFolder
from .judging import Accuracy
from .sizes import DemoSizes

_NAMES = {"base": "base", "guide": "guide", "dpo": "DPO", "tgdpo": "TGDPO"}
"""What the table calls the models, by their folder."""


class Made(NamedTuple):
    """What the report says about a run besides the accuracies."""

    pairs: int
    f_range: tuple[float, float]
    """Smallest and largest f in the last steps of TGDPO."""


def report(folder: DemoFolder, accuracies: dict[str, Accuracy], made: Made, *, seed: int, sizes: DemoSizes) -> str:
    """All of it."""
    return "\n\n".join(
        [_table(accuracies), _explanation(made, sizes), _written(folder), _next_commands(folder, seed, sizes)]
    )


def _table(accuracies: dict[str, Accuracy]) -> str:
    rows = [f"{'model':<8}{'held-out accuracy':>19}{'standard error':>17}"]
    for name, accuracy in accuracies.items():
        rows.append(f"{_NAMES[name]:<8}{accuracy.share:>19.1%}{accuracy.standard_error:>17.1%}")
    return "\n".join(rows)


def _explanation(made: Made, sizes: DemoSizes) -> str:
    smallest, largest = made.f_range
    return (
        f"Task: sort the letters of a word. n = {sizes.held_out_prompts} held-out prompts, one answer of each model to "
        "each, sampled at\ntemperature 1; an exact checker judges it. Differences within a couple of standard errors "
        "mean nothing.\n"
        f"DPO and TGDPO start from the base and have all {made.pairs} pairs and the same settings, seed and steps. The "
        "guide\n"
        f"is a DPO run of its own, on the first {made.pairs // 2} pairs. TGDPO is DPO with f per token in place of 1: "
        f"here\nf lay between {smallest:.2f} and {largest:.2f} (last steps; defaults of --alpha and --beta)."
    )


def _written(folder: DemoFolder) -> str:
    paths = {
        "preference pairs": folder.pairs,
        "base model": folder.base,
        "guide": folder.guide,
        "guide's cache": folder.guide_cache,
        "reward cache": folder.cache,
        "DPO policy": folder.dpo,
        "TGDPO policy": folder.tgdpo,
        "held-out answers": folder.answers,
    }
    return "\n".join(["Written:", *(f"  {name:<18}{path}" for name, path in paths.items())])


def _next_commands(folder: DemoFolder, seed: int, sizes: DemoSizes) -> str:
    cache, base, output = (shlex.quote(str(path)) for path in (folder.cache, folder.base, folder.path / "alpha-2"))
    settings = f"--learning-rate {sizes.learning_rate:g} --batch-size {sizes.batch_size} --seed {seed}"
    return (
        "Next:\n"
        f"  tgdpo inspect {cache}\n"
        f"  tgdpo verify {cache}\n"
        f"  tgdpo train --cache {cache} --model {base} --output {output} --alpha 2 {settings}"
    )
