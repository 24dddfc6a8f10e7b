"""tgdpo report: runs side by side."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import opened
from support import Cli, Models


def write_run(folder: Path, records: list[dict[str, Any]], *, finished: bool = True, **settings: Any) -> Path:
    """What `tgdpo train` leaves beside the model."""
    folder.mkdir(parents=True)
    defaults = {"cache": "cache", "model": "model", "output": str(folder), "loss": "tgdpo", "alpha": 0.5, "seed": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(defaults | settings))
    (folder / "run.json").write_text(json.dumps({"identity": {}, "finished": finished}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def falling(steps: int = 20, **more: float) -> list[dict[str, Any]]:
    """A loss that falls, and a held-out one at every tenth step."""
    records = []
    for step in range(1, steps + 1):
        records.append({"step": step, "epoch": step / 10, "loss": 1 / step, "tokens": 100 * step} | more)
        if step % 10 == 0:
            records.append({"step": step, "epoch": step / 10, "eval_loss": 2 / step})
    return records


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A finished run and one that goes on."""
    other = falling(10, **{"rewards/accuracies": 0.75})
    return [
        write_run(tmp_path / "first", falling()),
        write_run(tmp_path / "second", other, finished=False, alpha=1.0, lora_rank=8),
    ]


def test_a_run_of_train(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
       "--output", tmp_path / "cache")  # fmt: skip
    ok("train", "--cache", tmp_path / "cache", "--model", models.reference, "--output", tmp_path / "run",
       "--batch-size", 4, "--logging-steps", 1, "--eval-fraction", 0.2, "--learning-rate", 1e-3)  # fmt: skip
    shown = ok("report", tmp_path / "run", "--html", tmp_path / "page.html").stdout
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "loss" in record)
    assert re.search(rf"rewards/margins +{last['rewards/margins']:.6g}\n", shown)
    with opened(tmp_path / "page.html") as page:
        titles = page.locator("figure h3").all_text_contents()
        assert titles[:3] == ["loss", "rewards/accuracies", "rewards/margins"]
        assert {"f/negative", "grad_norm", "learning_rate"} <= set(titles)
        assert page.locator("figure svg").count() == len(titles)


def test_side_by_side(ok: Cli, runs: list[Path], tmp_path: Path) -> None:
    shown = ok("report", *runs, "--html", tmp_path / "page.html").stdout
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert lines["alpha"] == ["0.5", "1.0"]
    assert lines["lora_rank"] == ["8"]
    assert lines["loss"] == ["0.05", "0.1"]
    assert "tgdpo" in shown  # the setting of the same name
    assert "second (not finished)" in shown
    with opened(tmp_path / "page.html") as page:
        assert page.locator("#table th").all_text_contents() == ["", "first", "second (not finished)"]
        # A line of training and one of held-out pairs for each.
        assert page.locator("#metric-0 svg .mark-line path").count() == 4
        before = page.locator("#metric-0 svg").inner_html()
        page.fill("#smoothing", "0.8")
        page.wait_for_timeout(200)
        smoothed = page.locator("#metric-0 svg").inner_html()
        assert smoothed != before
        page.select_option("#x", "epoch")
        page.wait_for_timeout(200)
        assert page.locator("#metric-0 svg").inner_html() != smoothed


def test_long_runs_are_thinned_and_values_that_are_not_finite_left_out(ok: Cli, tmp_path: Path) -> None:
    records = falling(5000)
    records[7]["loss"] = math.nan
    run = write_run(tmp_path / "long", records)
    ok("report", run, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    with opened(tmp_path / "page.html") as page:
        assert "Every n-th" in page.text_content("figcaption")


def test_runs_of_one_name_are_told_apart(ok: Cli, tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "run", falling()) for part in "ab"]
    shown = ok("report", *folders, "--html", tmp_path / "page.html").stdout
    assert all(str(folder) in shown for folder in folders)


def test_names_and_settings_stay_texts(ok: Cli, tmp_path: Path) -> None:
    attack = "<img src=x onerror='window.pwned=1'>"
    run = write_run(tmp_path / f"a\x1b[31m{attack}".replace("/", ""), falling(**{attack: 1.0}), model=attack)
    shown = ok("report", run, "--html", tmp_path / "page.html").stdout
    assert "\x1b" not in shown
    with opened(tmp_path / "page.html") as page:
        assert page.evaluate("window.pwned === undefined")
        assert page.locator("main img").count() == 0
        assert attack in page.locator("figure h3").all_text_contents()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: (run / "run.json").unlink(), "holds no run"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("no json\n"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "logged nothing"),
        (lambda run: (run / "metrics.jsonl").unlink(), "logged nothing"),
        (lambda run: (run / "config.yaml").write_text("- a"), "damaged"),
        (lambda run: (run / "config.yaml").unlink(), "damaged"),
        (lambda run: (run / "run.json").write_text("[]"), "damaged"),
    ],
)
def test_a_bad_folder_is_one_line(run_cli: Cli, runs: list[Path], tmp_path: Path, change: Any, says: str) -> None:
    change(runs[1])
    result = run_cli("report", *runs, "--html", tmp_path / "page.html")
    assert result.code == 1
    assert says in result.error
    assert not (tmp_path / "page.html").exists()


def test_the_page_needs_a_file_name(run_cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    result = run_cli("report", *runs, "--html", tmp_path)
    assert result.code == 2
    assert "is a folder" in result.error
