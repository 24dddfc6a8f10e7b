"""`tgdpo score --worker i/n`: several workers on one output folder."""

from pathlib import Path

import pytest
from processes import launch
from support import STANDARD_ROWS, Cli, Models, published, write_rows

from tgdpo.stages.score import prepare as preparation


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Sixty rows: some equal, one without a chosen response, one that lost its prompt."""
    rows = [dict(row) for row in STANDARD_ROWS * 3]
    rows[17]["chosen"] = " "
    del rows[40]["prompt"]
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def call(models: Models, rows_file: Path) -> list[object]:
    """A run of twelve shards."""
    return ["score", "--dataset", rows_file, "--reference", models.reference, "--guidance", models.guidance,
            "--pairs-per-shard", 5, "--max-set-aside", 0.1]  # fmt: skip


@pytest.fixture
def whole(ok: Cli, call: list[object], tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of it."""
    ok(*call, "--output", tmp_path / "whole")
    return published(tmp_path / "whole")


def test_one_after_the_other(
    ok: Cli, call: list[object], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prepares all, since the others are not there yet; each scores its share; the last finishes."""
    cache = tmp_path / "cache"
    first = ok(*call, "--output", cache, "--worker", "2/3")
    assert "8 shards are not prepared by other workers yet" in first.stderr
    assert "worker 2/3 is done, others are not" in first.stdout
    monkeypatch.delattr(preparation.ShardBuilder, "add")  # nothing is tokenised any more
    ok(*call, "--output", cache, "--worker", "0/3")
    last = ok(*call, "--output", cache, "--worker", "1/3")
    assert "58 pairs scored, 2 set aside" in last.stdout
    assert published(cache) == whole


def test_at_once(call: list[object], whole: dict[str, bytes], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    workers = [launch(*call, "--output", cache, "--worker", f"{i}/3", log=tmp_path / f"log-{i}") for i in range(3)]
    codes = [worker.wait(300) for worker in workers]
    outputs = [worker.output for worker in workers]
    assert codes == [[0]] * 3, outputs
    assert any("58 pairs scored" in output for output in outputs)
    assert published(cache) == whole


def test_a_plain_run_finishes_what_workers_left(
    ok: Cli, call: list[object], whole: dict[str, bytes], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    ok(*call, "--output", cache, "--worker", "1/4")
    again = ok(*call, "--output", cache, "--worker", "1/4")
    assert "going on: 3 of 3 shards are there" in again.stderr
    assert "reference:" not in again.stderr
    ok(*call, "--output", cache)
    assert published(cache) == whole


def test_a_preparation_that_was_stopped_goes_on(
    ok: Cli, run_cli: Cli, call: list[object], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the seventh shard; the restart tokenises only what is missing."""
    original = preparation.ShardBuilder.add
    sizes: list[int] = []

    def counted(self: object, batch: list[object]) -> None:
        sizes.append(len(batch))
        if len(sizes) == 7:
            raise KeyboardInterrupt
        original(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation.ShardBuilder, "add", counted)
    assert run_cli(*call, "--output", tmp_path / "cache").code == 130
    prepared = len(list((tmp_path / "cache" / "_work").glob("prepared-*")))
    assert prepared in (5, 6)
    ok(*call, "--output", tmp_path / "cache")
    assert len(sizes) == 7 + 12 - prepared
    assert published(tmp_path / "cache") == whole


class TestRefusals:
    """Whoever prepared the rows, they are held to the same rules."""

    def test_more_shards_than_names(
        self, run_cli: Cli, call: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preparation, "MAX_SHARDS", 11)
        assert "--pairs-per-shard 5 makes more than 11 shards" in run_cli(*call, "--output", tmp_path / "c").error

    def test_mixed_forms_in_different_shares(self, run_cli: Cli, chat_models: Models, tmp_path: Path) -> None:
        chat = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello"}],
                "rejected": [{"role": "assistant", "content": "No"}]}  # fmt: skip
        rows = write_rows(tmp_path / "mixed.jsonl", [STANDARD_ROWS[0], chat])
        call = ("score", "--dataset", rows, "--reference", chat_models.reference, "--output", tmp_path / "cache",
                "--pairs-per-shard", 1)  # fmt: skip
        for worker in ("1/2", "0/2"):
            result = run_cli(*call, "--worker", worker)
            assert result.code == 1
            assert "row 0 is standard (plain text), row 1 is conversational" in result.error

    def test_too_many_set_aside_over_all_shares(
        self, run_cli: Cli, models: Models, rows_file: Path, tmp_path: Path
    ) -> None:
        call = ("score", "--dataset", rows_file, "--reference", models.reference, "--output", tmp_path / "cache",
                "--pairs-per-shard", 5)  # fmt: skip
        for worker in ("1/2", "0/2"):
            assert "2 of 60 rows cannot be used" in run_cli(*call, "--worker", worker).error

    @pytest.mark.parametrize("worker", ["2/2", "1", "-1/2", "a/b", "1/0"])
    def test_no_such_worker(self, worker: str, run_cli: Cli, call: list[object], tmp_path: Path) -> None:
        result = run_cli(*call, "--output", tmp_path / "cache", f"--worker={worker}")
        assert result.code == 2
        assert f"--worker {worker}: write i/n" in result.error

    def test_other_settings_while_others_may_be_at_work(self, run_cli: Cli, call: list[object], tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        run_cli(*call, "--output", cache, "--worker", "0/2")
        refused = run_cli(*call, "--output", cache, "--worker", "1/2", "--max-length", 20)
        assert "max_length (None, now 20)" in refused.error
