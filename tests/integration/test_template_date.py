"""Chat templates that write the date: one cache, one day, whoever continues it and when."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import CHAT_ROWS, STANDARD_ROWS, Cli, Models, make_tokenizer, published, write_rows

from tgdpo.data.cache import RewardCache
from tgdpo.data.verify import verify
from tgdpo.stages.score import template_day
from tgdpo.stages.score.engines.dummy import DummyEngine
from tgdpo.stages.score.folder import OutputFolder

DATE = "Today Date: {{ strftime_now('%d %b %Y') }}\n"
FIRST, SECOND, THIRD = "2024-12-31", "2025-01-01", "2025-01-02"


@pytest.fixture(scope="module")
def dated(chat_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a template as Llama 3.1's, which writes the date."""
    folder = shutil.copytree(chat_models.reference, tmp_path_factory.mktemp("models") / "dated")
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = DATE + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the day by this machine's clock."""

    def set_to(day: str) -> None:
        monkeypatch.setattr(template_day, "today", lambda: day)

    set_to(FIRST)
    return set_to


@pytest.fixture
def words(dated: Path, tmp_path: Path) -> tuple[object, ...]:
    """A run of four shards."""
    rows = write_rows(tmp_path / "rows.jsonl", CHAT_ROWS)
    return ("score", "--dataset", rows, "--reference", dated, "--engine", "dummy", "--pairs-per-shard", 5, "--output")


def days_of(cache: Path) -> set[str]:
    prompts = [row for part in cache.glob("part-*") for row in pq.read_table(part)["prompt"].to_pylist()]
    return {prompt.splitlines()[0] for prompt in prompts}


def fingerprint_of(cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cache / "_manifest.json").read_text())["fingerprint"]
    return found


def interrupted(run_cli: Cli, words: tuple[object, ...], patch: pytest.MonkeyPatch) -> None:
    """Runs a command that stops within the second shard."""
    with patch.context() as context:
        calls, original = [], DummyEngine.score

        def score(self: DummyEngine, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(self, *arguments)

        context.setattr(DummyEngine, "score", score)
        assert run_cli(*words).code == 130


def without_day(cache: Path) -> None:
    """Makes of a cache what 0.1.0 left, which recorded no day."""
    for name in ("_manifest.json", "_work/settings.json"):
        if (cache / name).exists():
            content = json.loads((cache / name).read_text())
            (content.get("fingerprint") or content).pop("template_date")
            (cache / name).write_text(json.dumps(content))


def test_a_finished_cache_is_done_on_any_day(
    ok: Cli, run_cli: Cli, words: tuple[object, ...], tmp_path: Path, clock: Callable[[str], None]
) -> None:
    cache = tmp_path / "cache"
    ok(*words, cache)
    assert days_of(cache) == {"Today Date: 31 Dec 2024"}
    assert fingerprint_of(cache)["template_date"] == FIRST
    clock(SECOND)
    assert "is finished already" in ok(*words, cache).stderr
    result = run_cli(*words, cache, "--template-date", SECOND)
    assert result.code == 1
    assert f"made with other settings: template_date ({FIRST}, now {SECOND})" in result.error
    result = run_cli(*words, cache, "--max-length", 30)
    assert "made with other settings: max_length (None, now 30)" in result.error
    assert "template_date" not in result.error
    ok(*words, tmp_path / "again", "--template-date", FIRST)
    assert published(tmp_path / "again") == published(cache)
    without_day(cache)
    assert "is finished already" in ok(*words, cache).stderr


def test_stopped_on_one_day_and_continued_on_the_next(
    ok: Cli,
    run_cli: Cli,
    words: tuple[object, ...],
    tmp_path: Path,
    clock: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ok(*words, tmp_path / "whole")
    cache = tmp_path / "cache"
    interrupted(run_cli, (*words, cache), monkeypatch)
    clock(SECOND)
    for path in [*cache.glob("_work/prepared-00003*"), *cache.glob("_work/tokens-00003*")]:
        path.unlink()  # so that something is still to be rendered
    ok(*words, cache)
    assert published(cache) == published(tmp_path / "whole")
    assert verify(RewardCache(cache)) == []


def test_workers_over_midnight(
    ok: Cli, words: tuple[object, ...], tmp_path: Path, clock: Callable[[str], None]
) -> None:
    ok(*words, tmp_path / "whole")
    cache = tmp_path / "cache"
    for number, day in enumerate((FIRST, SECOND, THIRD)):
        clock(day)
        ok(*words, cache, "--worker", f"{number}/3")
    assert published(cache) == published(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["recorded", "claim"])
def test_another_worker_is_first_on_another_day(
    moment: str,
    ok: Cli,
    words: tuple[object, ...],
    tmp_path: Path,
    clock: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While this one hashed its models, and between its last look and its claim: the first day counts."""
    cache = tmp_path / "cache"
    original, others = getattr(OutputFolder, moment), []

    def after_another(self: OutputFolder, *arguments: Any, **options: Any) -> Any:
        found = None if moment == "claim" else original(self, *arguments, **options)
        if not others:
            others.append(1)
            clock(FIRST)
            ok(*words, cache, "--worker", "0/2")
            clock(SECOND)
        return original(self, *arguments, **options) if moment == "claim" else found

    clock(SECOND)
    monkeypatch.setattr(OutputFolder, moment, after_another)
    ok(*words, cache, "--worker", "1/2")
    assert others
    assert days_of(cache) == {"Today Date: 31 Dec 2024"}
    assert verify(RewardCache(cache)) == []


def test_reuse_keeps_the_day(
    ok: Cli, run_cli: Cli, words: tuple[object, ...], dated: Path, tmp_path: Path, clock: Callable[[str], None]
) -> None:
    ok(*words, tmp_path / "cache")
    clock(SECOND)
    reuse = ("score", "--reuse", tmp_path / "cache", "--guidance", dated, "--output")
    ok(*reuse, tmp_path / "reused")
    clock(THIRD)
    assert "is finished already" in ok(*reuse, tmp_path / "reused").stderr
    assert fingerprint_of(tmp_path / "reused")["template_date"] == FIRST
    result = run_cli(*reuse, tmp_path / "other", "--template-date", SECOND)
    assert result.code == 2
    assert f"--template-date {SECOND}: {tmp_path / 'cache'} was made with {FIRST}" in result.error
    ok(*reuse, tmp_path / "same", "--template-date", FIRST)
    assert published(tmp_path / "same") == published(tmp_path / "reused")


def test_an_unfinished_run_without_a_day(
    ok: Cli,
    run_cli: Cli,
    words: tuple[object, ...],
    tmp_path: Path,
    clock: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 0.1.0: it is finished where every row is rendered, else refused, since rows of two days would lie in it."""
    cache = tmp_path / "cache"
    clock(THIRD)
    interrupted(run_cli, (*words, cache), monkeypatch)
    clock(FIRST)
    for path in (cache / "_work").iterdir():
        if path.name not in ("settings.json", "lock"):
            path.unlink()  # 0.1.0 wrote no marks of the fingerprint, and here they would be another's
    for path in cache.glob("part-*"):
        path.unlink()
    without_day(cache)
    result = run_cli(*words, cache)
    assert result.code == 1
    assert "was begun by a tgdpo that did not record its day: use another --output" in result.error
    ok(*words, cache, "--template-date", THIRD)  # nothing was scored: it starts over
    assert days_of(cache) == {"Today Date: 02 Jan 2025"}


def test_plain_text_needs_no_day(
    ok: Cli, words: tuple[object, ...], tmp_path: Path, clock: Callable[[str], None]
) -> None:
    rows = write_rows(tmp_path / "plain.jsonl", STANDARD_ROWS)
    ok("score", "--dataset", rows, *words[3:], tmp_path / "cache")
    assert not days_of(tmp_path / "cache") & {"Today Date: 31 Dec 2024"}
    without_day(tmp_path / "cache")
    assert "is finished already" in ok("score", "--dataset", rows, *words[3:], tmp_path / "cache").stderr


def test_an_option_that_would_do_nothing(
    run_cli: Cli, words: tuple[object, ...], chat_models: Models, tmp_path: Path
) -> None:
    result = run_cli(*words[:4], chat_models.reference, *words[5:], tmp_path / "cache", "--template-date", FIRST)
    assert result.code == 2
    assert f"--template-date {FIRST}: the chat template of {chat_models.reference} writes no date" in result.error
    result = run_cli(*words, tmp_path / "cache", "--template-date", "31.12.2024")
    assert result.code == 2
    assert "write a day as YYYY-MM-DD" in result.error


def test_a_day_in_a_file(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "score.yaml").write_text(f"dataset: a.jsonl\noutput: cache\ntemplate_date: {FIRST}\n")
    shown = run_cli("score", "--config", tmp_path / "score.yaml", "--dry-run")
    assert f"template_date: '{FIRST}'" in shown.stdout
