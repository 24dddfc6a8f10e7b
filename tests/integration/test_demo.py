"""A tiny demo from start to end, and its table counted again by other code."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import transformers
from support import Cli

from tgdpo.errors import UsageError
from tgdpo.pipeline.demo.run import demo
from tgdpo.pipeline.demo.sizes import DemoSizes

SEED = 5
TINY = DemoSizes(
    word_lengths=(3, 5),
    hidden_size=64,
    base_steps=300,
    train_prompts=120,
    held_out_prompts=100,
    batch_size=8,
)


@dataclass(frozen=True)
class Made:
    """A finished demo and what it said."""

    folder: Path
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One tiny demo for all tests."""
    folder = tmp_path_factory.mktemp("demo") / "made"
    return Made(folder, demo(folder, seed=SEED, sizes=TINY))


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def is_sorted_word(prompt: str, answer: str) -> bool:
    return list(answer) == sorted(prompt[:-1])


@torch.inference_mode()
def sampled_again(folder: Path, prompts: list[str]) -> list[str]:
    """Answers drawn token by token from the softmax of full forward passes, without `generate` and its cache."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    ids, mask = inputs.input_ids, inputs.attention_mask
    torch.manual_seed(SEED + 1)
    for _ in range(TINY.word_lengths[1] + 2):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.float().softmax(-1), 1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    answers = tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :])
    return [answer.split("</s>")[0] for answer in answers]


@pytest.mark.parametrize(("label", "name"), [("base", "base"), ("guide", "guide"), ("DPO", "dpo"), ("TGDPO", "tgdpo")])
def test_the_table_is_what_a_recount_gives(made: Made, label: str, name: str) -> None:
    prompts = [row["prompt"] for row in rows(made.folder / "answers.jsonl")]
    assert len(prompts) == TINY.held_out_prompts
    answers = sampled_again(made.folder / name, prompts)
    share = sum(map(is_sorted_word, prompts, answers)) / len(prompts)
    error = math.sqrt(share * (1 - share) / len(prompts))
    line = next(line for line in made.text.splitlines() if line.startswith(label + " "))
    assert line.split() == [label, f"{share:.1%}", f"{error:.1%}"]


def test_there_is_something_to_gain_and_something_to_learn_from(made: Made) -> None:
    shares = [float(share) for share in re.findall(r"(?m)^base +([\d.]+)%", made.text)]
    assert len(shares) == 1
    assert 5 < shares[0] < 95


def test_chosen_is_right_and_rejected_is_wrong(made: Made) -> None:
    pairs = rows(made.folder / "pairs.jsonl")
    assert len(pairs) >= 20
    for pair in pairs:
        assert set(pair) == {"prompt", "chosen", "rejected"}
        assert is_sorted_word(pair["prompt"], pair["chosen"])
        assert not is_sorted_word(pair["prompt"], pair["rejected"])


def test_no_held_out_prompt_was_trained_on(made: Made) -> None:
    trained, held_out = (
        {frozenset(row["prompt"]) for row in rows(made.folder / name)} for name in ("pairs.jsonl", "answers.jsonl")
    )
    assert not trained & held_out


def test_what_it_names_is_there_and_loads(made: Made) -> None:
    named = re.findall(rf"{re.escape(str(made.folder))}\S*", made.text.split("Next:")[0])
    assert len(named) == 8
    assert all(Path(path).exists() for path in named)
    pairs = rows(made.folder / "pairs.jsonl")
    cache = pandas.read_parquet(made.folder / "cache")
    assert cache["chosen"].tolist() == [pair["chosen"] for pair in pairs]
    assert any(rewards.any() for rewards in cache["rejected_rewards"])
    assert len(pandas.read_parquet(made.folder / "guide-cache")) == len(pairs) // 2
    for name in ("dpo", "tgdpo"):
        transformers.AutoModelForCausalLM.from_pretrained(made.folder / name)


def test_the_policies_differ_in_their_loss_alone(made: Made) -> None:
    dpo, tgdpo = ((made.folder / name / "config.yaml").read_text().splitlines() for name in ("dpo", "tgdpo"))
    different = {line.split(":")[0] for line, other in zip(dpo, tgdpo, strict=True) if line != other}
    assert different == {"output", "loss"}
    steps = [rows(made.folder / name / "metrics.jsonl")[-1]["step"] for name in ("dpo", "tgdpo")]
    assert steps[0] == steps[1]


def test_a_second_run_says_the_same(made: Made) -> None:
    assert demo(made.folder, seed=SEED, sizes=TINY) == made.text


def test_goes_on_where_it_was_stopped(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    shutil.rmtree(copy / "tgdpo")
    (copy / "answers.jsonl").unlink()
    (copy / ".base.tmp").mkdir()
    assert demo(copy, seed=SEED, sizes=TINY) == made.text.replace(str(made.folder), str(copy))


def test_another_seed_is_refused(made: Made) -> None:
    with pytest.raises(UsageError, match=f"holds the demo of seed {SEED}, not 6: use --seed {SEED}"):
        demo(made.folder, seed=6, sizes=TINY)


def test_the_command_refuses_what_it_did_not_make(run_cli: Cli, made: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused = run_cli("demo", "--output", tmp_path)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.error == f"tgdpo: --output {tmp_path} exists and holds no demo: name a new or an empty folder"
    # The tiny demo has other sizes than the command's.
    assert "this version of tgdpo would not write" in run_cli("demo", "--output", made.folder).error
    assert "--seed 4294967296 is too large" in run_cli("demo", "--output", tmp_path / "d", "--seed", 2**32).error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
