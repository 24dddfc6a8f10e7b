"""LoRA's options, and adapters over quantised weights (QLoRA)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import Cli, Models, records_of

from tgdpo.stages.train.run import TrainRun

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1, "--lora-rank", 4)
with_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"
)
BITS = pytest.mark.parametrize("bits", ["--load-in-4bit", "--load-in-8bit"])


@pytest.fixture
def call(scored: Path, models: Models, tmp_path: Path) -> tuple[object, ...]:
    """A training run."""
    return ("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run", *FAST)


def adapter_of(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((run / "adapter_config.json").read_text()), load_file(run / "adapter_model.safetensors")


def test_rank_stabilised_and_dora(call: Any, ok: Cli, tmp_path: Path) -> None:
    ok(*call, "--use-rslora", "--use-dora", "--lora-alpha", 6)
    config, weights = adapter_of(tmp_path / "run")
    assert (config["use_rslora"], config["use_dora"], config["r"], config["lora_alpha"]) == (True, True, 4, 6)
    assert any("magnitude" in name for name in weights)
    losses = [record["loss"] for record in records_of(tmp_path / "run")]
    assert losses[0] == pytest.approx(0.6931471805599453, abs=1e-5)
    assert losses[-1] < losses[0]


def test_modules_that_are_trained_in_full(call: Any, ok: Cli, models: Models, tmp_path: Path) -> None:
    ok(*call, "--lora-modules-to-save", "lm_head")
    _, weights = adapter_of(tmp_path / "run")
    before = load_file(models.reference / "model.safetensors")["lm_head.weight"]
    after = next(value for name, value in weights.items() if "lm_head" in name)
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    tuned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert torch.equal(tuned.get_output_embeddings().modules_to_save["default"].weight, after)


@with_bitsandbytes
@BITS
class TestQuantised:
    """--load-in-4bit, --load-in-8bit on a CPU."""

    def test_trains_an_adapter_over_small_weights(
        self, bits: str, call: Any, ok: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kinds: set[torch.dtype] = set()
        original = TrainRun.finish

        def finish(self: TrainRun) -> Any:
            kinds.update(p.dtype for name, p in self.policy.named_parameters() if name.endswith("base_layer.weight"))
            return original(self)

        monkeypatch.setattr(TrainRun, "finish", finish)
        ok(*call, bits)
        assert kinds == {torch.uint8 if bits == "--load-in-4bit" else torch.int8}
        losses = [record["loss"] for record in records_of(tmp_path / "run")]
        # Beside the reference by the error of quantisation, which is large for so small a model.
        assert 0 < abs(losses[0] - 0.6931471805599453) < 0.7
        assert losses[-1] < 0.8 * losses[0]
        assert not (tmp_path / "run" / "model.safetensors").exists()
        assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run").dtype == torch.float32

    def test_goes_on_bit_for_bit(
        self, bits: str, call: Any, ok: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = (bits, "--save-steps", 2, "--optim", "adamw_8bit", "--gradient-checkpointing")
        ok(*call, *options, "--output", tmp_path / "whole")
        original = TrainRun._train_step

        def interrupted(self: TrainRun, *arguments: Any) -> None:
            if self.step == 3:
                raise KeyboardInterrupt
            original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(TrainRun, "_train_step", interrupted)
            assert run_cli(*call, *options).code == 130
        ok(*call, *options)
        (_, whole), (_, stopped) = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "run")
        assert all(torch.equal(whole[name], stopped[name]) for name in whole)

    def test_an_adapter_cannot_be_merged_into_them(
        self, bits: str, call: Any, ok: Cli, run_cli: Cli, tmp_path: Path
    ) -> None:
        ok(*call)
        result = run_cli(*call, "--model", tmp_path / "run", "--output", tmp_path / "second", bits)
        assert result.code == 2
        assert "cannot be merged into quantised weights" in result.error
        assert not (tmp_path / "second").exists()


@with_bitsandbytes
def test_4_bit_types_and_nested_constants(call: Any, ok: Cli, tmp_path: Path) -> None:
    first_losses = set()
    for name, options in {
        "nf4": [],
        "fp4": ["--bnb-4bit-quant-type", "fp4"],
        "nested": ["--use-bnb-nested-quant"],
    }.items():
        ok(*call, "--output", tmp_path / name, "--load-in-4bit", "--max-steps", 1, *options)
        first_losses.add(records_of(tmp_path / name)[0]["loss"])
    assert len(first_losses) == 3


class TestRefused:
    """Before anything is loaded, in one line."""

    @BITS
    def test_without_bitsandbytes(
        self, bits: str, call: Any, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
        )
        result = run_cli(*call, bits)
        assert (result.code, (tmp_path / "run").exists()) == (2, False)
        assert "pip install 'tgdpo[bitsandbytes]'" in result.error

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--load-in-4bit", "--lora-rank", 0], "set --lora-rank"),
            (["--load-in-8bit", "--lora-rank", 0], "set --lora-rank"),
            (["--load-in-4bit", "--load-in-8bit"], "choose one"),
        ],
    )
    def test_options_that_exclude_each_other(self, options: list[Any], says: str, call: Any, run_cli: Cli) -> None:
        result = run_cli(*call, *options)
        assert result.code == 2
        assert says in result.error

    def test_modules_that_are_not_there(self, call: Any, run_cli: Cli) -> None:
        assert "--lora-target-modules nothing" in run_cli(*call, "--lora-target-modules", "nothing").error


def test_options_without_a_rank_are_named(scored: Path, models: Models, ok: Cli, tmp_path: Path) -> None:
    result = ok("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run", "--max-steps", 1,
                "--use-dora", "--use-bnb-nested-quant")  # fmt: skip
    assert "--use-dora does nothing with --lora-rank 0" in result.stderr
    assert "--use-bnb-nested-quant does nothing with no --load-in-4bit" in result.stderr
