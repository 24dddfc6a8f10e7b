"""tgdpo inspect as a user types it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli, Models, make_tokenizer

from tgdpo import RewardCache, ScoreConfig, score


@pytest.fixture(scope="module")
def cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twenty pairs of plain text, scored, and a row that was set aside."""
    from support import STANDARD_ROWS, write_rows

    folder = tmp_path_factory.mktemp("inspect")
    rows = [*STANDARD_ROWS, STANDARD_ROWS[0] | {"chosen": ""}]
    config = ScoreConfig(
        dataset=str(write_rows(folder / "pairs.jsonl", rows)),
        reference=str(models.reference),
        guidance=str(models.guidance),
        output=str(folder / "cache"),
        max_set_aside=0.1,
    )
    score(config)
    return folder / "cache"


def rows_of(cache: Path) -> list[dict[str, Any]]:
    opened = RewardCache(cache)
    return [row for group in opened.row_groups for row in opened.read_row_group(group).to_pylist()]


def margin(row: dict[str, Any]) -> float:
    return sum(row["chosen_rewards"]) - sum(row["rejected_rewards"])


def test_the_summary(ok: Cli, cache: Path) -> None:
    shown = ok("inspect", cache).stdout
    assert "20 of 21 rows read" in shown
    assert "1 (1 empty" in shown
    assert "statistics from all 20 pairs" in shown
    accuracy = np.mean([margin(row) > 0 for row in rows_of(cache)])
    assert f"accuracy of the guide: {accuracy:.1%}" in shown
    for part in ("mean reward by position", "f of tokens at alpha 0.5", "most liked tokens", "pair 0,"):
        assert part in shown
    assert "\x1b" not in shown


def test_f_is_at_the_alpha_that_was_given(ok: Cli, cache: Path) -> None:
    shown = ok("inspect", cache, "--alpha", 3, "--beta-r", 2, "--f-shape", "sigmoid", "--f-clip", 0.5).stdout
    assert "f of tokens at alpha 3, beta_r 2, sigmoid, clip 0.5" in shown
    found = json.loads(ok("inspect", cache, "--alpha", 3, "--beta-r", 2, "--json").stdout)["f"]
    rewards = np.concatenate([row["chosen_rewards"] for row in rows_of(cache)])
    assert found["chosen"]["mean"] == pytest.approx((1 + 6 * rewards).mean())
    assert found["chosen"]["negative"] == pytest.approx((1 + 6 * rewards < 0).mean())


def test_pairs_by_number_and_by_name(ok: Cli, cache: Path) -> None:
    name = rows_of(cache)[3]["pair_id"]
    shown = ok("inspect", cache, "--pair", name, "--pair", 5).stdout
    assert f"pair 3, {name}, source row 3" in shown
    assert "pair 5, " in shown
    assert "pair 0, " not in shown


@pytest.mark.parametrize(("sort", "sign"), [("accuracy", 1), ("margin", -1)])
def test_sort_and_limit(ok: Cli, cache: Path, sort: str, sign: int) -> None:
    expected = sorted(range(20), key=lambda n: sign * margin(rows_of(cache)[n]))
    found = json.loads(ok("inspect", cache, "--sort", sort, "--limit", 4, "--json").stdout)["pairs"]
    assert [pair["number"] for pair in found] == expected[:4]
    shown = ok("inspect", cache, "--sort", sort, "--limit", 4).stdout
    places = [shown.index(f"pair {number}, ") for number in expected[:4]]
    assert places == sorted(places)


def test_json_holds_the_tokens_of_a_pair(ok: Cli, cache: Path) -> None:
    content = json.loads(ok("inspect", cache, "--json", "--pair", 2).stdout)
    row = rows_of(cache)[2]
    (pair,) = content["pairs"]
    tokens = pair["chosen"]
    assert "".join(token["text"] for token in tokens) == row["chosen"] + "</s>"
    assert [token["id"] for token in tokens] == row["chosen_ids"]
    np.testing.assert_allclose([token["reward"] for token in tokens], row["chosen_rewards"])
    guide = np.array(row["chosen_ref_logps"]) + row["chosen_rewards"]
    np.testing.assert_allclose([token["guide_logp"] for token in tokens], guide)
    assert content["cache"]["set_aside_reasons"] == {"empty response": 1}
    assert json.loads(ok("inspect", cache, "--json").stdout)["pairs"] == []


def test_no_pairs_where_none_are_asked_for(ok: Cli, cache: Path) -> None:
    assert "pair 0" not in ok("inspect", cache, "--limit", 0).stdout


def test_tokens_are_coloured_on_a_terminal(ok: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[38;2;0;0;0;48;2;" in ok("inspect", cache).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    shown = ok("inspect", cache).stdout
    assert "48;2;" not in shown
    assert "[++" in shown


def test_lines_are_not_broken_for_another_program(ok: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "of the pairs, whose summed rewards prefer chosen\n" in ok("inspect", cache).stdout


def test_an_encoding_without_the_characters_is_no_error(run_process: Cli, cache: Path) -> None:
    import os

    result = run_process("inspect", cache, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert result.code == 0, result.stderr
    assert result.stdout.isascii()


class TestWithoutTheTokenizer:
    """The cache's own is not there any more."""

    @pytest.fixture
    def lonely(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        folder = shutil.copytree(cache, tmp_path / "cache")
        manifest = json.loads((folder / "_manifest.json").read_text())
        (folder / "_manifest.json").write_text(json.dumps(manifest | {"tokenizer": str(tmp_path / "gone")}))
        return folder

    def test_tokens_are_shown_by_their_ids(self, ok: Cli, lonely: Path) -> None:
        result = ok("inspect", lonely, "--pair", 0)
        assert "20 of 21 rows read" in result.stdout
        assert f"<{rows_of(lonely)[0]['chosen_ids'][0]}>" in result.stdout
        assert "--tokenizer" in result.stderr
        (pair,) = json.loads(ok("inspect", lonely, "--json", "--limit", 1).stdout)["pairs"]
        assert {token["text"] for token in pair["chosen"]} == {None}

    def test_it_can_be_named(self, ok: Cli, lonely: Path, models: Models) -> None:
        result = ok("inspect", lonely, "--tokenizer", models.reference)
        assert "</s>" in result.stdout
        assert result.stderr == ""

    def test_another_one_is_refused(self, run_cli: Cli, lonely: Path, tmp_path: Path) -> None:
        make_tokenizer(chat=False, vocabulary=300).save_pretrained(tmp_path / "other")
        result = run_cli("inspect", lonely, "--tokenizer", tmp_path / "other")
        assert result.code == 1
        assert "another vocabulary" in result.error


def test_a_cache_without_guidance(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "refs")
    shown = ok("inspect", tmp_path / "refs").stdout
    assert "scored without guidance" in shown
    assert "accuracy" not in shown
    content = json.loads(ok("inspect", tmp_path / "refs", "--json").stdout)
    assert content["cache"]["reward_kind"] == "none"
    assert content["statistics"].keys() == {"sample", "ref_logps"}
    assert content["f"] is None


def test_a_pair_that_is_not_there(run_cli: Cli, cache: Path) -> None:
    result = run_cli("inspect", cache, "--pair", 20)
    assert result.code == 1
    assert "0 to 19" in result.error


def test_statistics_do_not_load_torch(run_process: Cli, cache: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tgdpo import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "inspect", str(cache)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
