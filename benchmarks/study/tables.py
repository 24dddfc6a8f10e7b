"""Tables in the layout of the paper's Tables 1 to 4, from raw results.

Even prompts choose a learning rate per setting (by mean score over all seeds), odd ones make the figures. Intervals are
95 %, over prompts: a prompt's answers under all seeds are one cluster.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pandas as pd

SETTING = ["part", "method", "guide", "alpha"]
Row = dict[str, str]


def selected(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of odd prompts, at the learning rate that even prompts choose."""
    means = results[results.prompt % 2 == 0].groupby([*SETTING, "learning_rate"]).score.mean()
    best = means.reset_index().sort_values("score", ascending=False, kind="stable").drop_duplicates(SETTING)
    odd = results[results.prompt % 2 == 1]
    return odd.merge(best[[*SETTING, "learning_rate"]], on=[*SETTING, "learning_rate"])


def interval(values: pd.Series, prompts: pd.Series) -> tuple[float, float]:
    """Mean and half the 95 % interval, clustered by prompt."""
    clusters = values.groupby(prompts).mean()
    if len(clusters) < 2:
        return float(clusters.mean()), float("nan")
    return float(clusters.mean()), float(1.96 * clusters.std(ddof=1) / np.sqrt(len(clusters)))


def wins(frame: pd.DataFrame) -> pd.Series:
    """1 where the answer's score is above the base's, 0.5 where it is equal, in percent."""
    return 50.0 * (1 + np.sign(frame.score - frame.base_score))


def minus(frame: pd.DataFrame, other: pd.DataFrame) -> str:
    """The mean difference of two settings' scores over the same prompts and seeds, which is surer than either mean."""
    pairs = frame.merge(other[["prompt", "seed", "score"]], on=["prompt", "seed"], suffixes=("", "_other"))
    return "{:+.3f} ± {:.3f}".format(*interval(pairs.score - pairs.score_other, pairs.prompt))


def distinct(texts: Iterable[str], n: int = 2) -> float:
    """Different n-grams of words as a share of all."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def summary(frame: pd.DataFrame) -> Row:
    """The figures of one setting."""
    different = frame.groupby("seed").answer.apply(distinct).mean()
    of_seeds = wins(frame).groupby(frame.seed).mean()
    return {
        "win rate vs base, %": "{:.1f} ± {:.1f}".format(*interval(wins(frame), frame.prompt)),
        "sd over seeds": f"{of_seeds.std(ddof=1):.1f}" if len(of_seeds) > 1 else "",
        "score": "{:.3f} ± {:.3f}".format(*interval(frame.score, frame.prompt)),
        "KL to base": f"{frame.kl.mean():.2f}",
        "tokens": f"{frame.tokens.mean():.0f}",
        "distinct-2": f"{different:.3f}" if np.isfinite(different) else "",
    }


def _label(method: str, guide: str, alpha: float) -> str:
    if method == "tgdpo":
        return f"TGDPO, guide {guide}, alpha {alpha:g}"
    return method.upper() + (f", guide {guide}" if guide else "")


def methods(results: pd.DataFrame, base: pd.DataFrame) -> list[Row]:
    """Table 1: every method, TGDPO with each guide at alpha 0.5."""
    odd = base[base.prompt % 2 == 1].assign(base_score=lambda frame: frame.score)
    rows = [{"method": "base", "learning rate": ""} | summary(odd) | {"win rate vs base, %": "", "sd over seeds": ""}]
    main = selected(results[results.part == "main"])
    dpo = main[main.method == "dpo"]
    for (method, guide, alpha), frame in main.groupby(["method", "guide", "alpha"], sort=False):
        if method != "tgdpo" or alpha == 0.5:
            rate = f"{frame.learning_rate.iloc[0]:g}"
            row = {"method": _label(method, guide, alpha), "learning rate": rate} | summary(frame)
            rows.append(row | {"score minus DPO's": "" if method == "dpo" else minus(frame, dpo)})
    return rows


def convergence(results: pd.DataFrame, curves: pd.DataFrame) -> list[Row]:
    """Table 2 and the right of Table 3: trained until the loss is low, or as long as the study lets them."""
    rows = []
    curves = curves[curves.part == "convergence"]
    for (method, guide, alpha), frame in selected(results[results.part == "convergence"]).groupby(
        ["method", "guide", "alpha"], sort=False
    ):
        own = curves[(curves.method == method) & (curves.guide == guide) & (curves.alpha == alpha)]
        last = own.sort_values("step").groupby("seed").tail(1)
        rows.append(
            {"method": _label(method, guide, alpha), "steps": f"{last.step.mean():.0f}",
             "last loss": f"{last.loss.mean():.3f}"} | summary(frame)
        )  # fmt: skip
    return rows


def alphas(results: pd.DataFrame, curves: pd.DataFrame) -> list[Row]:
    """Table 3: TGDPO by guide and alpha."""
    rows = []
    main = selected(results[results.part == "main"])
    dpo = main[main.method == "dpo"]
    for (guide, alpha), frame in main[main.method == "tgdpo"].groupby(["guide", "alpha"]):
        rate = frame.learning_rate.iloc[0]
        own = curves[(curves.part == "main") & (curves.method == "tgdpo") & (curves.guide == guide)
                     & (curves.alpha == alpha) & (curves.learning_rate == rate)]  # fmt: skip
        last = own.sort_values("step").groupby("seed").tail(1)
        row = {"guide": guide, "alpha": f"{alpha:g}", "learning rate": f"{rate:g}"}
        row |= {"last loss": f"{last.loss.mean():.3f}", "f below 0, %": f"{100 * own['f/negative'].mean():.1f}"}
        rows.append(row | summary(frame) | {"score minus DPO's": minus(frame, dpo)})
    return rows


def equal_kl(results: pd.DataFrame) -> list[Row]:
    """Score minus what DPO has at the same KL to the base, a column per learning rate; odd prompts.

    DPO's score there lies between those of its two learning rates next to that KL, linear in log KL. Where DPO has no
    such KL, the cell is empty.
    """
    odd = results[(results.part == "main") & (results.prompt % 2 == 1)]
    dpo = [frame for _, frame in odd[odd.method == "dpo"].groupby("learning_rate")]
    rows: dict[str, Row] = {}
    for (method, guide, alpha, rate), frame in odd[odd.method != "dpo"].groupby(
        ["method", "guide", "alpha", "learning_rate"], sort=False
    ):
        row = rows.setdefault(_label(method, guide, alpha), {"method": _label(method, guide, alpha)})
        there = _at_kl(dpo, frame.kl.mean())
        row[f"{rate:g}"] = f"{minus(frame, there)} (KL {frame.kl.mean():.2g})" if there is not None else ""
    return list(rows.values())


def _at_kl(frames: list[pd.DataFrame], kl: float) -> pd.DataFrame | None:
    """Prompt, seed and score of a method at a KL between those of two of its frames."""
    by_kl = sorted(frames, key=lambda frame: frame.kl.mean())
    for low, high in pairwise(by_kl):
        lower, upper = low.kl.mean(), high.kl.mean()
        if lower <= kl <= upper:
            share = np.log(kl / lower) / np.log(upper / lower)
            both = low.merge(high[["prompt", "seed", "score"]], on=["prompt", "seed"], suffixes=("", "_high"))
            return both.assign(score=(1 - share) * both.score + share * both.score_high)
    return None


def guides(results: pd.DataFrame) -> list[Row]:
    """Table 4: what a guide is itself, and what it makes of TGDPO at alpha 0.5."""
    rows = []
    main = selected(results[results.part == "main"])
    for guide, own in selected(results[results.part == "guide"]).groupby("method", sort=False):
        rows.append({"guide": guide, "model": "the guide itself"} | summary(own))
        made = main[(main.method == "tgdpo") & (main.guide == guide) & (main.alpha == 0.5)]
        if len(made):
            rows.append({"guide": guide, "model": "TGDPO with it, alpha 0.5"} | summary(made))
    return rows


def markdown(rows: list[Row]) -> str:
    """A table, without columns that are empty."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
