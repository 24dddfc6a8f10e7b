"""`tgdpo train`: what it needs, what it writes, and what must not change its result."""

import errno
import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
import transformers
from accelerate.utils import AutocastKwargs
from support import STANDARD_ROWS, Cli, Models, make_models, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tgdpo.data.lock import Lock
from tgdpo.stages.train import parallel
from tgdpo.stages.train.loop import TrainRun


@pytest.fixture
def cache(scored: Path) -> Path:
    """Twenty scored pairs, to be read only."""
    return scored


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(run).state_dict())


FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1)


def test_needs_the_policy_alone(ok: Cli, pairs_file: Path, tmp_path: Path) -> None:
    """Reference and guidance are gone before training starts."""
    made = make_models(tmp_path / "models", chat=False)
    policy = shutil.copytree(made.reference, tmp_path / "policy")
    ok("score", "--dataset", pairs_file, "--reference", made.reference, "--guidance", made.guidance,
       "--output", tmp_path / "cache")  # fmt: skip
    shutil.rmtree(tmp_path / "models")
    ok("train", "--cache", tmp_path / "cache", "--model", policy, "--output", tmp_path / "run", *FAST)


def test_an_optimizer_whose_state_does_not_fit(
    run_cli: Cli, scored: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made in the first step, after a pass that fitted."""

    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    result = run_cli("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run", *FAST)
    assert result.code == 1
    assert "--optim adamw_torch_fused do not fit in the memory of cpu: see tgdpo train --plan" in result.error


class TestAutocastsCopies:
    """Of weights, beside checkpointed activations."""

    BF16 = ("--mixed-precision", "bf16", "--gradient-checkpointing", "--batch-tokens", 60)

    @pytest.mark.parametrize(("checkpointing", "kept"), [(True, False), (False, True)])
    def test_are_kept_without_checkpointing_alone(
        self, checkpointing: bool, kept: bool, ok: Cli, scored: Path, models: Models, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """In the forward pass, and where the backward pass runs layers again."""
        seen: set[tuple[bool, bool]] = set()
        forward = LlamaDecoderLayer.forward

        def watched(*inputs: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():
                seen.add((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
            return forward(*inputs, **options)

        monkeypatch.setattr(LlamaDecoderLayer, "forward", watched)
        options = self.BF16 if checkpointing else self.BF16[:2]
        ok("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run", *FAST, *options)
        assert seen == {(True, kept)}

    def test_change_no_weight(
        self, ok: Cli, scored: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = ("train", "--cache", scored, "--model", models.reference, *FAST, *self.BF16)
        ok(*call, "--output", tmp_path / "without")
        monkeypatch.setattr(parallel, "AutocastKwargs", lambda **_: AutocastKwargs(cache_enabled=True))
        ok(*call, "--output", tmp_path / "with")
        ours, theirs = weights_of(tmp_path / "without"), weights_of(tmp_path / "with")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_metrics(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST)
    records = records_of(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert set(records[0]) == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "rewards/chosen", "rewards/rejected",
        "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "phi", "f/mean", "f/min", "f/max",
        "f/negative", "tokens", "tokens_per_second",
    }  # fmt: skip
    first, last = records[0], records[-1]
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["epoch"] == 1
    assert last["loss"] < 0.6
    assert last["rewards/accuracies"] == 1
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-6)
    frame = pd.read_parquet(cache)
    tokens = sum(2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids) for row in frame.itertuples())  # type: ignore[arg-type]
    assert last["tokens"] == tokens


def test_f_metrics_are_those_of_the_rewards(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    """With one step over all pairs, f's statistics can be counted from the cache."""
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", "--batch-size", 20,
       "--alpha", 3, "--beta", 0.5, "--beta-r", 0.7)  # fmt: skip
    frame = pd.read_parquet(cache)
    f = [1 + 3 * 0.7 * r for rewards in frame.chosen_rewards for r in rewards]
    f += [1 - 3 * 0.7 * r for rewards in frame.rejected_rewards for r in rewards]
    record = records_of(tmp_path / "run")[0]
    assert record["f/mean"] == pytest.approx(sum(f) / len(f), rel=1e-5)
    assert record["f/min"] == pytest.approx(min(f), rel=1e-5)
    assert record["f/max"] == pytest.approx(max(f), rel=1e-5)
    assert record["f/negative"] == pytest.approx(sum(value < 0 for value in f) / len(f), rel=1e-6)
    assert record["f/negative"] > 0


def test_accumulation_and_padding_do_not_change_the_run(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    for name, tokens in (("whole", 10_000), ("pair by pair", 1), ("between", 120)):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name,
           "--batch-tokens", tokens, *FAST)  # fmt: skip
    whole = records_of(tmp_path / "whole")
    for name in ("pair by pair", "between"):
        for ours, theirs in zip(records_of(tmp_path / name), whole, strict=True):
            for metric in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "phi", "f/mean"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=2e-4, abs=2e-5), metric


def test_gradient_checkpointing_does_not_change_the_run(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    for name, options in (("plain", []), ("checkpointing", ["--gradient-checkpointing"])):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name, *FAST, *options)
    plain, checkpointing = records_of(tmp_path / "plain"), records_of(tmp_path / "checkpointing")
    assert [r["loss"] for r in checkpointing] == pytest.approx([r["loss"] for r in plain], abs=1e-6)


def test_the_same_seed_gives_the_same_weights(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name, "--seed", seed, *FAST)
    a, b, c = (weights_of(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("options", [["--f-shape", "sigmoid"], ["--f-clip", 0.01], ["--label-smoothing", 0.2]])
def test_loss_options_change_the_run(options: list[Any], ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    for name, extra in (("plain", []), ("other", options)):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name, "--alpha", 2,
           *FAST, *extra)  # fmt: skip
    plain, other = records_of(tmp_path / "plain"), records_of(tmp_path / "other")
    assert other[-1]["loss"] != pytest.approx(plain[-1]["loss"], abs=1e-6)
    if "--f-clip" in options:
        assert other[-1]["f/max"] <= 1.01 + 1e-6
        assert other[-1]["f/min"] >= 0.99 - 1e-6


def test_evaluation_holds_pairs_out(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
       "--eval-fraction", 0.2, "--eval-steps", 2)  # fmt: skip
    records = records_of(tmp_path / "run")
    evaluations = [record for record in records if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 2, 4]
    assert evaluations[0]["eval_loss"] == pytest.approx(0.6931471805599453, abs=1e-5)
    assert {"eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/chosen"} <= set(evaluations[0])


class TestLora:
    """Training an adapter."""

    def test_saves_an_adapter_that_transformers_loads(
        self, ok: Cli, cache: Path, models: Models, tmp_path: Path
    ) -> None:
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
           "--lora-rank", 4)  # fmt: skip
        records = records_of(tmp_path / "run")
        assert records[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-5)
        assert records[-1]["loss"] < records[0]["loss"]
        assert not (tmp_path / "run" / "model.safetensors").exists()
        tuned, base = (
            transformers.AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "run", models.reference)
        )
        ids = torch.arange(5, 15)[None]
        assert not torch.allclose(tuned(ids).logits, base(ids).logits, atol=1e-3)

    def test_an_adapter_serves_as_guidance_with_its_base_loaded_once(
        self, ok: Cli, cache: Path, models: Models, pairs_file: Path, tmp_path: Path
    ) -> None:
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "adapter", *FAST,
           "--lora-rank", 4, "--gradient-checkpointing")  # fmt: skip
        ok("score", "--dataset", pairs_file, "--guidance", tmp_path / "adapter", "--output", tmp_path / "adapted")
        base = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
        merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", tmp_path / "merged",
           "--output", tmp_path / "separate")  # fmt: skip
        adapted, separate = pd.read_parquet(tmp_path / "adapted"), pd.read_parquet(tmp_path / "separate")
        for column in ("chosen_ref_logps", "chosen_rewards", "rejected_rewards"):
            for ours, theirs in zip(adapted[column], separate[column], strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4)
        assert abs(adapted.chosen_rewards[0]).max() > 0.01

    def test_an_adapter_is_a_policy_to_start_from(self, ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "first", *FAST,
           "--lora-rank", 4)  # fmt: skip
        ok("train", "--cache", cache, "--model", tmp_path / "first", "--output", tmp_path / "second", *FAST)
        assert records_of(tmp_path / "second")[0]["loss"] < 0.69


def flip(path: Path) -> None:
    """Changes the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class TestResume:
    """A run that was stopped goes on as if nothing had happened."""

    def test_from_a_checkpoint_bit_for_bit(
        self, ok: Cli, run_cli: Cli, cache: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = ("train", "--cache", cache, "--model", models.reference, *FAST, "--epochs", 3, "--save-steps", 4,
                "--logging-steps", 3, "--lr-scheduler", "linear")  # fmt: skip
        ok(*call, "--output", tmp_path / "whole")

        from tgdpo.stages.train.run import TrainRun

        original = TrainRun._train_step

        def stop_at_step_10(self: TrainRun, *arguments: Any) -> None:
            if self.step == 10:
                raise KeyboardInterrupt
            original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(TrainRun, "_train_step", stop_at_step_10)
            stopped = run_cli(*call, "--output", tmp_path / "stopped")
        assert stopped.code == 130
        assert "interrupted" in stopped.error
        assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-8"]
        resumed = ok(*call, "--output", tmp_path / "stopped")
        assert "step-8" in resumed.stderr
        whole, stopped_weights = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
        assert all(torch.equal(whole[name], stopped_weights[name]) for name in whole)
        speed = "tokens_per_second"
        assert [{**r, speed: 0} for r in records_of(tmp_path / "whole")] == [
            {**r, speed: 0} for r in records_of(tmp_path / "stopped")
        ]

    def test_a_run_that_trained_nothing_is_started_over(
        self, ok: Cli, run_cli: Cli, cache: Path, models: Models, tmp_path: Path
    ) -> None:
        call = ("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
                "--lora-rank", 2)  # fmt: skip
        assert "--lora-target-modules nothing" in run_cli(*call, "--lora-target-modules", "nothing").error
        ok(*call)

    def test_killed_before_its_configuration_was_written(
        self, ok: Cli, cache: Path, models: Models, tmp_path: Path
    ) -> None:
        call = ("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST)
        ok(*call)
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"finished": False}))
        ok(*call)

    @pytest.fixture
    def stopped(self, ok: Cli, cache: Path, models: Models, tmp_path: Path) -> tuple[Any, Path]:
        """The command, and a folder as a run leaves it that is killed after its checkpoints of steps 2 and 4."""
        call = ("train", "--cache", cache, "--model", models.reference, *FAST, "--save-steps", 2, "--keep-checkpoints",
                2, "--eval-fraction", 0.1, "--log-pairs")  # fmt: skip
        ok(*call, "--output", tmp_path / "run")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"finished": False}))
        return call, tmp_path / "run"

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda path: (path / "trainer_state.json").unlink(), "it has no trainer_state.json"),
            (lambda path: (path / "trainer_state.json").write_text("{"), "its trainer_state.json is damaged"),
            (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
            (lambda path: (path / "optimizer.safetensors").write_bytes(b"12"), "optimizer.safetensors has 2 bytes"),
            (lambda path: flip(path / "optimizer.safetensors"), "optimizer.safetensors has changed since"),
        ],
    )
    def test_a_checkpoint_that_is_not_whole_is_skipped_and_named(
        self, damage: Any, reason: str, stopped: tuple[Any, Path], ok: Cli
    ) -> None:
        call, run = stopped
        before = (run / "model.safetensors").read_bytes(), (run / "pairs.jsonl").read_bytes()
        damage(run / "checkpoints" / "step-4")
        resumed = ok(*call, "--output", run)
        assert f"checkpoint step-4 ({reason}" in resumed.stderr
        assert f"going on from {run / 'checkpoints' / 'step-2'}" in resumed.stderr
        assert ((run / "model.safetensors").read_bytes(), (run / "pairs.jsonl").read_bytes()) == before
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-2", "step-4"]

    def test_without_a_whole_checkpoint_nothing_is_removed(self, stopped: tuple[Any, Path], run_cli: Cli) -> None:
        call, run = stopped
        for step in (2, 4):
            (run / "checkpoints" / f"step-{step}" / "model.safetensors").unlink()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        refused = run_cli(*call, "--output", run)
        assert refused.code == 1
        assert f"no checkpoint of {run} is whole: step-4 (model.safetensors is missing), step-2 (" in refused.error
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_a_damaged_checkpoint_stays_until_the_run_is_past_it(self, stopped: tuple[Any, Path], ok: Cli) -> None:
        call, run = stopped
        before = (run / "model.safetensors").read_bytes()
        (run / "checkpoints" / "step-4" / "model.safetensors").unlink()
        resumed = ok(*call, "--output", run, "--save-steps", 3)
        assert "step-4 (model.safetensors is missing) is skipped" in resumed.stderr
        assert (run / "model.safetensors").read_bytes() == before
        assert (run / "checkpoints" / "step-4").exists()

    def test_a_second_process_is_refused(self, stopped: tuple[Any, Path], run_cli: Cli, ok: Cli) -> None:
        """Whatever the file of the lock says: what counts is whether a process holds it."""
        call, run = stopped
        (run / ".lock").write_text("process 1 on elsewhere since 1999-01-01 00:00:00 UTC\n")
        lock = Lock(run / ".lock")
        assert lock.acquire()
        refused = run_cli(*call, "--output", run)
        assert refused.code == 1
        assert "in use by another tgdpo train (process 1 on elsewhere since 1999-01-01 00:00:00 UTC)" in refused.error
        lock.release()  # as the end of its process does
        ok(*call, "--output", run)
        assert not (run / ".lock").exists()

    @pytest.mark.parametrize("written", ["metrics.jsonl", "pairs.jsonl", "checkpoints/step-3/config.json"])
    def test_without_locks_a_second_process_is_noticed_by_what_it_writes(
        self, written: str, stopped: tuple[Any, Path], run_cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call, run = stopped
        shutil.rmtree(run / "checkpoints" / "step-4")

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        step = TrainRun._train_step

        def disturbed(self: TrainRun, *arguments: Any) -> None:
            step(self, *arguments)
            (run / written).parent.mkdir(exist_ok=True)
            with (run / written).open("a") as file:
                file.write('{"step": 3}\n')

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(TrainRun, "_train_step", disturbed)
        refused = run_cli(*call, "--output", run)
        assert refused.code == 1
        assert "was written by another tgdpo train, which is at work in the same --output" in refused.error
        assert "no locks on its file system" in refused.stderr
        assert not json.loads((run / "run.json").read_text())["finished"]

    def test_a_run_folder_that_is_moved_away(
        self, stopped: tuple[Any, Path], run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call, run = stopped
        step = TrainRun._train_step

        def moved(self: TrainRun, *arguments: Any) -> None:
            if run.exists():
                run.rename(tmp_path / "moved")
            step(self, *arguments)

        monkeypatch.setattr(TrainRun, "_train_step", moved)
        refused = run_cli(*call, "--output", run)
        assert refused.code == 1
        assert f"--output {run} is gone: it was moved or removed" in refused.error
        monkeypatch.setattr(TrainRun, "_train_step", step)
        assert run_cli(*call, "--output", tmp_path / "moved").code == 0

    def test_other_settings_are_refused(self, stopped: tuple[Any, Path], run_cli: Cli) -> None:
        call, run = stopped
        error = run_cli(*call, "--output", run, "--alpha", 0.7, "--seed", 3, "--batch-tokens", 100).error
        assert "alpha (0.5, now 0.7), seed (42, now 3):" in error

    def test_resume_never(self, stopped: tuple[Any, Path], run_cli: Cli, tmp_path: Path) -> None:
        call, run = stopped
        assert "--resume is never" in run_cli(*call, "--output", run, "--resume", "never").error
        assert run_cli(*call, "--output", tmp_path / "new", "--resume", "never").code == 0

    def test_from_a_named_checkpoint(self, stopped: tuple[Any, Path], ok: Cli, tmp_path: Path) -> None:
        call, run = stopped
        checkpoint = run / "checkpoints" / "step-2"
        resumed = ok(*call, "--output", tmp_path / "second", "--resume", checkpoint)
        assert f"going on from {checkpoint}" in resumed.stderr
        second = tmp_path / "second"
        assert (second / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        # The same command again goes on with what it has made itself.
        record = json.loads((second / "run.json").read_text())
        (second / "run.json").write_text(json.dumps(record | {"finished": False}))
        again = ok(*call, "--output", second, "--resume", checkpoint)
        assert f"going on from {second / 'checkpoints' / 'step-4'}" in again.stderr

    def test_a_named_checkpoint_that_will_not_do(self, stopped: tuple[Any, Path], run_cli: Cli, tmp_path: Path) -> None:
        call, run = stopped
        checkpoint = run / "checkpoints" / "step-2"
        new = ("--output", tmp_path / "new", "--resume")
        assert "no such folder" in run_cli(*call, *new, tmp_path / "nothing").error
        assert "no whole checkpoint: it has no trainer_state.json" in run_cli(*call, *new, run).error
        assert "alpha (0.5, now 0.7)" in run_cli(*call, *new, checkpoint, "--alpha", 0.7).error
        (checkpoint / "model.safetensors").unlink()
        assert "model.safetensors is missing" in run_cli(*call, *new, checkpoint).error
        assert not (tmp_path / "new").exists()

    def test_a_finished_run_is_left_alone(self, ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
        call = ("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST)
        first = ok(*call)
        before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
        second = ok(*call)
        assert second.stdout == first.stdout
        assert "finished already" in second.stderr
        assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


def test_a_share_that_is_no_prompt_or_all_of_them(
    ok: Cli, run_cli: Cli, cache: Path, models: Models, tmp_path: Path
) -> None:
    call = ["train", "--cache", cache, "--model", models.reference, "--batch-size", 8, "--eval-fraction"]
    done = ok(*call, 0.005, "--output", tmp_path / "one")
    assert "18 pairs, 2 held out (1 prompt)" in done.stderr
    assert [record["step"] for record in records_of(tmp_path / "one") if "eval_loss" in record] == [0, 3]
    told = ok(*call, 0.005, "--output", tmp_path / "none", "--eval-split", "row").stderr
    assert "warning: --eval-fraction 0.005 of 20 pairs is none, so nothing is evaluated" in told
    refused = run_cli(*call, 0.99, "--output", tmp_path / "all")
    assert refused.code == 2
    assert refused.error == "tgdpo: --eval-fraction 0.99 leaves no pair to train on: lower it"
    one_prompt = tmp_path / "one-prompt"
    rows = [{**row, "prompt": "Say something."} for row in STANDARD_ROWS]
    ok("score", "--dataset", write_rows(tmp_path / "rows.jsonl", rows), "--reference", models.reference,
       "--output", one_prompt)  # fmt: skip
    refused = run_cli("train", "--cache", one_prompt, *call[3:], 0.005, "--loss", "dpo", "--output", tmp_path / "all")
    assert refused.error == (
        "tgdpo: --eval-fraction 0.005 leaves no pair to train on, and all 20 pairs are of one prompt: leave it out"
    )


def test_the_uneven_tail_is_told(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    result = ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", "--batch-size", 6,
                "--eval-fraction", 0.1, "--epochs", 2, "--log-pairs")  # fmt: skip
    told = "18 pairs, 2 held out (1 prompt), 3 steps an epoch, 6 steps in all"
    assert f"training: {told}\n" in result.stderr
    result = ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "other", "--batch-size",
                8, "--log-pairs")  # fmt: skip
    assert "20 pairs, 3 steps an epoch, 3 steps in all, an epoch's last step takes the 4 pairs that are left" in (
        result.stderr
    )
    sizes = [len(json.loads(line)["pairs"]) for line in (tmp_path / "other" / "pairs.jsonl").read_text().splitlines()]
    assert sizes == [8, 8, 4]


def test_trackers_get_the_metrics(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
       "--report-to", "tensorboard")  # fmt: skip
    events = EventAccumulator(str(next((tmp_path / "run" / "logs").rglob("events.*")).parent))
    events.Reload()
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([record["loss"] for record in records_of(tmp_path / "run")])


def test_a_loss_that_is_not_finite_stops_with_the_pair(
    run_cli: Cli, ok: Cli, cache: Path, models: Models, tmp_path: Path
) -> None:
    result = run_cli("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run",
                     "--learning-rate", 1e30, "--batch-size", 4, "--warmup-ratio", 0)  # fmt: skip
    assert result.code == 1
    assert "not finite" in result.error


def test_the_card_names_what_the_model_was_made_from(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST)
    card = (tmp_path / "run" / "README.md").read_text()
    manifest = json.loads((cache / "_manifest.json").read_text())
    assert "2506.14574" in card
    assert manifest["fingerprint"]["guidance_sha256"] in card
    assert "| alpha | 0.5 |" in card


def test_chat_pairs(ok: Cli, chat_models: Models, chat_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", chat_file, "--reference", chat_models.reference, "--guidance", chat_models.guidance,
       "--output", tmp_path / "cache")  # fmt: skip
    ok("train", "--cache", tmp_path / "cache", "--model", chat_models.reference, "--output", tmp_path / "run", *FAST)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.chat_template
    frame = pd.read_parquet(tmp_path / "cache")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(ids[-1] == end_of_turn for ids in frame.chosen_ids)
    assert frame.prompt[0].endswith("<|im_start|>assistant\n")


def test_bf16_weights(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
       "--dtype", "bfloat16")  # fmt: skip
    assert records_of(tmp_path / "run")[0]["loss"] == pytest.approx(0.6931, abs=0.02)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_bf16_autocast(ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
    ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / "run", *FAST,
       "--mixed-precision", "bf16")  # fmt: skip
    assert records_of(tmp_path / "run")[-1]["loss"] < 0.69
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype="auto").dtype == torch.float32
