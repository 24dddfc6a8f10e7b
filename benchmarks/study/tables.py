"""Tables in the layout of the paper's Tables 1 to 4, from raw results.

Even prompts choose a learning rate per setting (by mean score over all seeds), odd ones make the figures. Intervals are
those of intervals.py; differences to DPO are taken answer by answer, of the same prompt and seed.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from intervals import Estimate, crossed, estimate, holm

SETTING = ["part", "method", "guide", "alpha"]
Row = dict[str, str]


def of_figures(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the prompts that figures are made of."""
    return frame[frame.prompt % 2 == 1]


def selected(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of odd prompts, at the learning rate that even prompts choose."""
    means = results[results.prompt % 2 == 0].groupby([*SETTING, "learning_rate"]).score.mean()
    best = means.reset_index().sort_values("score", ascending=False, kind="stable").drop_duplicates(SETTING)
    return of_figures(results).merge(best[[*SETTING, "learning_rate"]], on=[*SETTING, "learning_rate"])


def wins(frame: pd.DataFrame) -> pd.Series:
    """1 where the answer's score is above the base's, 0.5 where it is equal, in percent."""
    return 50.0 * (1 + np.sign(frame.score - frame.base_score))


def minus(frame: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    """The mean difference of two settings' scores over the same prompts and seeds, which is surer than either mean."""
    pairs = frame.merge(other[["prompt", "seed", "score"]], on=["prompt", "seed"], suffixes=("", "_other"))
    return estimate(crossed(pairs.score - pairs.score_other, pairs))


def distinct(texts: Iterable[str], n: int = 2) -> float:
    """Different n-grams of words as a share of all."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def summary(frame: pd.DataFrame) -> Row:
    """The figures of one setting. What was not kept is empty."""
    different = pd.Series([distinct(texts) for _, texts in frame.answer.dropna().groupby(frame.seed)], dtype=float)
    return {
        "win rate vs base, %": f"{estimate(crossed(wins(frame), frame)):.1f}" if "base_score" in frame else "",
        "score": f"{estimate(crossed(frame.score, frame)):.3f}",
        "KL to base": _known(frame.kl.mean(), ".2f"),
        "tokens": _known(frame.tokens.mean(), ".0f"),
        "distinct-2": _known(different.mean(), ".3f"),
    }


def _known(figure: float, form: str) -> str:
    return f"{figure:{form}}" if pd.notna(figure) else ""


def _label(method: str, guide: str, alpha: float) -> str:
    if method == "tgdpo":
        return f"TGDPO, guide {guide}, alpha {alpha:g}"
    return method.upper() + (f", guide {guide}" if guide else "")


def _against_dpo(dpo: pd.DataFrame, settings: list[tuple[Row, pd.DataFrame]]) -> list[Row]:
    """The rows of a table, with each setting's difference to DPO and its p; the p of one table are corrected."""
    found = [None if frame.method.iloc[0] == "dpo" else minus(frame, dpo) for _, frame in settings]
    ps = iter(holm([difference.p for difference in found if difference]))
    return [
        row | ({"score minus DPO's": f"{difference:+.3f}", "p, Holm": f"{next(ps):.4f}"} if difference else {})
        for (row, _), difference in zip(settings, found, strict=True)
    ]


def methods(results: pd.DataFrame, base: pd.DataFrame) -> list[Row]:
    """Table 1: every method, TGDPO with each guide at alpha 0.5."""
    settings = []
    main = selected(results[results.part == "main"])
    for (method, guide, alpha), frame in main.groupby(["method", "guide", "alpha"], sort=False):
        if method != "tgdpo" or alpha == 0.5:
            rate = f"{frame.learning_rate.iloc[0]:g}"
            row = {"method": _label(method, guide, alpha), "learning rate": rate} | summary(frame)
            settings.append((row, frame))
    of_base = {"method": "base", "learning rate": ""} | summary(of_figures(base))
    return [of_base, *_against_dpo(main[main.method == "dpo"], settings)]


def convergence(results: pd.DataFrame, curves: pd.DataFrame) -> list[Row]:
    """Table 2 and the right of Table 3: trained until the loss is low, or as long as the study lets them."""
    settings = []
    curves = curves[curves.part == "convergence"]
    converged = selected(results[results.part == "convergence"])
    for (method, guide, alpha), frame in converged.groupby(["method", "guide", "alpha"], sort=False):
        own = curves[(curves.method == method) & (curves.guide == guide) & (curves.alpha == alpha)]
        last = own.sort_values("step").groupby("seed").tail(1)
        row = {"method": _label(method, guide, alpha), "steps": f"{last.step.mean():.0f}"}
        settings.append((row | {"last loss": f"{last.loss.mean():.3f}"} | summary(frame), frame))
    return _against_dpo(converged[converged.method == "dpo"], settings)


def alphas(results: pd.DataFrame, curves: pd.DataFrame) -> list[Row]:
    """Table 3: TGDPO by guide and alpha; f's range is that of all steps and seeds."""
    settings = []
    main = selected(results[results.part == "main"])
    for (guide, alpha), frame in main[main.method == "tgdpo"].groupby(["guide", "alpha"]):
        rate = frame.learning_rate.iloc[0]
        own = curves[(curves.part == "main") & (curves.method == "tgdpo") & (curves.guide == guide)
                     & (curves.alpha == alpha) & (curves.learning_rate == rate)]  # fmt: skip
        last = own.sort_values("step").groupby("seed").tail(1)
        row = {"guide": guide, "alpha": f"{alpha:g}", "learning rate": f"{rate:g}"}
        row["last loss"] = f"{last.loss.mean():.3f}"
        row["f, range"] = f"{own['f/min'].min():.2f} to {own['f/max'].max():.2f}"
        settings.append((row | summary(frame), frame))
    return _against_dpo(main[main.method == "dpo"], settings)


def guides(results: pd.DataFrame, rewards: pd.DataFrame) -> list[Row]:
    """Table 4: what a guide is itself, and what it makes of TGDPO at alpha 0.5."""
    rows = []
    first = rewards.guide.iloc[0]
    main = selected(results[results.part == "main"])
    for guide, own in selected(results[results.part == "guide"]).groupby("method", sort=False):
        of_guide = rewards[rewards.guide == guide].iloc[0]
        row = {"guide": guide, "model": "the guide itself", "rms of rewards": _known(of_guide.rms, ".3f")}
        row[f"their correlation with {first}'s"] = _known(of_guide.correlation, ".3f")
        rows.append(row | summary(own))
        made = main[(main.method == "tgdpo") & (main.guide == guide) & (main.alpha == 0.5)]
        if len(made):
            rows.append({"guide": guide, "model": "TGDPO with it, alpha 0.5"} | summary(made))
    return rows


def rates(results: pd.DataFrame) -> list[Row]:
    """Score and KL to the base of every setting, a column per learning rate of one epoch, and to convergence."""
    rows: dict[str, Row] = {}
    shown = of_figures(results[results.part.isin(["main", "convergence"])])
    for (part, method, guide, alpha, rate), frame in shown.groupby([*SETTING, "learning_rate"], sort=False):
        row = rows.setdefault(_label(method, guide, alpha), {"method": _label(method, guide, alpha)})
        column = f"{rate:g}" if part == "main" else f"{rate:g}, to convergence"
        row[column] = f"{frame.score.mean():.3f} (KL {frame.kl.mean():.3g})"
    return list(rows.values())


def markdown(rows: list[Row]) -> str:
    """A table, without columns that are empty."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
