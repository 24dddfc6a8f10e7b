"""Data, models and addresses from elsewhere: nothing of them runs, reaches out of its place, or reaches a log."""

import ast
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from support import CHAT_ROWS, STANDARD_ROWS, Cli, Models, write_rows

import tgdpo

ROOT = Path(tgdpo.__file__).parent
SECRET = "hf_abcdefghijklmnopqrstuvwxyz0123"
MARK = "zebra"
"""In every hostile text: it must not come back in messages or in the list of rows set aside."""
HOSTILE = [
    f"\x1b[2J\x1b[31m{MARK}",
    f"\x1b]8;;http://evil.example\x07{MARK}\x1b]8;;\x07",
    f"\x9b31m{MARK}",
    f"[red]{MARK}[/red] [link=http://evil.example]{MARK}[/link] [/]",
    f"<script>alert('{MARK}')</script>",
    f'"><img src=x onerror=alert("{MARK}")>',
    "{{ 7 * 7 }} {% for x in range(10**9) %} " + MARK,
    f"%s %n {{0}} {{__class__}} {MARK}",
    f"../../../../etc/passwd {MARK}",
    f"=cmd|'/C {MARK}'!A1",
    f"\u202e{MARK}\u202c \u200b",
    f"{MARK}\x00{MARK}",
    f"{MARK}\r\n\r\ntgdpo: done",
    f"!!python/object/apply:os.system [{MARK}]",
    f"'; DROP TABLE {MARK}; --",
    "Z\u0351\u036b\u0343\u036a" * 40 + MARK,
]


def is_plain(output: str) -> bool:
    """Whether a terminal is sent nothing but text."""
    return all(c.isprintable() or c == "\n" for c in output)


@pytest.fixture(params=["standard", "conversational"])
def scored(
    request: pytest.FixtureRequest, ok: Cli, models: Models, chat_models: Models, tmp_path: Path
) -> tuple[Path, str]:
    """A cache of the hostile texts as prompts, as responses and as what makes a row bad; and what was printed."""
    rows: list[Any] = []
    chat = request.param == "conversational"
    for n, text in enumerate(HOSTILE):
        row = (CHAT_ROWS if chat else STANDARD_ROWS)[n]
        rows += [
            row | {"prompt": [{"role": "user", "content": text}] if chat else text, text: text},
            row | {"chosen": [{"role": "assistant", "content": text, "name": text}] if chat else text},
            row | {"chosen": [{"role": text, "content": "a"}] if chat else {text: text}},
            row | {"rejected": [text] if chat else [{text: text}]},
            text,
        ]
    reference = (chat_models if chat else models).reference
    done = ok("score", "--dataset", write_rows(tmp_path / "rows.jsonl", rows), "--reference", reference,
              "--output", tmp_path / "cache", "--max-set-aside", 1)  # fmt: skip
    counts = json.loads((tmp_path / "cache" / "_manifest.json").read_text())["counts"]
    assert counts["read"] == len(rows) == counts["scored"] + counts["set_aside"]
    assert counts["scored"] >= 2 * len(HOSTILE) - 4
    return tmp_path / "cache", done.stdout + done.stderr


def test_hostile_rows_leave_no_trace_beside_the_shards(scored: tuple[Path, str], ok: Cli) -> None:
    """Messages, manifest and the list of rows set aside tell numbers and reasons."""
    cache, printed = scored
    for told in (printed, (cache / "_manifest.json").read_text(), (cache / "_set_aside.jsonl").read_text()):
        assert MARK not in told
        assert "evil" not in told
        assert is_plain(told)
    assert stat.S_IMODE((cache / "_set_aside.jsonl").stat().st_mode) == stat.S_IMODE(
        (cache / "_manifest.json").stat().st_mode
    )
    assert is_plain(ok("verify", cache).stdout)


def test_hostile_rows_are_shown_as_text(scored: tuple[Path, str], ok: Cli) -> None:
    cache, _ = scored
    pairs = json.loads((cache / "_manifest.json").read_text())["counts"]["scored"]
    shown = [ok("inspect", cache, "--pair", number) for number in range(pairs)]
    assert all(is_plain(each.stdout + each.stderr) for each in shown)
    assert any("[red]" in each.stdout for each in shown), "markup is text"


def test_hostile_names_in_messages(run_cli: Cli, models: Models, tmp_path: Path) -> None:
    """Column names, file names and the manifest's own texts come from elsewhere too."""
    columns = write_rows(tmp_path / "columns.jsonl", [dict.fromkeys(HOSTILE, "a")])
    refused = run_cli("score", "--dataset", columns, "--reference", models.reference, "--output", tmp_path / "out")
    assert refused.code == 1
    assert is_plain(refused.stderr)
    assert refused.stderr.count("\n") == 1


def test_hostile_names_in_a_cache(run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", cache).code == 0
    (cache / "\x1b[31mred.parquet").touch()
    manifest = json.loads((cache / "_manifest.json").read_text())
    for key in ("dataset", "reference", "tokenizer", "created"):
        manifest[key] = HOSTILE[0]
    (cache / "_manifest.json").write_text(json.dumps(manifest))
    for command in (("verify", cache), ("inspect", cache), ("inspect", cache, "--pair", "\x1b[31m")):
        told = run_cli(*command)
        assert is_plain(told.stdout + told.stderr), command


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"])
def test_credentials_of_the_environment_are_written_nowhere(
    name: str, ok: Cli, models: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET)
    cache, run = tmp_path / "cache", tmp_path / "run"
    scored = ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", cache)
    trained = ok("train", "--cache", cache, "--model", models.reference, "--output", run, "--loss", "dpo",
                 "--max-steps", 1)  # fmt: skip
    assert SECRET not in scored.stdout + scored.stderr + trained.stdout + trained.stderr
    for path in (*cache.rglob("*"), *run.rglob("*")):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "address", [f"s3://id:{SECRET}@bucket/cache", f"https://host.example/cache?X-Amz-Signature={SECRET}"]
)
@pytest.mark.parametrize("command", [("verify",), ("inspect",), ("train", "--model", "m", "--output", "o", "--cache")])
def test_credentials_in_addresses_are_refused_and_not_repeated(
    command: tuple[str, ...], address: str, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run_cli(*command, address)
    assert refused.code == 2
    assert "holds credentials" in refused.error
    assert SECRET not in refused.stdout + refused.stderr
    assert list(tmp_path.iterdir()) == []


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_nothing_is_pickled_and_no_text_becomes_code() -> None:
    """Of the package's own modules: no pickle of a file, no yaml.load, no torch.load, no eval or exec."""
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in ("tests", "benchmarks", "build") or ".venv" in str(path.parent):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & FORBIDDEN, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load", "torch.load", "np.load", "numpy.load"), path


def test_only_a_pinned_commit_of_a_model_brings_code(run_cli: Cli, pairs_file: Path, tmp_path: Path) -> None:
    for name in ("someone/model", "someone/model@main", "someone/model@0123abc"):
        refused = run_cli("score", "--dataset", pairs_file, "--reference", name, "--trust-remote-code",
                          "--output", tmp_path / "out")  # fmt: skip
        assert refused.code == 2
        assert "40-digit" in refused.error
