"""The paper's claims tested in small, with one command that goes on where it was stopped:

    pip install -e '.[study]'
    python benchmarks/study --output study              # stories (with ../shared beside the checkout) and sorting
    python benchmarks/study --output smoke --smoke      # all of it in a small form, on a task of its own

Raw results lie in OUTPUT/TASK/results.parquet (a row per run and prompt) and curves.parquet (a row per run and step),
tables in OUTPUT/TASK/report.md, figures beside it.
"""

import argparse
import sys
import time
from pathlib import Path

from figures import curves_by_alpha, frontier
from grid import SMOKE, SORTING, STORIES
from runs import Study, default_workers
from tables import alphas, convergence, equal_kl, guides, markdown, methods

from tgdpo.errors import TgdpoError

SHARED = Path(__file__).resolve().parents[3] / "shared"
GRIDS = {"stories": STORIES, "sorting": SORTING, "smoke": SMOKE}


def main() -> None:
    """Runs the study of each task and writes its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--task", choices=["stories", "sorting"], action="append", help="default: both")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with the stories model and its pairs")
    parser.add_argument("--workers", type=int, default=default_workers(), help="runs at a time, one thread each")
    parser.add_argument("--smoke", action="store_true", help="a small task and grid that show that everything works")
    arguments = parser.parse_args()
    for name in ["smoke"] if arguments.smoke else arguments.task or ["stories", "sorting"]:
        start = time.monotonic()
        study = Study(name, arguments.output / name, GRIDS[name], arguments.shared)
        try:
            study.finish(arguments.workers)
        except TgdpoError as error:
            sys.exit(f"study: {error}")
        print(report(study))
        print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes of this start")


def report(study: Study) -> str:
    """Writes raw results, figures and tables. Returns the tables."""
    results, base, curves = study.results(), study.base_results(), study.curves()
    for name, frame in (("results", results), ("curves", curves)):
        frame.to_parquet(study.folder / f"{name}.parquet", index=False, compression="zstd", compression_level=19)
    task = study.task()
    frontier(results, base, task.scale, study.folder / "frontier.png")
    curves_by_alpha(curves, study.folder / "curves.png")
    grid = study.grid
    runs = len(grid.specs()) + len(grid.guide_specs())
    prompts = results.prompt.nunique()
    parts = [
        f"# {task.name}: {task.scale}",
        f"{runs} runs ({grid.seeds} seeds), {min(grid.pairs, len(task.pairs.read_bytes().splitlines()))} pairs, last "
        f"checkpoint of each. One answer per prompt and seed; learning rates chosen on {(prompts + 1) // 2} prompts, "
        f"figures from {prompts // 2} others. ± is half of a 95 % interval over prompts.",
        "## Methods (the paper's Table 1)", markdown(methods(results, base)),
        "## To convergence (Table 2)", markdown(convergence(results, curves)),
        "## Alpha (Table 3)", markdown(alphas(results, curves)),
        "## Guides (Table 4)", markdown(guides(results)),
    ]  # fmt: skip
    if len(grid.learning_rates) > 1:
        parts += ["## Score minus DPO's at the same KL, by learning rate", markdown(equal_kl(results))]
    text = "\n\n".join(parts) + "\n"
    (study.folder / "report.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
