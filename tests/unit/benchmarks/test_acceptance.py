"""The acceptance's runner: whatever an item does is a line, and never an end."""

import os
import re
import signal
import subprocess
import time
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

Line = dict[str, Any]


@pytest.fixture
def context(tmp_path: Path) -> Any:
    return import_module("acceptance.item").Context(
        small=True, lines=tmp_path / "lines.jsonl", card={}, folder=tmp_path
    )


def fine(_: Any) -> Line:
    return {"figure": 1.5}


def skips(_: Any) -> Line:
    raise import_module("acceptance.item").SkippedError("not on a Sunday")


def raises(_: Any) -> Line:
    raise ValueError("a first line\nand a second")


def found_wrong(_: Any) -> Line:
    raise import_module("acceptance.item").ItemError("3 of 7 failed", {"failed": 3})


def crashes(_: Any) -> Line:
    os.write(1, b"last words\n")
    os._exit(3)


def is_killed(_: Any) -> Line:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(context: Any) -> Line:
    """With a process of its own that hangs too."""
    child = subprocess.Popen(["sleep", "60"])
    context.lines.with_name("pid").write_text(str(child.pid))
    time.sleep(60)
    return {}


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (fine, {"status": "ok", "figure": 1.5}),
        (skips, {"status": "skipped", "reason": "not on a Sunday"}),
        (raises, {"status": "failed", "reason": "ValueError: a first line"}),
        (found_wrong, {"status": "failed", "reason": "3 of 7 failed", "failed": 3}),
        (crashes, {"status": "failed", "reason": "ended with exit code 3", "detail": "last words\n"}),
        (is_killed, {"status": "failed", "reason": "killed by SIGKILL"}),
    ],
)
def test_an_outcome(work: Any, expected: Line, context: Any) -> None:
    item = import_module("acceptance.item").Item("one", work, 30, "group")
    outcome = import_module("acceptance.child").run_item(item, context, 30, "fork")
    assert outcome | expected == outcome
    assert outcome["seconds"] < 30


def test_a_time_limit_ends_all_that_an_item_has_started(context: Any) -> None:
    item = import_module("acceptance.item").Item("one", hangs, 2, "group")
    outcome = import_module("acceptance.child").run_item(item, context, 2, "fork")
    assert (outcome["status"], outcome["reason"]) == ("timeout", "killed after 2 s")
    state = Path(f"/proc/{context.lines.with_name('pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_rest_of_a_stage_runs_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, item = import_module("acceptance.run"), import_module("acceptance.item")
    items = [
        item.Item("wrong", raises, 30, "group"),
        item.Item("card-only", fine, 30, "group", needs=("cuda",)),
        item.Item("absent", fine, 30, "group", needs=("no_such_package",)),
        item.Item("right", fine, 30, "group"),
    ]
    monkeypatch.setattr(run, "STAGES", {"A": items})
    monkeypatch.setattr(run, "preload", lambda **_: None)
    run.run_stage("A", tmp_path / "out", seconds=100, small=True)
    lines = item.read_lines(tmp_path / "out" / "stage-A.jsonl")
    assert [(line["item"], line["status"], line.get("reason")) for line in lines] == [
        ("card", "ok", None),
        ("wrong", "failed", "ValueError: a first line"),
        ("card-only", "skipped", "needs CUDA"),
        ("absent", "skipped", "no_such_package is not installed"),
        ("right", "ok", None),
    ]
    run.run_stage("A", tmp_path / "out", seconds=1, small=True, only=["right"])
    lines = item.read_lines(tmp_path / "out" / "stage-A.jsonl")
    assert [(line["item"], line.get("reason")) for line in lines[5:]] == [("card", None), ("right", "no time left")]


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA T4", None),
    ],
)
def test_a_card_by_the_drivers_name(name: str, gpu: str | None) -> None:
    found = import_module("acceptance.card").known_gpu(name)
    assert (found.name if found else None) == gpu


def test_a_table_of_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    item, tables = import_module("acceptance.item"), import_module("acceptance.tables")
    about = {"stage": "B", "group": "A step", "card": "NVIDIA H100"}
    figures = {"status": "ok", "seconds": 9.0, "flops_a_step": 1e12}
    for line in (
        {"item": "card", "stage": "B", "status": "ok", "card": "NVIDIA H100", "versions": {"torch": "2.11.0"}},
        about | figures | {"item": "ours", "seconds_a_step": 0.5},
        about | figures | {"item": "two-models", "seconds_a_step": 1.0, "flops_a_step": 2.5e12},
        about | figures | {"item": "two-models", "seconds_a_step": 1.25, "flops_a_step": 2.5e12},
        about | {"item": "three-models", "status": "timeout", "seconds": 90.0, "reason": "killed after 90 s"},
    ):
        item.write_line(tmp_path / "stage-B.jsonl", line)
    rows = tables.tables(tmp_path).splitlines()
    assert rows[0] == "## Stage B: NVIDIA H100"
    assert [row for row in rows if "two-models" in row] == ["| two-models | 2.5e+12 | 1.250 | 2.500 | 2.500 | ok |"]
    assert "| three-models |  |  |  |  | timeout: killed after 90 s |" in rows


def test_a_wheel_is_used_where_its_package_is_missing_or_older(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = import_module("acceptance.bare")
    installed = {"pydantic": "2.14.3", "typing_extensions": "4.9.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise bare.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(bare.importlib.metadata, "version", version)
    wheels = ["pydantic-2.14.3-py3-none-any.whl", "typing_extensions-4.16.0-py3-none-any.whl", "dill-0.4.1-py3.whl"]
    assert [bare._is_wanted(wheel) for wheel in wheels] == [False, True, True]


def test_what_a_card_needs_is_what_the_package_depends_on() -> None:
    bare = import_module("acceptance.bare")
    project = tomllib.loads((bare.ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[>=<]", requirement)[0] for requirement in project["dependencies"]}
    modules = {{"huggingface-hub": "huggingface_hub", "pyyaml": "yaml"}.get(name, name) for name in packages}
    assert modules - set(bare.NEEDED) == {"vl-convert-python"}, "which draws pictures of rewards and nothing else"


def test_the_pack_holds_what_runs_on_a_card(tmp_path: Path) -> None:
    import_module("gpu_pack").copy_checkout(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"stages/flex.py", "benchmarks/gpu_check.py", "tests/gpu/test_flex.py", "tests/support.py", "pyproject.toml",
            "benchmarks/acceptance/bare.py", "stages/inspect/page.html"} <= names  # fmt: skip
    assert not [name for name in names if name.startswith(("docs/", "tests/integration/", "benchmarks/study/"))]
