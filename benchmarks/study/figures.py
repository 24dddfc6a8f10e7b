"""Figures: score against KL, and the curves of training by alpha (the paper's Figure 1)."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt


def frontier(results: pd.DataFrame, base: pd.DataFrame, scale: str, file: Path) -> None:
    """Mean score against mean KL to the base, a point per method, learning rate and setting, means over seeds; DPO's
    learning rates are joined."""
    main = results[(results.part == "main") & (results.prompt % 2 == 1)]
    points = main.groupby(["method", "guide", "alpha", "learning_rate"])[["kl", "score"]].mean().reset_index()
    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.axhline(base[base.prompt % 2 == 1].score.mean(), color="black", linewidth=0.8, linestyle=":", label="base")
    for number, (name, group) in enumerate(points.groupby("method", sort=False)):
        marker = "D" if name == "tgdpo" else "o"
        axes.scatter(group.kl, group.score, label=name, marker=marker, color=f"C{number}", s=26)
        if name == "dpo":
            by_kl = group.sort_values("kl")
            axes.plot(by_kl.kl, by_kl.score, color=f"C{number}", linewidth=0.8)
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
