"""The paper's claims tested in small, with one command that resumes where it was stopped:

    pip install -e '.[study]'
    python benchmarks/study --output study              # stories (with ../shared beside the checkout) and sorting
    python benchmarks/study --output smoke --smoke      # all of it in a small form, on a task of its own

OUTPUT/TASK gets the raw results (raw.py), the tables in report.md, and figures. From raw results, without a run:

    python benchmarks/study --tables-from benchmarks/study/results --output tables      # those of docs/study.md
"""

import argparse
import sys
import time
from pathlib import Path

from figures import curves_by_alpha, frontier
from grid import SMOKE, SORTING, STORIES
from raw import Raw
from report import report
from runs import Study, default_workers

from tgdpo.errors import TgdpoError

SHARED = Path(__file__).resolve().parents[3] / "shared"
GRIDS = {"stories": STORIES, "sorting": SORTING, "smoke": SMOKE}


def main() -> None:
    """Runs the study of each task, or takes its raw results, and writes its report."""
    arguments = _arguments()
    for name in ["smoke"] if arguments.smoke else arguments.task or ["stories", "sorting"]:
        start = time.monotonic()
        folder = arguments.output / name
        try:
            if arguments.tables_from:
                raw = Raw.read(arguments.tables_from / name)
            else:
                study = Study(name, folder, GRIDS[name], arguments.shared)
                study.finish(arguments.workers)
                raw = study.raw()
                raw.write(folder)
        except TgdpoError as error:
            sys.exit(f"study: {error}")
        print(write_report(raw, folder))
        print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes of this start")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tables-from", type=Path, metavar="RAW", help="run nothing: raw results are in RAW/TASK")
    parser.add_argument("--task", choices=["stories", "sorting"], action="append", help="default: both")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with the stories model and its pairs")
    parser.add_argument("--workers", type=int, default=default_workers(), help="runs at a time, one thread each")
    parser.add_argument("--smoke", action="store_true", help="a small task and grid that show that everything works")
    return parser.parse_args()


def write_report(raw: Raw, folder: Path) -> str:
    """Writes tables and figures. Returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    frontier(raw.results, raw.base, raw.about.scale, folder / "frontier.png")
    curves_by_alpha(raw.curves, folder / "curves.png")
    text = report(raw)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
