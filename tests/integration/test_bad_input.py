"""Bad input through the command line: one line that says what was set and what to do, and nothing half-written."""

import importlib.util
import itertools
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import transformers
from corpus.templates import NO_SYSTEM
from support import (
    CHAT_ROWS,
    CHAT_TEMPLATE,
    STANDARD_ROWS,
    Cli,
    Models,
    make_model,
    make_tokenizer,
    write_rows,
)

from tgdpo import ScoreConfig, score

ROW = {"prompt": "A zebra said:", "chosen": " the zebra runs", "rejected": " the zebra sleeps"}
"""A good row; the word in it must not show up in any message."""

USER = {"role": "user", "content": "A zebra said:"}
RUNS = {"role": "assistant", "content": "The zebra runs."}
SLEEPS = {"role": "assistant", "content": "The zebra sleeps."}
CHAT_ROW = {"prompt": [USER], "chosen": [RUNS], "rejected": [SLEEPS]}


@pytest.fixture(scope="session")
def unloadable(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models whose weights cannot be loaded: what is said about the data is said before any model is."""
    return without_weights(models, tmp_path_factory.mktemp("unloadable"))


@pytest.fixture(scope="session")
def unloadable_chat(chat_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The same with a chat template."""
    return without_weights(chat_models, tmp_path_factory.mktemp("unloadable_chat"))


def without_weights(models: Models, folder: Path) -> Models:
    for name in ("reference", "guidance"):
        shutil.copytree(getattr(models, name), folder / name)
        safetensors.torch.save_file({}, folder / name / "model.safetensors")
    return Models(folder / "reference", folder / "guidance")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub names are not looked up, so that nothing waits for a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


Refused = Callable[..., str]


@pytest.fixture
def refused(run_cli: Cli) -> Refused:
    """A call that must fail with `code` and one line on stderr that holds all of `says`; it returns the line."""

    def call(*arguments: object, code: int, says: list[str]) -> str:
        result = run_cli(*arguments)
        assert result.code == code, result.stderr
        assert result.stdout == ""
        assert result.stderr.splitlines() == [result.error]
        for part in says:
            assert part in result.error
        assert "zebra" not in result.error
        return result.error

    return call


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the run would write."""
    return tmp_path / "output"


@pytest.fixture
def score_refused(refused: Refused, unloadable: Models, output: Path) -> Refused:
    """`tgdpo score` of a data set that must be refused before a model is loaded, and leave nothing."""

    def call(dataset: object, *options: object, reference: Path | None = None, **expected: Any) -> str:
        model = reference or unloadable.reference
        line = refused("score", "--dataset", dataset, "--reference", model, "--output", output, *options, **expected)
        assert not output.exists()
        return line

    return call


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def counts(cache: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((cache / "_manifest.json").read_text())["counts"]
    return found


def rows_of(cache: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(sorted(cache.glob("*.parquet"))[0]).to_pylist()
    return rows


def set_aside(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cache / "_set_aside.jsonl").read_text().splitlines()]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LONG = "zebra " * 40
BAD_ROWS: dict[str, tuple[Any, str]] = {
    # name: the row (a JSON value, or the bytes of a line) and why it is set aside
    "chosen is null": (ROW | {"chosen": None}, "null or not text"),
    "rejected is a number": (ROW | {"rejected": 3}, "null or not text"),
    "prompt is null": (ROW | {"prompt": None}, "null or not text"),
    "prompt is a list": (ROW | {"prompt": ["zebra"]}, "null or not text"),
    "prompt is missing": ({"chosen": "zebra runs", "rejected": "zebra sleeps"}, "missing field"),
    "rejected is missing": ({"prompt": "zebra", "chosen": "runs"}, "missing field"),
    "empty response": (ROW | {"chosen": ""}, "empty response"),
    "blank response": (ROW | {"rejected": " \n\t"}, "empty response"),
    "EOS alone as response": (ROW | {"rejected": "</s>"}, "empty response"),
    "same responses": (ROW | {"rejected": ROW["chosen"]}, "chosen equals rejected"),
    "same responses but for EOS": (ROW | {"rejected": ROW["chosen"] + "</s>"}, "chosen equals rejected"),
    "empty prompt": (ROW | {"prompt": ""}, "empty prompt"),
    "blank prompt": (ROW | {"prompt": " \n"}, "empty prompt"),
    "BOS alone as prompt": (ROW | {"prompt": "<s>"}, "empty prompt"),
    "longer than the context": (ROW | {"chosen": LONG * 4}, "too long"),
    "prompt longer than the context": (ROW | {"prompt": LONG * 4}, "too long"),
    "lone surrogate": (ROW | {"chosen": "zebra \ud800"}, "lone surrogate"),
    "lone surrogate in the prompt": (ROW | {"prompt": "zebra \udfff"}, "lone surrogate"),
    "a surrogate's bytes": (b'{"prompt": "a", "chosen": "\xed\xa0\x80", "rejected": "b"}', "lone surrogate"),
    "BOS typed": (ROW | {"rejected": "a <s> zebra"}, "control token in the text"),
    "padding typed": (ROW | {"prompt": "zebra<pad>"}, "control token in the text"),
    "EOS typed inside": (ROW | {"chosen": "zebra</s>zebra"}, "control token in the text"),
    "no JSON": (b'{"prompt": "zebra', "unreadable row"),
    "text": (b"zebra", "unreadable row"),
    "a list": (["zebra"], "unreadable row"),
    "a number": (3, "unreadable row"),
    "not UTF-8": (b'{"prompt": "zebra \xff", "chosen": "a", "rejected": "b"}', "unreadable row"),
}
BAD_CONVERSATIONS: dict[str, tuple[Any, str]] = {
    "no role": (CHAT_ROW | {"chosen": [{"content": "zebra"}]}, "bad message"),
    "no content": (CHAT_ROW | {"prompt": [{"role": "user"}]}, "bad message"),
    "unknown role": (CHAT_ROW | {"chosen": [RUNS | {"role": "zebra"}]}, "bad message"),
    "role is a list": (CHAT_ROW | {"chosen": [RUNS | {"role": ["assistant"]}]}, "bad message"),
    "no message but text": (CHAT_ROW | {"rejected": ["zebra"]}, "bad message"),
    "last message of the user": (CHAT_ROW | {"rejected": [SLEEPS, USER]}, "bad message"),
    "content is null": (CHAT_ROW | {"chosen": [RUNS | {"content": None}]}, "null or not text"),
    "content is a list": (CHAT_ROW | {"prompt": [USER | {"content": ["zebra"]}]}, "null or not text"),
    "one response of text": (CHAT_ROW | {"chosen": "zebra"}, "null or not text"),
    "no message": (CHAT_ROW | {"chosen": []}, "empty response"),
    "empty message": (CHAT_ROW | {"chosen": [RUNS | {"content": " "}]}, "empty response"),
    "empty prompt": (CHAT_ROW | {"prompt": []}, "empty prompt"),
    "same responses": (CHAT_ROW | {"rejected": [RUNS]}, "chosen equals rejected"),
    "end of turn typed": (CHAT_ROW | {"chosen": [RUNS | {"content": "a<|im_end|>"}]}, "control token in the text"),
    "lone surrogate": (CHAT_ROW | {"prompt": [USER | {"content": "zebra \ud83d"}]}, "lone surrogate"),
    "longer than the context": (CHAT_ROW | {"chosen": [RUNS | {"content": LONG * 4}]}, "too long"),
}
BAD_IMPLICIT: dict[str, tuple[Any, str]] = {
    "no common beginning": ({"chosen": "A zebra runs", "rejected": "zebra"}, "no common prefix"),
    "a space in common": ({"chosen": " zebra", "rejected": " runs"}, "no common prefix"),
    "same": ({"chosen": "A zebra runs", "rejected": "A zebra runs"}, "chosen equals rejected"),
    "one begins with the other": ({"chosen": "A zebra runs", "rejected": "A zebra runs away"}, "empty response"),
}
BAD_IMPLICIT_CONVERSATIONS: dict[str, tuple[Any, str]] = {
    "no common message": ({"chosen": [USER, RUNS], "rejected": [RUNS, SLEEPS]}, "no common prefix"),
    "responses alone": ({"chosen": [RUNS], "rejected": [SLEEPS]}, "no common prefix"),
    "same": ({"chosen": [USER, RUNS], "rejected": [USER, RUNS]}, "chosen equals rejected"),
}


def without_prompt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs with the prompt in front of both responses."""
    return [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows]


class TestSetAside:
    """A bad row costs that row: it goes to `_set_aside.jsonl` with its number and a reason, never its text."""

    @pytest.mark.parametrize(
        ("chat", "good", "bad"),
        [
            (False, STANDARD_ROWS[:4], BAD_ROWS),
            (True, CHAT_ROWS[:4], BAD_CONVERSATIONS),
            (False, without_prompt(STANDARD_ROWS[:4]), BAD_IMPLICIT),
            (True, without_prompt(CHAT_ROWS[:4]), BAD_IMPLICIT_CONVERSATIONS),
        ],
        ids=["standard", "conversational", "implicit", "implicit-conversational"],
    )
    def test_with_the_right_reason(
        self, chat: bool, good: list[Any], bad: dict[str, tuple[Any, str]], ok: Cli, models: Models,
        chat_models: Models, tmp_path: Path,
    ) -> None:  # fmt: skip
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row, _ in bad.values()]
        lines = [json.dumps(good[0]).encode(), *lines, *(json.dumps(row).encode() for row in good[1:])]
        dataset, cache = write(tmp_path / "pairs.jsonl", b"\n".join(lines)), tmp_path / "cache"
        reference = (chat_models if chat else models).reference
        scored = ok("score", "--dataset", dataset, "--reference", reference, "--output", cache, "--max-set-aside", 1)
        found = set_aside(cache)
        assert dict(zip(bad, (row["reason"] for row in found), strict=True)) == {
            name: reason for name, (_, reason) in bad.items()
        }
        assert [row["source_row"] for row in found] == list(range(1, len(bad) + 1))
        assert [row["source_row"] for row in rows_of(cache)] == [0, *range(len(bad) + 1, len(lines))]
        assert scored.stdout == f"{cache}: 4 pairs scored, {len(bad)} set aside\n"
        expected = {"read": len(lines), "scored": 4, "set_aside": len(bad), "duplicates": 0, "truncated": 0}
        assert counts(cache) == expected
        assert stat.S_IMODE((cache / "_set_aside.jsonl").stat().st_mode) == stat.S_IMODE(
            (cache / "_manifest.json").stat().st_mode
        )
        for told in ((cache / "_set_aside.jsonl").read_text(), (cache / "_manifest.json").read_text(), scored.stderr):
            assert "zebra" not in told
        ok("verify", cache)

    @pytest.mark.parametrize(
        ("changes", "options", "reason"),
        [
            ({"prompt": LONG}, ["--max-length", 30], "prompt too long"),
            ({"prompt": LONG}, ["--max-prompt-length", 30, "--overlong", "set-aside"], "prompt too long"),
            ({"chosen": LONG}, ["--max-length", 60, "--overlong", "set-aside"], "too long"),
            ({"chosen": LONG * 4, "rejected": LONG * 4 + "!"}, ["--max-length", 250], "chosen equals rejected"),
        ],
        ids=["no room", "prompt not to be cut", "response not to be cut", "same once cut"],
    )
    def test_for_its_length(
        self, changes: dict[str, str], options: list[object], reason: str, ok: Cli, models: Models, tmp_path: Path
    ) -> None:
        dataset = write_rows(tmp_path / "pairs.jsonl", [ROW, ROW | changes])
        ok("score", "--dataset", dataset, "--reference", models.reference, "--output", tmp_path / "cache",
           "--max-set-aside", 0.5, *options)  # fmt: skip
        assert [(row["source_row"], row["reason"]) for row in set_aside(tmp_path / "cache")] == [(1, reason)]
        assert counts(tmp_path / "cache")["truncated"] == 0

    def test_csv_rows_with_other_fields_than_the_header(self, ok: Cli, models: Models, tmp_path: Path) -> None:
        good = "What is it?, yes, no\n"
        bad = 'zebra,zebra\n"zebra","zebra",zebra,"zebra"\n'
        dataset = write(tmp_path / "pairs.csv", f"prompt,chosen,rejected\n{good}{bad}{good}")
        ok("score", "--dataset", dataset, "--reference", models.reference, "--output", tmp_path / "cache",
           "--max-set-aside", 0.5)  # fmt: skip
        found = [(row["source_row"], row["reason"]) for row in set_aside(tmp_path / "cache")]
        assert found == [(1, "unreadable row"), (2, "unreadable row")]

    def test_a_shard_of_which_nothing_is_left(self, ok: Cli, models: Models, tmp_path: Path) -> None:
        rows = [STANDARD_ROWS[0], ROW | {"chosen": ""}, STANDARD_ROWS[1]]
        scored = ok("score", "--dataset", write_rows(tmp_path / "pairs.jsonl", rows), "--reference", models.reference,
                    "--guidance", models.guidance, "--output", tmp_path / "cache", "--max-set-aside", 0.5,
                    "--pairs-per-shard", 1)  # fmt: skip
        assert scored.stdout.endswith("2 pairs scored, 1 set aside\n")
        ok("verify", tmp_path / "cache")

    def test_text_rendered_beforehand_is_kept_by_flag(
        self, ok: Cli, run_cli: Cli, chat_models: Models, tmp_path: Path
    ) -> None:
        """Its control tokens are meant, and it gives the ids of its messages."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(chat_models.reference)

        def rendered(row: dict[str, Any], side: str) -> str:
            prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            whole: str = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            return whole.removeprefix(prompt) if side != "prompt" else prompt

        sets = {
            "messages": CHAT_ROWS,
            "text": [
                {"prompt": tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)}
                | {side: rendered(row, side) for side in ("chosen", "rejected")}
                for row in CHAT_ROWS
            ],
        }
        for name, rows in sets.items():
            command = ["score", "--dataset", write_rows(tmp_path / f"{name}.jsonl", rows),
                       "--reference", chat_models.reference, "--output", tmp_path / name]  # fmt: skip
            if name == "text":
                assert "control token in the text" in run_cli(*command).error
            ok(*command, *(["--allow-control-tokens"] if name == "text" else []))
        for one, other in zip(rows_of(tmp_path / "messages"), rows_of(tmp_path / "text"), strict=True):
            assert one == other


class TestTooManySetAside:
    """More than 1 % stops before any model is loaded; a flag raises the limit."""

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Path:
        rows = list(STANDARD_ROWS)
        rows[3] = rows[3] | {"chosen": ""}
        rows[7] = rows[7] | {"chosen": None}
        rows[9] = rows[9] | {"rejected": ""}
        return write_rows(tmp_path / "pairs.jsonl", rows)

    def test_gives_counts_reasons_rows_and_the_flag(self, score_refused: Refused, dataset: Path) -> None:
        score_refused(dataset, code=1, says=[
            "3 of 20 rows cannot be used", "2 empty response, row 3, 9", "1 null or not text, row 7: chosen is null",
            "remove these rows; ", "two lists of messages", "more than 1%", "--max-set-aside 0.15",
        ])  # fmt: skip

    def test_a_limit_just_below_is_not_enough(self, score_refused: Refused, dataset: Path) -> None:
        score_refused(dataset, "--max-set-aside", 0.14, code=1, says=["3 of 20", "more than 14%"])

    def test_what_it_advises_works(self, ok: Cli, models: Models, dataset: Path, output: Path) -> None:
        scored = ok("score", "--dataset", dataset, "--reference", models.reference, "--output", output,
                    "--max-set-aside", 0.15)  # fmt: skip
        assert scored.stdout == f"{output}: 17 pairs scored, 3 set aside\n"

    @pytest.mark.parametrize("bad", [29, 57])
    def test_what_it_advises_works_for_every_share(self, bad: int, ok: Cli, models: Models, tmp_path: Path) -> None:
        """0.29 * 100 is a little less than 29."""
        dataset = write_rows(tmp_path / "pairs.jsonl", [ROW | {"chosen": ""}] * bad + [ROW] * (100 - bad))
        ok("score", "--dataset", dataset, "--reference", models.reference, "--output", tmp_path / "cache",
           "--max-set-aside", bad / 100)  # fmt: skip

    def test_one_cause_of_all_rows_gets_advice_that_fits(
        self, score_refused: Refused, ok: Cli, chat_models: Models, tmp_path: Path
    ) -> None:
        """The template's own sentence, and two ways out that work; not a flag that makes an empty cache."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(chat_models.reference)
        strict = Path(shutil.copytree(chat_models.reference, tmp_path / "strict"))
        permissive, tokenizer.chat_template = tokenizer.chat_template, NO_SYSTEM + tokenizer.chat_template
        tokenizer.save_pretrained(strict)
        system = {"role": "system", "content": "Be kind."}
        rows = write_rows(tmp_path / "rows.jsonl", [row | {"prompt": [system, *row["prompt"]]} for row in CHAT_ROWS])
        line = score_refused(rows, reference=strict, code=1, says=[
            "20 of 20 rows cannot be used (20 chat template failed, row 0, 1, 2 …: System role not supported)",
            "into the first user message", "save a template that takes them",
        ])  # fmt: skip
        assert "--max-set-aside" not in line
        score = ["score", "--reference", strict, "--output"]
        moved = [
            row | {"prompt": [{"role": "user", "content": f"Be kind. {row['prompt'][0]['content']}"}]}
            for row in CHAT_ROWS
        ]
        ok(*score, tmp_path / "moved", "--dataset", write_rows(tmp_path / "moved.jsonl", moved))
        tokenizer.chat_template = permissive
        tokenizer.save_pretrained(strict)
        ok(*score, tmp_path / "other", "--dataset", rows)

    def test_scores_that_are_not_finite_name_the_model(
        self, run_cli: Cli, models: Models, pairs_file: Path, output: Path, tmp_path: Path
    ) -> None:
        broken = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
        broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
        folder = Path(shutil.copytree(models.reference, tmp_path / "broken"))
        broken.save_pretrained(folder)
        error = run_cli("score", "--dataset", pairs_file, "--reference", folder, "--output", output).error
        assert f"{folder}: model.layers.0.mlp.up_proj.weight holds values that are not finite in float32" in error
        assert "rows" not in error
        assert "--max-set-aside" not in error

    def test_one_per_cent_may(self, ok: Cli, models: Models, tmp_path: Path) -> None:
        dataset = write_rows(tmp_path / "pairs.jsonl", [ROW | {"chosen": ""}] + [ROW] * 99)
        scored = ok("score", "--dataset", dataset, "--reference", models.reference, "--output", tmp_path / "cache")
        assert scored.stdout.endswith("99 pairs scored, 1 set aside\n")

    def test_a_prompt_column_of_another_name_is_told(self, score_refused: Refused, tmp_path: Path) -> None:
        rows = [{"question" if name == "prompt" else name: text for name, text in row.items()} for row in STANDARD_ROWS]
        dataset = write_rows(tmp_path / "pairs.jsonl", rows)
        # Every pair of responses begins with a space, which is no prompt.
        score_refused(dataset, code=1, says=["20 of 20", "no common prefix", "there is no prompt column"])


class TestDataset:
    """A data set that cannot be used as it is."""

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("pairs.jsonl", "", ["has no rows"]),
            ("pairs.jsonl", "\n\n", ["has no rows"]),
            ("pairs.json", "", ["has no rows"]),
            ("pairs.json", "[]", ["has no rows"]),
            ("pairs.csv", "prompt,chosen,rejected\n", ["has no rows"]),
            ("pairs.json", '[{"prompt": "zebra", ', ["is not valid JSON", "correct the file"]),
            ("pairs.json", b'[{"prompt": "\xff"}]', ["is not UTF-8", "save it as UTF-8"]),
            ("pairs.json", "[" * 100_000, ["is not valid JSON"]),
            ("pairs.parquet", "prompt,chosen,rejected\nzebra,a,b\n", ["is not a readable Parquet file"]),
            ("pairs.parquet", "", ["is not a readable Parquet file"]),
            ("pairs.csv", 'prompt,chosen,rejected\n"zebra', ["is not a readable CSV file"]),
            ("pairs.csv", "prompt,chosen,rejected\nä,b,c\n".encode("latin-1"), ["save it as UTF-8 CSV"]),
            ("pairs.jsonl.gz", "zebra", ["cannot be read"]),
            ("pairs.txt", "zebra", ["'.txt' files are not read", ".jsonl", ".parquet", ".csv"]),
            ("pairs", "zebra", [".jsonl", ".parquet", ".csv"]),
            ("pairs.jsonl", '{"prompt": "zebra"}', ["column 'chosen' is missing", "the columns are: prompt"]),
            (
                "pairs.jsonl", '{"instruction": "zebra", "choosen": "a", "rejected": "b"}',
                ["'chosen' is missing", "instruction, choosen, rejected", "--chosen-column choosen"],
            ),
            (
                "pairs.csv", "prompt,chosen,rejected_response\na,b,c\n",
                ["'rejected' is missing", "prompt, chosen, rejected_response", "--rejected-column rejected_response"],
            ),
            (
                "pairs.jsonl", json.dumps(STANDARD_ROWS[0]) + "\n" + json.dumps(CHAT_ROW),
                ["row 0 is standard (plain text), row 1 is conversational", "one form"],
            ),
            ("pairs.jsonl", json.dumps(CHAT_ROW), ["lists of messages", "no chat template", "--tokenizer"]),
        ],
        ids=itertools.count(),
    )  # fmt: skip
    def test_files(
        self, name: str, content: str | bytes, says: list[str], score_refused: Refused, tmp_path: Path
    ) -> None:
        score_refused(write(tmp_path / name, content), code=1, says=says)

    def test_missing_file(self, score_refused: Refused, tmp_path: Path) -> None:
        for name in (tmp_path / "pairs.jsonl", "pairs.jsonl", "./pairs", "~/no-such-folder-of-mine/pairs"):
            score_refused(name, code=1, says=[f"--dataset {name}", "there is no such file or folder", "check the path"])

    def test_folder_without_data(self, score_refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        write(tmp_path / "set" / "README.md", "zebra")
        score_refused(tmp_path / "set", code=1, says=["the folder holds no .jsonl", ".parquet"])

    @pytest.mark.usefixtures("offline")
    def test_a_hub_name_that_cannot_be_had(self, score_refused: Refused) -> None:
        says = ["--dataset someone/pairs is no local path", "as a hub dataset it did not load", "the network"]
        score_refused("someone/pairs", code=1, says=says)

    def test_a_split_that_does_not_exist(self, score_refused: Refused, pairs_file: Path) -> None:
        score_refused(pairs_file, "--split", "test", code=2, says=["--split test", "has train", "choose one"])

    def test_a_prompt_column_that_does_not_exist(self, score_refused: Refused, pairs_file: Path) -> None:
        says = ["--prompt-column question", "prompt, chosen, rejected"]
        score_refused(pairs_file, "--prompt-column", "question", code=1, says=says)


class TestModels:
    """Models that are not there, not whole, or do not fit the others: said before any of them is loaded."""

    @pytest.fixture(scope="class")
    def other_vocabulary(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        tokenizer = make_tokenizer(chat=False, vocabulary=380)
        return make_model(tmp_path_factory.mktemp("models") / "other", tokenizer, seed=2)

    @pytest.fixture
    def changed(self, models: Models, tmp_path: Path) -> Path:
        """A copy of the reference to take something away from."""
        return shutil.copytree(models.reference, tmp_path / "changed")

    def test_guidance_of_another_vocabulary(
        self, score_refused: Refused, pairs_file: Path, other_vocabulary: Path
    ) -> None:
        says = ["different vocabularies (400 and 380 tokens)", str(other_vocabulary), "one tokenizer"]
        score_refused(pairs_file, "--guidance", other_vocabulary, code=1, says=says)

    def test_guidance_of_another_chat_template(
        self, score_refused: Refused, unloadable_chat: Models, chat_file: Path, tmp_path: Path
    ) -> None:
        other = shutil.copytree(unloadable_chat.guidance, tmp_path / "other")
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n", "model\n")
        tokenizer.save_pretrained(other)
        options = ["--guidance", other]
        says = ["different chat templates", str(other)]
        score_refused(chat_file, *options, reference=unloadable_chat.reference, code=1, says=says)

    def test_a_token_id_outside_the_embedding(self, score_refused: Refused, changed: Path, pairs_file: Path) -> None:
        config = json.loads((changed / "config.json").read_text())
        write(changed / "config.json", json.dumps(config | {"vocab_size": 300}))
        says = [f"{changed} has only 300 embeddings", "token id 387", "--tokenizer"]
        score_refused(pairs_file, "--guidance", changed, code=1, says=says)

    @pytest.mark.parametrize("option", ["--reference", "--guidance"])
    def test_a_folder_without_configuration(
        self, option: str, score_refused: Refused, changed: Path, pairs_file: Path
    ) -> None:
        (changed / "config.json").unlink()
        says = [f"{option} {changed}", "neither config.json nor adapter_config.json", "save_pretrained"]
        score_refused(pairs_file, option, changed, code=1, says=says)

    @pytest.mark.parametrize("content", ["{", "[]", ""])
    def test_a_damaged_configuration(
        self, content: str, score_refused: Refused, changed: Path, pairs_file: Path
    ) -> None:
        write(changed / "config.json", content)
        score_refused(pairs_file, reference=changed, code=1, says=["config.json", "save the model again"])

    def test_only_pickled_weights(self, score_refused: Refused, changed: Path, pairs_file: Path) -> None:
        (changed / "model.safetensors").rename(changed / "pytorch_model.bin")
        says = [f"{changed} has no model.safetensors", "only safetensors weights are read", "save_pretrained"]
        score_refused(pairs_file, reference=changed, code=1, says=says)

    def test_no_tokenizer(self, score_refused: Refused, changed: Path, pairs_file: Path) -> None:
        for path in changed.glob("tokenizer*"):
            path.unlink()
        score_refused(pairs_file, reference=changed, code=1, says=[f"{changed} has no tokenizer", "--tokenizer"])

    @pytest.mark.parametrize("content", [b"no weights", b"", None])
    def test_damaged_weights(
        self, content: bytes | None, run_cli: Cli, changed: Path, pairs_file: Path, output: Path
    ) -> None:
        weights = changed / "model.safetensors"
        write(weights, weights.read_bytes()[:3000] if content is None else content)
        result = run_cli("score", "--dataset", pairs_file, "--reference", changed, "--output", output)
        assert result.code == 1
        assert f"{weights} is not a whole safetensors file" in result.error
        assert not output.exists()

    def test_a_weight_that_is_not_a_number(self, run_cli: Cli, changed: Path, pairs_file: Path, output: Path) -> None:
        """No row is to blame."""
        weights = safetensors.torch.load_file(changed / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        safetensors.torch.save_file(weights, changed / "model.safetensors", {"format": "pt"})
        result = run_cli("score", "--dataset", pairs_file, "--reference", changed, "--output", output)
        assert result.code == 1
        assert f"{changed}: model.norm.weight holds values that are not finite" in result.error
        assert "--max-set-aside" not in result.error

    @pytest.mark.usefixtures("offline")
    @pytest.mark.parametrize("option", ["--reference", "--guidance", "--tokenizer"])
    @pytest.mark.parametrize("name", ["someone/model", "model", "someone/model@v1"])
    def test_a_hub_name_that_cannot_be_had(
        self, option: str, name: str, score_refused: Refused, pairs_file: Path
    ) -> None:
        says = [f"{option} {name}", "no such folder, and as a hub model it could not be had", "the network"]
        score_refused(pairs_file, option, name, code=1, says=says)

    def test_code_of_a_hub_model_that_is_not_pinned(self, score_refused: Refused, pairs_file: Path) -> None:
        says = ["--reference someone/model", "--trust-remote-code", "NAME@REVISION", "40-digit"]
        options = ["--reference", "someone/model", "--trust-remote-code"]
        score_refused(pairs_file, *options, code=2, says=says)

    def test_a_token_classifier_with_two_labels(self, score_refused: Refused, changed: Path, pairs_file: Path) -> None:
        config = transformers.AutoConfig.from_pretrained(changed)
        config.num_labels = 2
        transformers.LlamaForTokenClassification(config).save_pretrained(changed)
        says = [f"{changed} is a token classifier with 2 labels", "num_labels=1"]
        score_refused(pairs_file, "--guidance", changed, code=1, says=says)

    def test_a_token_classifier_as_reference(self, score_refused: Refused, changed: Path, pairs_file: Path) -> None:
        config = json.loads((changed / "config.json").read_text())
        write(changed / "config.json", json.dumps(config | {"architectures": ["LlamaForTokenClassification"]}))
        says = [f"--reference {changed} is a token-classification", "causal language model"]
        score_refused(pairs_file, reference=changed, code=1, says=says)


class TestCall:
    """A call that is wrong exits with 2."""

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--max-length", 300], ["--max-length 300", "at most 256 tokens", "--max-length 256 or less"]),
            (["--max-length", 20, "--max-prompt-length", 20], ["--max-prompt-length 20", "--max-length 20", "smaller"]),
            (["--max-length", 20, "--max-prompt-length", 30], ["--max-prompt-length 30", "--max-length 20", "smaller"]),
            (["--max-length", 1], ["--max-length 1", "greater than 1"]),
            (["--batch-tokens", 0], ["--batch-tokens 0", "greater than 0"]),
            (["--batch-tokens", "many"], ["--batch-tokens", "integer"]),
            (["--limit", -3], ["--limit -3", "greater than 0"]),
            (["--max-set-aside", 2], ["--max-set-aside 2", "less than or equal to 1"]),
            (["--dtype", "float8"], ["--dtype", "float8", "'float32'", "'bfloat16'"]),
            (["--overlong", "drop"], ["--overlong", "drop", "'truncate'", "'set-aside'"]),
            (["--device", "tpu"], ["--device tpu", "use auto, cpu or cuda"]),
            (["--guidence", "x"], ["--guidence", "--guidance", "--help"]),
            (["--dtype"], ["--dtype", "argument"]),
            (["something"], ["something", "--help"]),
            (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        ],
    )
    def test_options_of_score(
        self, options: list[object], says: list[str], score_refused: Refused, pairs_file: Path
    ) -> None:
        score_refused(pairs_file, *options, code=2, says=says)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--beta", -1], ["--beta -1", "greater than 0"]),
            (["--beta", "nan"], ["--beta nan", "finite"]),
            (["--batch-size", 0], ["--batch-size 0", "greater than 0"]),
            (["--dtype", "float8"], ["--dtype", "float8", "'float32'"]),
            (["--loss", "ppo"], ["--loss", "no objective ppo", "tgdpo, dpo, simpo"]),
            (["--label-smoothing", 0.5], ["--label-smoothing 0.5", "less than 0.5"]),
            (["--eval-steps", 5], ["--eval-steps", "--eval-fraction"]),
            (["--report-to", "paper"], ["--report-to paper", "'tensorboard'"]),
            (["--learning_rate", 1], ["--learning_rate", "--learning-rate"]),
        ],
    )
    def test_options_of_train(
        self, options: list[object], says: list[str], refused: Refused, models: Models, output: Path, cache: Path
    ) -> None:
        command = ["train", "--cache", cache, "--model", models.reference, "--output", output]
        refused(*command, *options, code=2, says=says)
        assert not output.exists()

    @pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
    def test_a_tracker_that_is_not_installed(self, refused: Refused, models: Models, output: Path, cache: Path) -> None:
        command = ["train", "--cache", cache, "--model", models.reference, "--output", output]
        says = ["--report-to wandb", "not installed", "pip install 'tgdpo[wandb]'"]
        refused(*command, "--report-to", "wandb", code=2, says=says)
        assert not output.exists()

    @pytest.mark.parametrize("left_out", ["--dataset", "--reference", "--output"])
    def test_what_score_cannot_do_without(
        self, left_out: str, refused: Refused, unloadable: Models, tmp_path: Path
    ) -> None:
        dataset = write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)
        options = {"--dataset": dataset, "--reference": unloadable.reference, "--output": tmp_path / "output"}
        del options[left_out]
        arguments = [part for option in options.items() for part in option]
        refused("score", *arguments, code=2, says=[f"{left_out} is missing"])
        assert not (tmp_path / "output").exists()

    @pytest.mark.parametrize("left_out", ["--cache", "--model", "--output"])
    def test_what_train_cannot_do_without(self, left_out: str, refused: Refused) -> None:
        arguments = [part for name in ("--cache", "--model", "--output") if name != left_out for part in (name, "x")]
        refused("train", *arguments, code=2, says=[f"{left_out} is missing"])

    def test_an_unknown_command(self, refused: Refused) -> None:
        refused("scor", code=2, says=["No such command 'scor'"])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("max_lenght: 20", ["unknown key 'max_lenght'", "did you mean 'max_length'?"]),
            ("score: {}\ntrain: {}\nbeta: 1", ["config.yaml", "unknown key 'beta'", "score, train"]),
            ("- max_length: 20", ["config.yaml", "no mapping"]),
            ("max_length: [20", ["config.yaml", "not valid YAML, line 1"]),
            ("max_length: twenty", ["--max-length twenty", "valid integer"]),
            ("score: 3", ["config.yaml", "'score' holds no mapping"]),
            ("dtype: !!python/name:os.system", ["config.yaml", "not valid YAML"]),
        ],
    )
    def test_configuration_files(
        self, text: str, says: list[str], score_refused: Refused, pairs_file: Path, tmp_path: Path
    ) -> None:
        score_refused(pairs_file, "--config", write(tmp_path / "config.yaml", text), code=2, says=says)


class TestOutput:
    """Nothing that is there is overwritten or mixed up."""

    @pytest.mark.parametrize(
        ("command", "url", "says"),
        [
            ("train", "s3://key:word@bucket/run", ["holds credentials", "into the environment"]),
            ("train", "https://host/a?sig=word", ["holds credentials", "into the environment"]),
            ("train", "hf://models/a/b", ["to a folder or to s3://", "copy it"]),
            ("score", "https://host/a", ["to a folder or to s3://", "copy it"]),
            ("score", "hf://datasets/a/b", ["to a folder or to s3://", "copy it"]),
            ("score", "memory://cache", ["to a folder or to s3://", "copy it"]),
            ("score", "s3://key:word@bucket/cache", ["holds credentials", "into the environment"]),
            ("score", "s3://bucket/cache?X-Amz-Signature=word", ["holds credentials", "into the environment"]),
            ("score", "s3://bucket/a*", ["stand for other characters"]),
        ],
    )
    def test_an_address_that_cannot_be_written_to(
        self,
        command: str,
        url: str,
        says: list[str],
        refused: Refused,
        pairs_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = bytes_of(tmp_path)
        words = {
            "score": ("score", "--dataset", pairs_file, "--reference", "r"),
            "train": ("train", "--cache", "c", "--model", "m"),
        }
        line = refused(*words[command], "--output", url, code=2, says=[f"--output {url[:5]}", *says])
        assert "word" not in line
        assert bytes_of(tmp_path) == before

    @pytest.mark.parametrize("name", ["output", "output/notes.txt"])
    def test_something_else_lies_there(
        self, name: str, refused: Refused, unloadable: Models, pairs_file: Path, output: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write(path, "mine")
        before = bytes_of(tmp_path)
        command = ["score", "--dataset", pairs_file, "--reference", unloadable.reference, "--output", output]
        says = [f"--output {output} exists and is no reward cache", "a new or an empty folder"]
        refused(*command, code=1, says=says)
        assert bytes_of(tmp_path) == before

    def test_another_runs_cache(
        self, refused: Refused, ok: Cli, models: Models, pairs_file: Path, output: Path, tmp_path: Path
    ) -> None:
        command = ["score", "--dataset", pairs_file, "--reference", models.reference, "--output", output]
        ok(*command)
        before = bytes_of(output)
        made = f"--output {output} was made with other settings"
        for options, fields in (
            (["--max-length", 20], ["max_length (None, now 20)"]),
            (["--guidance", models.guidance], ["guidance_sha256 (None, now ", "reward_kind (none, now log-ratio)"]),
            (["--limit", 3], ["dataset_sha256"]),
            (["--reference", models.guidance], ["reference_sha256"]),
            (["--dtype", "bfloat16", "--pairs-per-shard", 3], ["dtype (float32, now bfloat16)", "pairs_per_shard"]),
        ):
            refused(*command, *options, code=1, says=[made, *fields, "another --output"])
        write_rows(pairs_file, STANDARD_ROWS[1:])
        refused(*command, code=1, says=[made, "dataset_sha256"])
        assert bytes_of(output) == before
        # With the same settings it is finished, and a copy of the same models is the same.
        write_rows(pairs_file, STANDARD_ROWS)
        copy = shutil.copytree(models.reference, tmp_path / "copy")
        again = ok(*command, "--reference", copy)
        assert "finished already" in again.stderr
        assert bytes_of(output) == before

    def test_another_training_run(self, refused: Refused, ok: Cli, models: Models, cache: Path, output: Path) -> None:
        command = ["train", "--cache", cache, "--model", models.reference, "--output", output, "--max-steps", 1]
        ok(*command, "--batch-size", 4)
        before = bytes_of(output)
        says = [f"--output {output} holds a run with other settings", "batch_size (4, now 2)", "beta (0.1, now 0.3)"]
        refused(*command, "--batch-size", 2, "--beta", 0.3, code=1, says=[*says, "another --output"])
        options = ["--batch-size", 4, "--model", models.guidance]
        refused(*command, *options, code=1, says=["other settings", "model_sha256"])
        refused(
            *command, "--batch-size", 4, "--resume", "never", code=1, says=["--resume is never", "another --output"]
        )
        assert bytes_of(output) == before

    def test_a_run_whose_own_records_are_damaged(
        self, refused: Refused, ok: Cli, models: Models, cache: Path, output: Path
    ) -> None:
        command = ["train", "--cache", cache, "--model", models.reference, "--output", output, "--max-steps", 1]
        ok(*command)
        for name in ("config.yaml", "run.json"):
            content = (output / name).read_bytes()
            for damage in (b"[1", b"- 3\n", b"\xff", b""):
                (output / name).write_bytes(damage)
                refused(*command, code=1, says=[str(output / name), "another --output"])
            (output / name).unlink()
            refused(*command, code=1, says=[str(output)])
            (output / name).write_bytes(content)
        (output / "run.json").write_text('{"identity": {}, "finished": true}')
        refused(*command, code=1, says=[str(output / "run.json"), "damaged ('summary')"])
        (output / "run.json").write_bytes(content)
        assert "finished already" in ok(*command).stderr

    def test_training_into_something_else(self, refused: Refused, models: Models, cache: Path, output: Path) -> None:
        output.mkdir()
        write(output / "notes.txt", "mine")
        refused("train", "--cache", cache, "--model", models.reference, "--output", output,
                code=1, says=[f"--output {output} exists and holds no run"])  # fmt: skip
        assert bytes_of(output) == {"notes.txt": b"mine"}


@pytest.fixture(scope="module")
def cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored cache of two shards, not to be changed."""
    folder = tmp_path_factory.mktemp("scored")
    config = ScoreConfig(
        dataset=str(write_rows(folder / "pairs.jsonl", STANDARD_ROWS)),
        reference=str(models.reference),
        guidance=str(models.guidance),
        output=str(folder / "cache"),
        pairs_per_shard=10,
    )
    score(config)
    return folder / "cache"


SHARD = "part-00001-of-00002.parquet"


def flip(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / SHARD).write_bytes(content)


def set_version(folder: Path) -> None:
    content = json.loads((folder / "_manifest.json").read_text())
    write(folder / "_manifest.json", json.dumps(content | {"format_version": 2}))


class TestCache:
    """`train` and `verify` refuse a cache that is not what was scored, and `train` begins nothing."""

    @pytest.fixture
    def copy(self, cache: Path, tmp_path: Path) -> Path:
        return shutil.copytree(cache, tmp_path / "cache")

    @pytest.fixture
    def train_refused(self, refused: Refused, unloadable: Models, output: Path) -> Refused:
        """Before the policy is loaded."""

        def call(cache: Path, *options: object, model: Path | None = None, **expected: Any) -> str:
            policy = model or unloadable.reference
            line = refused("train", "--cache", cache, "--model", policy, "--output", output, *options, **expected)
            assert not output.exists()
            return line

        return call

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda folder: (folder / "_manifest.json").unlink(), ["no _manifest.json", "not finished", "goes on"]),
            (lambda folder: shutil.rmtree(folder), ["is no folder", "tgdpo score"]),
            (set_version, ["format version 2", "reads 1", "score again"]),
            (lambda folder: write(folder / "_manifest.json", "{"), ["_manifest.json is damaged", "score again"]),
            (lambda folder: write(folder / "_manifest.json", b"\xff"), ["_manifest.json is damaged"]),
            (lambda folder: write(folder / "_manifest.json", '{"format_version": 1}'), ["_manifest.json is damaged"]),
        ],
    )
    def test_no_whole_manifest(
        self, damage: Callable[[Path], object], says: list[str], train_refused: Refused, refused: Refused, copy: Path
    ) -> None:
        damage(copy)
        assert train_refused(copy, code=1, says=says) == refused("verify", copy, code=1, says=says)
        refused("inspect", copy, code=1, says=says)

    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            (flip, f"{SHARD} has changed (its SHA-256 is not the manifest's)"),
            (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
            (lambda folder: write(folder / SHARD, b"PAR1"), f"{SHARD} has 4 bytes, the manifest says "),
        ],
    )
    def test_a_damaged_shard(
        self, damage: Callable[[Path], object], problem: str, train_refused: Refused, run_cli: Cli, copy: Path
    ) -> None:
        damage(copy)
        train_refused(copy, code=1, says=[f"{copy}: {problem}", "restore the file", "score again"])
        verified = run_cli("verify", copy)
        assert (verified.code, verified.stderr) == (1, "")
        assert verified.stdout.startswith(problem)
        assert verified.stdout.count("\n") == 1

    def test_a_shard_too_many(self, run_cli: Cli, copy: Path) -> None:
        shutil.copy(copy / SHARD, copy / "more.parquet")
        verified = run_cli("verify", copy)
        assert (verified.code, verified.stdout) == (1, "more.parquet is not in the manifest\n")

    def test_token_rewards_without_guidance(
        self, train_refused: Refused, ok: Cli, models: Models, pairs_file: Path, tmp_path: Path
    ) -> None:
        ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "plain")
        train_refused(tmp_path / "plain", code=1, says=["scored without guidance", "--guidance", "--loss dpo"])

    def test_a_cache_of_nothing(self, train_refused: Refused, ok: Cli, models: Models, tmp_path: Path) -> None:
        dataset = write_rows(tmp_path / "pairs.jsonl", [ROW | {"chosen": ""}])
        ok("score", "--dataset", dataset, "--reference", models.reference, "--output", tmp_path / "empty",
           "--max-set-aside", 1)  # fmt: skip
        train_refused(tmp_path / "empty", "--loss", "dpo", code=1, says=["holds no pairs"])

    def test_a_policy_of_another_vocabulary(
        self, train_refused: Refused, cache: Path, unloadable: Models, tmp_path: Path
    ) -> None:
        other = shutil.copytree(unloadable.reference, tmp_path / "other")
        make_tokenizer(chat=False, vocabulary=380).save_pretrained(other)
        says = [f"--model {other} has another vocabulary", "cache's tokenizer"]
        train_refused(cache, model=other, code=1, says=says)

    def test_a_policy_of_another_chat_template(
        self, train_refused: Refused, ok: Cli, chat_models: Models, chat_file: Path, tmp_path: Path
    ) -> None:
        ok("score", "--dataset", chat_file, "--reference", chat_models.reference, "--output", tmp_path / "chat")
        other = shutil.copytree(chat_models.reference, tmp_path / "other")
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n", "model\n")
        tokenizer.save_pretrained(other)
        says = [f"--model {other} has another chat template"]
        train_refused(tmp_path / "chat", "--loss", "dpo", model=other, code=1, says=says)

    @pytest.mark.usefixtures("offline")
    def test_a_policy_that_cannot_be_had(self, train_refused: Refused, cache: Path) -> None:
        train_refused(cache, "--model", "someone/model", code=1, says=["--model someone/model", "hub model"])

    def test_an_option_that_does_nothing_is_told(self, ok: Cli, models: Models, cache: Path, output: Path) -> None:
        trained = ok("train", "--cache", cache, "--model", models.reference, "--output", output, "--max-steps", 1,
                     "--loss", "dpo", "--alpha", 0.7)  # fmt: skip
        assert "warning: --alpha does nothing with --loss dpo" in trained.stderr


class TestKeptAndCounted:
    """What is worth knowing about rows that are kept."""

    @pytest.fixture
    def scored(self, ok: Cli, models: Models, tmp_path: Path) -> Callable[..., Path]:
        def call(rows: list[dict[str, Any]], *options: object) -> Path:
            cache = tmp_path / f"cache{len(options)}"
            dataset = write_rows(tmp_path / "pairs.jsonl", rows)
            ok("score", "--dataset", dataset, "--reference", models.reference, "--output", cache, *options)
            ok("verify", cache)
            return cache

        return call

    def test_duplicates(self, scored: Callable[..., Path]) -> None:
        cache = scored([*STANDARD_ROWS, *STANDARD_ROWS[:3], STANDARD_ROWS[0]])
        assert counts(cache) == {"read": 24, "scored": 24, "set_aside": 0, "duplicates": 4, "truncated": 0}
        assert len({row["pair_id"] for row in rows_of(cache)}) == 24

    def test_truncation_only_when_asked_for(self, scored: Callable[..., Path]) -> None:
        rows = [ROW | {"prompt": "Say zebra. " * 4, "chosen": " yes" + " no" * n} for n in range(12)]
        whole = rows_of(scored(rows))
        eos, bos = 2, 1
        assert all(row["chosen_ids"][-1] == eos and row["prompt_ids"][0] == bos for row in whole)
        longest = max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in whole)
        limit = longest - 8
        cache = scored(rows, "--max-length", limit)
        cut = rows_of(cache)
        fits = [len(row["prompt_ids"]) + len(row["chosen_ids"]) <= limit for row in whole]
        assert counts(cache)["truncated"] == fits.count(False) > 0
        assert any(fits)
        for short, full, fit in zip(cut, whole, fits, strict=True):
            # A cut response has no end-of-turn token, so the end of a turn is never rewarded where there was none.
            assert (short["chosen_ids"][-1] == eos) is fit
            assert short["chosen_ids"] == full["chosen_ids"][: len(short["chosen_ids"])]
            assert len(short["prompt_ids"]) + len(short["chosen_ids"]) <= limit
            assert (short["prompt_ids"], short["rejected_ids"]) == (full["prompt_ids"], full["rejected_ids"])

    def test_prompts_are_cut_on_the_left_and_keep_bos(self, scored: Callable[..., Path]) -> None:
        rows = [row | {"prompt": "Once upon a time. " * n + row["prompt"]} for n, row in enumerate(STANDARD_ROWS[:6])]
        whole = rows_of(scored(rows))
        cache = scored(rows, "--max-prompt-length", 20)
        cut = rows_of(cache)
        assert counts(cache)["truncated"] == sum(len(row["prompt_ids"]) > 20 for row in whole) > 0
        for short, full in zip(cut, whole, strict=True):
            assert len(short["prompt_ids"]) == min(20, len(full["prompt_ids"]))
            assert short["prompt_ids"][0] == full["prompt_ids"][0] == 1
            assert short["prompt_ids"][1:] == full["prompt_ids"][1:][-(len(short["prompt_ids"]) - 1) :]
            assert short["chosen_ids"] == full["chosen_ids"]

    def test_parquet_of_messages_is_read_as_json_is(self, ok: Cli, chat_models: Models, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(CHAT_ROWS), tmp_path / "chat.parquet")
        write_rows(tmp_path / "chat.jsonl", CHAT_ROWS)
        for suffix in ("parquet", "jsonl"):
            ok("score", "--dataset", tmp_path / f"chat.{suffix}", "--reference", chat_models.reference,
               "--output", tmp_path / suffix)  # fmt: skip
        assert rows_of(tmp_path / "parquet") == rows_of(tmp_path / "jsonl")
