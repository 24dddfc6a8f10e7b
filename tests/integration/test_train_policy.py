"""A policy that is not the reference: other weights are fine, another tokenizer is refused before any are read."""

import shutil
from pathlib import Path

import pytest
import torch
from support import CHAT_TEMPLATE, Cli, Models, make_model, make_tokenizer, records_of, weights_of

FAST = ("--learning-rate", 1e-3, "--batch-size", 4, "--logging-steps", 1)


@pytest.fixture
def chat_cache(ok: Cli, chat_models: Models, chat_file: Path, tmp_path: Path) -> Path:
    """Scored conversations."""
    ok("score", "--dataset", chat_file, "--reference", chat_models.reference, "--guidance", chat_models.guidance,
       "--output", tmp_path / "chat")  # fmt: skip
    return tmp_path / "chat"


def test_other_weights_start_where_they_are(ok: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", scored, "--model", models.guidance, "--output", tmp_path / "run", *FAST, "--max-steps", 1)
    (record,) = records_of(tmp_path / "run")
    assert abs(record["loss"] - 0.6931471805599453) > 1e-3
    assert record["rewards/chosen"] != pytest.approx(0, abs=1e-3)
    start, trained = weights_of(models.guidance), weights_of(tmp_path / "run")
    assert all(torch.allclose(trained[name], start[name], atol=3e-3) for name in start)


def test_another_size_with_the_same_tokenizer(ok: Cli, scored: Path, tmp_path: Path) -> None:
    """Layers, width and a longer embedding (padded to a multiple, as many models have it) are the policy's own."""
    model = make_model(tmp_path / "wide", make_tokenizer(chat=False), seed=5, hidden_size=48, num_hidden_layers=3,
                       vocab_size=448)  # fmt: skip
    ok("train", "--cache", scored, "--model", model, "--output", tmp_path / "run", *FAST)
    assert weights_of(tmp_path / "run")["lm_head.weight"].shape == (448, 48)


class TestRefused:
    """In one line, with no weights there to be read."""

    def without_weights(self, model: Path, folder: Path) -> Path:
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        return folder

    def test_another_vocabulary(self, run_cli: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
        other = self.without_weights(models.reference, tmp_path / "other")
        make_tokenizer(chat=False, vocabulary=380).save_pretrained(other)
        result = run_cli("train", "--cache", scored, "--model", other, "--output", tmp_path / "run", *FAST)
        assert (result.code, (tmp_path / "run").exists()) == (1, False)
        assert "another vocabulary than the cache's tokenizer" in result.error
        assert result.stderr.splitlines() == [result.error]

    def test_another_chat_template(self, run_cli: Cli, chat_cache: Path, chat_models: Models, tmp_path: Path) -> None:
        other = self.without_weights(chat_models.reference, tmp_path / "other")
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n", "model\n")
        tokenizer.save_pretrained(other)
        result = run_cli("train", "--cache", chat_cache, "--model", other, "--output", tmp_path / "run", *FAST)
        assert (result.code, (tmp_path / "run").exists()) == (1, False)
        assert "another chat template than the cache's tokenizer" in result.error
        assert result.stderr.splitlines() == [result.error]
