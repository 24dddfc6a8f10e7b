"""Means of scores over prompts and seeds, and how sure they are.

Every seed answers every prompt, so scores are a full table: both its rows and its columns are samples, of the runs and
of the prompts that could have been.

Legend: S seeds, P prompts, B draws of the bootstrap.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DRAWS = 10_000
"""B. The smallest p is 2 / (B + 1)."""
BOOTSTRAP_SEED = 0

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % intervals, in the unit of the values."""

    mean: float
    low: float
    high: float
    """From `low` to `high`: the two-way bootstrap's percentile interval."""
    half_t: float
    """Half the t interval over the seeds' means; NaN with one seed."""
    p: float
    """Two-sided, of a mean of zero, from the bootstrap."""

    def __format__(self, form: str) -> str:
        """Mean [low, high] ± half_t, each number in `form`; ± has no sign before its number."""
        shown = f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"
        return shown if np.isnan(self.half_t) else f"{shown} ± {self.half_t:{form.removeprefix('+')}}"


def crossed(values: pd.Series, frame: pd.DataFrame) -> Values:
    """`values` by the seed and the prompt of their rows in `frame`, [S, P] float64.

    Raises:
        ValueError: A seed has no answer to a prompt, or two.
    """
    table = frame[["seed", "prompt"]].assign(value=values).pivot(index="seed", columns="prompt", values="value")
    if table.isna().to_numpy().any():
        raise ValueError("every seed needs one answer to every prompt")
    return table.to_numpy(np.float64)


def estimate(values: Values) -> Estimate:
    """The mean of [S, P] values over seeds and prompts, with its intervals."""
    means = bootstrap_means(values)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + tail) / (1 + len(means)))
    return Estimate(float(values.mean()), float(low), float(high), half_t(values.mean(1)), p)


def bootstrap_means(values: Values) -> Values:
    """Means of [S, P] values whose seeds and prompts are resampled with replacement, independently, [B].

    This is the pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics, 2007). It counts
    the variance that neither prompts nor seeds explain three times, so it is too wide where that dominates. Of the
    variance between S seeds it sees (S - 1) / S, so it is too narrow where few seeds dominate: `half_t` is right there.
    """
    of_seeds, of_prompts = _counts(*values.shape)
    means: Values = ((of_prompts @ values.T) * of_seeds).sum(1) / values.size
    return means


@lru_cache(maxsize=8)
def _counts(seeds: int, prompts: int) -> tuple[Values, Values]:
    """How often each draw has each seed [B, S] and each prompt [B, P]: the same draws for whatever has this shape."""
    random = np.random.default_rng(BOOTSTRAP_SEED)
    of_seeds, of_prompts = (random.multinomial(n, np.full(n, 1 / n), DRAWS) for n in (seeds, prompts))
    return of_seeds.astype(np.float64), of_prompts.astype(np.float64)


def half_t(means: Values) -> float:
    """Half the 95 % t interval of the mean of [S] seeds' means, with S - 1 degrees of freedom; NaN with one seed.

    The prompts count as given: it is too narrow where prompts dominate.
    """
    if len(means) < 2:
        return float("nan")
    return float(t_quantile(len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))


def t_quantile(degrees: int, mass: float = 0.95) -> float:
    """The t between whose negative and itself Student's distribution has `mass`.

    With t = sqrt(degrees) tan(angle) its density is proportional to cos(angle) ** (degrees - 1).
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(mass * below[-1], below, angles)))


def holm(ps: list[float]) -> list[float]:
    """p-values of one table corrected by Holm's method: the chance of one false finding in it stays under the level."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected
