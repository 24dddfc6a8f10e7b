"""`TGDPOTrainer` and `TGDPOConfig`, as a user of TRL tries them."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from pydantic import ValidationError
from scripts import run_script
from support import Cli, Models, make_model, make_tokenizer, records_of, weights_of

from tgdpo import RewardCache, TGDPOConfig, TGDPOTrainer, TrainConfig
from tgdpo.errors import CacheError, ModelError, TgdpoError, UsageError
from tgdpo.stages.train.run import TrainRun

OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "logging_steps": 1}
FLAGS = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1)
SAME_FOR_ALL = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "phi", "f/mean", "learning_rate")


def numbers_of(records: list[dict[str, Any]]) -> list[list[float]]:
    return [[record[name] for name in SAME_FOR_ALL] for record in records]


@pytest.fixture
def model(models: Models) -> Any:
    """In memory."""
    return transformers.AutoModelForCausalLM.from_pretrained(models.reference)


@pytest.fixture
def tokenizer(models: Models) -> Any:
    """Its tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(models.reference)


@pytest.fixture
def by_command(ok: Cli, scored: Path, models: Models, tmp_path: Path) -> Path:
    """The same run with `tgdpo train`."""
    ok("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "command", *FLAGS)
    return tmp_path / "command"


class TestEqualsTheCommand:
    """The same losses and weights, bit for bit."""

    def test_a_model_in_memory(
        self, by_command: Path, model: Any, tokenizer: Any, scored: Path, tmp_path: Path
    ) -> None:
        args = TGDPOConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
        trainer = TGDPOTrainer(model=model, args=args, train_dataset=scored, processing_class=tokenizer)
        output = trainer.train()
        expected = records_of(by_command)
        assert numbers_of(trainer.state.log_history) == numbers_of(expected)
        assert (output.global_step, output.training_loss) == (5, expected[-1]["loss"])
        assert trainer.model is model
        saved = weights_of(by_command)
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())

    def test_a_name_and_a_cache_object(self, by_command: Path, models: Models, scored: Path, tmp_path: Path) -> None:
        args = TGDPOConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
        trainer = TGDPOTrainer(str(models.reference), args, RewardCache(scored))
        trainer.train()
        assert numbers_of(trainer.state.log_history) == numbers_of(records_of(by_command))

    def test_an_adapter_by_peft_config(
        self, ok: Cli, model: Any, tokenizer: Any, scored: Path, models: Models, tmp_path: Path
    ) -> None:
        ok("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "command", *FLAGS,
           "--lora-rank", 4)  # fmt: skip
        torch.manual_seed(42)
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
        args = TGDPOConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
        trainer = TGDPOTrainer(model, args, scored, tokenizer, peft_config=lora)
        trainer.train()
        assert numbers_of(trainer.state.log_history) == numbers_of(records_of(tmp_path / "command"))
        assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


class TestModelInMemory:
    """Trained in place, of use afterwards, found again after a stop."""

    def make(self, model: Any, tokenizer: Any, cache: Path, output: Path, **options: Any) -> TGDPOTrainer:
        return TGDPOTrainer(model, TGDPOConfig(output_dir=str(output), **(OPTIONS | options)), cache, tokenizer)

    def test_generates_and_computes_as_the_saved_one(
        self, model: Any, tokenizer: Any, scored: Path, tmp_path: Path
    ) -> None:
        attention = model.config._attn_implementation
        self.make(model, tokenizer, scored, tmp_path / "run", gradient_checkpointing=True).train()
        assert model.config._attn_implementation == attention
        assert not model.training
        inputs = tokenizer("The blue fox", return_tensors="pt")
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
        assert torch.equal(model(**inputs).logits, saved(**inputs).logits)
        ours, theirs = (m.generate(**inputs, max_new_tokens=5, do_sample=False) for m in (model, saved))
        assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("adapter", [False, True])
    def test_goes_on_in_a_new_session_and_knows_what_is_finished(
        self,
        adapter: bool,
        models: Models,
        tokenizer: Any,
        scored: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:

        def fresh(output: Path) -> TGDPOTrainer:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
            if adapter:
                torch.manual_seed(0)
                model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
            return self.make(model, tokenizer, scored, output, save_steps=2)

        whole = fresh(tmp_path / "whole")
        whole.train()
        original = TrainRun._train_step

        def interrupted(run: TrainRun, *arguments: Any) -> None:
            if run.step == 3:
                raise KeyboardInterrupt
            original(run, *arguments)

        stopped = fresh(tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(TrainRun, "_train_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stopped.train()
        for _ in range(2):  # the second time it is finished, and loaded
            again = fresh(tmp_path / "run")
            again.train()
            weights = again.model.state_dict()
            assert all(torch.equal(weights[name], value) for name, value in whole.model.state_dict().items())
        with pytest.raises(TgdpoError, match="holds a run already"):
            fresh(tmp_path / "run").train(resume_from_checkpoint=False)

    def test_other_weights_are_another_run(self, model: Any, tokenizer: Any, scored: Path, tmp_path: Path) -> None:
        self.make(model, tokenizer, scored, tmp_path / "run").train()
        with pytest.raises(TgdpoError, match="model_sha256"):
            self.make(model, tokenizer, scored, tmp_path / "run").train()


class TestRefused:
    """What cannot work is said at once."""

    def test_pairs_that_are_not_scored(self, models: Models, tmp_path: Path) -> None:
        import datasets

        pairs = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        args = TGDPOConfig(output_dir=str(tmp_path / "run"))
        with pytest.raises(UsageError, match="score the pairs first"):
            TGDPOTrainer(str(models.reference), args, pairs)  # type: ignore[arg-type]

    def test_a_folder_without_a_cache(self, models: Models, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="is not finished"):
            TGDPOTrainer(str(models.reference), TGDPOConfig(output_dir=str(tmp_path / "run")), tmp_path)

    def test_another_tokenizer(self, scored: Path, tmp_path: Path) -> None:
        other = make_tokenizer(chat=False, vocabulary=380)
        make_model(tmp_path / "other", other, seed=0)
        policy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "other")
        trainer = TGDPOTrainer(policy, TGDPOConfig(output_dir=str(tmp_path / "run")), scored, other)
        with pytest.raises(ModelError, match="another vocabulary"):
            trainer.train()
        assert not (tmp_path / "run").exists()


class TestConfig:
    """TRL's names."""

    def test_are_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        args = TGDPOConfig(
            output_dir="o", num_train_epochs=3, lr_scheduler_type="linear", save_total_limit=2, lora_r=8, bf16=True,
            per_device_train_batch_size=4, gradient_accumulation_steps=8, max_steps=-1, report_to="none",
        )  # fmt: skip
        expected = TrainConfig(
            cache="", model="", output="o", epochs=3, lr_scheduler="linear", keep_checkpoints=2, lora_rank=8,
            mixed_precision="bf16", batch_size=64,
        )  # fmt: skip
        assert args.model_dump() == expected.model_dump()

    @pytest.mark.parametrize(
        "options",
        [
            {"no_such_option": 1},
            {"beta": -1},
            {"gradient_accumulation_steps": 4},
            {"max_prompt_length": 3},
            {"lora_rank": True},
            {"output": "other"},
            {"epochs": 1, "num_train_epochs": 2},
            {"bf16": True, "fp16": True},
            {"bf16": True, "mixed_precision": "no"},
            {"batch_size": 8, "per_device_train_batch_size": 4},
        ],
    )
    def test_unknown_or_wrong_ones_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TGDPOConfig(output_dir="o", **options)

    def test_two_names_may_say_the_same(self) -> None:
        args = TGDPOConfig(output_dir="o", output="o", bf16=True, mixed_precision="bf16")
        assert (args.output, args.mixed_precision) == ("o", "bf16")


def test_the_script_in_docs(
    models: Models, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "docs" / "from_python.py"
    run_script(script, pairs_file, models.reference, models.guidance, tmp_path / "made")
    printed = capsys.readouterr().out
    assert [record["step"] for record in records_of(tmp_path / "made" / "policy")] == [1, 2, 3]
    assert "TrainOutput(global_step=3" in printed
    assert "The blue fox said:" in printed
