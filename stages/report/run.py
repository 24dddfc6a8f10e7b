"""`tgdpo report`: runs as a table on stdout and as a page."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..console import printable, stdout
from ..page.document import packed, write_page
from .charts import figures
from .runs import Run, read_runs, shown_settings

_METRICS = ("step", "epoch", "loss", "rewards/accuracies", "rewards/margins", "f/negative", "grad_norm", "tokens",
            "tokens_per_second", "eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")  # fmt: skip


def report(folders: list[str], html: Path) -> None:
    """Prints settings and last metrics of the runs and writes a page with their curves.

    Raises:
        TrainingError: a folder holds no run that has logged anything.
        UsageError: the page cannot be written.
    """
    runs = read_runs(folders)
    write_runs_page(html, runs)
    console = stdout()
    console.print(_table(runs), soft_wrap=not console.is_terminal)
    console.print(f"\n{html}: {len(runs)} runs; open it in a browser", markup=False, soft_wrap=True)


def write_runs_page(path: Path, runs: list[Run]) -> None:
    """The curves of `runs` in one file."""
    content = {
        "runs": [{"name": printable(run.name), "finished": run.finished} for run in runs],
        "settings": {name: [printable(value) for value in values] for name, values in shown_settings(runs).items()},
        "metrics": _last_metrics(runs),
        "figures": figures([_printable(run) for run in runs]),
    }
    title = f"Runs {', '.join(run.name for run in runs)}" if len(runs) > 1 else f"Run {runs[0].name}"
    write_page(path, __package__ or "", title=printable(title), payload=packed(content))


def _printable(run: Run) -> Run:
    return Run(name=printable(run.name), settings=run.settings, records=run.records, finished=run.finished)


def _last_metrics(runs: list[Run]) -> dict[str, list[str]]:
    last = [run.last for run in runs]
    return {name: [_shown(each.get(name)) for each in last] for name in _METRICS if any(name in each for each in last)}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def _table(runs: list[Run]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for run in runs:
        name = run.name + ("" if run.finished else " (not finished)")
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    for part in (shown_settings(runs), _last_metrics(runs)):
        table.add_section()
        for name, values in part.items():
            table.add_row(Text(printable(name)), *(Text(printable(value)) for value in values))
    return table
