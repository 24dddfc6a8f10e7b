"""The tables of a study as Markdown, from its raw results: those of docs/study.md are these."""

from raw import Raw
from tables import SETTING, alphas, convergence, guides, markdown, methods, of_figures, rates, selected

LEGEND = (
    "Cells: mean [95 % interval over prompts and seeds, two-way bootstrap] ± half the 95 % t interval over the seeds' "
    "means; a single run has no ±. p: of no difference to DPO, from the bootstrap, corrected by Holm's method over the "
    "table."
)


def counts(raw: Raw) -> str:
    """How much was run and asked, and how many settings ended at the edge of the grid; all of it counted."""
    results, main = raw.results, raw.results[raw.results.part == "main"]
    runs = len(results.groupby(["part", "method", "guide", "alpha", "learning_rate", "seed"]))
    seeds, prompts, shown = results.seed.nunique(), results.prompt.nunique(), of_figures(results).prompt.nunique()
    chosen = selected(main).groupby(SETTING).learning_rate.first()
    return (
        f"{runs} runs with {seeds} seeds on {raw.about.pairs:,} pairs. "
        f"Of {prompts} held-out prompts, {prompts - shown} choose the learning rates and the other {shown} make the "
        f"tables: {seeds * shown:,} answers per setting. "
        f"{(chosen == main.learning_rate.max()).sum()} of {len(chosen)} settings choose the largest learning rate."
    )


def tables(raw: Raw) -> dict[str, str]:
    """The tables by their headings."""
    rows = {
        "Methods (Table 1)": methods(raw.results, raw.base),
        "To convergence (Table 2)": convergence(raw.results, raw.curves),
        "Alpha (Table 3)": alphas(raw.results, raw.curves),
        "Guides (Table 4)": guides(raw.results, raw.guides),
        "Every learning rate": rates(raw.results),
    }
    return {heading: markdown(table) for heading, table in rows.items()}


def report(raw: Raw) -> str:
    """All of it."""
    parts = [f"# {raw.about.task}: {raw.about.scale}", counts(raw), LEGEND]
    for heading, table in tables(raw).items():
        parts += [f"### {heading}", table]
    return "\n\n".join(parts) + "\n"
