"""Figures: score against KL, and the curves of training by alpha (the paper's Figure 1)."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from intervals import crossed, estimate
from tables import SETTING, of_figures

mpl.use("Agg")
import matplotlib.pyplot as plt


def frontier(results: pd.DataFrame, base: pd.DataFrame, scale: str, file: Path) -> None:
    """Mean score against mean KL to the base, a point per setting and learning rate; hollow: trained to convergence.

    Bars are the two-way bootstrap's intervals of the score.
    """
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.axhline(of_figures(base).score.mean(), color="black", linewidth=0.8, linestyle=":", label="base")
    shown = of_figures(results[results.part.isin(["main", "convergence"])])
    for number, (name, runs) in enumerate(shown.groupby("method", sort=False)):
        for (part, *_), frame in runs.groupby([*SETTING, "learning_rate"], sort=False):
            score, color = estimate(crossed(frame.score, frame)), f"C{number}"
            axes.vlines(frame.kl.mean(), score.low, score.high, color=color, linewidth=0.7, alpha=0.6)
            axes.plot(
                frame.kl.mean(), score.mean, "D" if name == "tgdpo" else "o", color=color, markersize=5,
                markerfacecolor=color if part == "main" else "white", zorder=4 if name == "dpo" else 3,
            )  # fmt: skip
        axes.plot([], [], "D" if name == "tgdpo" else "o", color=f"C{number}", markersize=5, label=name)
    axes.set(xlabel="KL to the base, nats per answer", ylabel=scale, xscale="log")
    axes.legend(fontsize=8, ncols=2)
    _save(figure, file)


def curves_by_alpha(curves: pd.DataFrame, file: Path) -> None:
    """Loss and accuracy per step of the runs to convergence, means over seeds: DPO is alpha 0."""
    chosen = curves[(curves.part == "convergence") & curves.method.isin(["dpo", "tgdpo"])]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    for alpha, group in chosen.groupby("alpha"):
        means = group.groupby("step")[["loss", "rewards/accuracies"]].mean().rolling(5, min_periods=1).mean()
        label = f"TGDPO, alpha {alpha:g}" if alpha else "DPO"
        for axes, column in zip(panels, means.columns, strict=True):
            axes.plot(means.index, means[column], label=label)
    for axes, name in zip(panels, ("training loss", "training accuracy"), strict=True):
        axes.set(xlabel="step", ylabel=f"{name}, mean of five steps")
    panels[0].legend(fontsize=8)
    _save(figure, file)


def _save(figure: plt.Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)
