"""Locales that are not UTF-8: text files are UTF-8 all the same, output degrades, nothing ends in a traceback."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from locales import LOCALES, run_in
from support import STANDARD_ROWS, Models, write_rows

from tgdpo import ScoreConfig, score

ROOT = Path(__file__).parents[2]
NAME = "数据 é.jsonl"
"""A name that Latin-1 lacks in part, and ASCII as a whole."""


def make_caches(folder: Path, models: Models) -> None:
    """Caches of a preference set of that name, and of one whose name is no valid text, as 0.1.0 took it in C."""
    rows = [{**row, "prompt": f"数据 é {row['prompt']}"} for row in STANDARD_ROWS]
    dataset = write_rows(folder / NAME, rows)
    score(ScoreConfig(dataset=str(dataset), reference=str(models.reference), output=str(folder / "cache")))
    shutil.copytree(folder / "cache", folder / "invalid")
    manifest = json.loads((folder / "invalid" / "_manifest.json").read_bytes()) | {"dataset": "\udce6.jsonl"}
    (folder / "invalid" / "_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("locale", LOCALES)
def test_a_locale_that_is_not_utf8(locale: str, models: Models, tmp_path: Path) -> None:
    make_caches(tmp_path, models)
    (tmp_path / "c.yaml").write_text(f"train:\n  project: 项目\nscore:\n  dataset: {NAME}\n", encoding="utf-8")
    train = ["train", "--model", str(models.reference), "--loss", "dpo", "--cache", "cache", "--output"]
    fine = [
        *(["--help"], ["train", "--help"], ["score", "--help"], ["inspect", "--help"], ["report", "--help"]),
        [*train, "run"],
        [*train, "other", "--cache", "invalid"],
        [*train, "new", "--config", "c.yaml", "--dry-run"],
        ["report", "run", "--html", "report.html"],
        ["inspect", "cache"],
        ["inspect", "cache", "--pair", "0"],
        ["inspect", "cache", "--json"],
        ["inspect", "cache", "--html", "page.html"],
        ["inspect", "invalid", "--html", "other.html"],
        ["verify", "cache"],
        ["env"],
    ]
    # One line, whether the name can be written in the locale or not: libraries would write it in another way.
    refused = [
        ["verify", "缺"],
        [*train, "策略"],
        ["train", "--cache", "缺", "--model", "m", "--output", "o"],
        ["score", "--dataset", NAME, "--reference", str(models.reference), "--output", "缓存"],
        ["score", "--dataset", NAME, "--reference", "模型", "--output", "o"],
        ["inspect", "cache", "--pair", "对"],
        ["report", "缺"],
        ["train", "--beta", "é"],
        ["run", "缺.yaml"],
        ["训练"],
    ]
    answers = run_in(locale, fine + refused, tmp_path)
    if answers is None:
        pytest.skip(f"{locale} cannot be made here")
    for command, (code, _, errors) in zip(fine + refused, answers, strict=True):
        assert b"Traceback" not in errors, (command, errors.decode(errors="replace"))
        assert code == 0 if command in fine else code in (1, 2), (command, errors)
        assert command in fine or len(errors.splitlines()) == 1, (command, errors)
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert NAME in card
    assert r"\udce6.jsonl" in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["finished"]
    for page in ("report.html", "page.html", "other.html"):
        assert "<html" in (tmp_path / page).read_text(encoding="utf-8")
    assert not (tmp_path / "o").exists()


def in_text(call: ast.Call) -> bool:
    """Whether a call opens a file, or reads a process, as text in the locale's encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in ("write_text", "read_text", "TextIOWrapper") or "universal_newlines" in named:
        return True
    if isinstance(named.get("text"), ast.Constant) and named["text"].value is True:
        return True
    modes = [arg.value for arg in (*call.args, *named.values()) if isinstance(arg, ast.Constant)]
    modes = [mode for mode in modes if isinstance(mode, str) and set(mode) <= set("rwaxbt+")]
    if name in ("open", "fdopen", "NamedTemporaryFile") and "os.open" not in ast.unparse(call.func):
        # A path's open() and the built-in one read text by default; those of file systems, given a name, bytes.
        is_text = bool(modes) and "b" not in modes[0]
        return is_text or (not modes and (isinstance(call.func, ast.Name) or not call.args) and name == "open")
    return False


def test_every_text_file_names_its_encoding() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in ("tests", "build") or ".venv" in str(path.parent):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
        wrong += [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls if in_text(call)]
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "is_one"),
    [
        ("path.write_text(text)", True),
        ("path.read_text()", True),
        ("path.open()", True),
        ("path.open('a')", True),
        ("open(name)", True),
        ("open(name, 'r+')", True),
        ("subprocess.run(command, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("open(name, mode='wb')", False),
        ("files.open(name, 'rb')", False),
        ("files.open(name)", False),
        ("os.open(name, os.O_RDONLY)", False),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_what_counts_as_one_without(call: str, is_one: bool) -> None:
    (node,) = ast.parse(call).body
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Call)
    assert in_text(node.value) == is_one
