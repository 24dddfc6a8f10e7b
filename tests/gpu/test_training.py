"""The trainer on the device against the CPU, and against itself when it is stopped and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import records_of, weights_of

from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.loop import TrainRun
from tgdpo.stages.train.run import train

pytestmark = pytest.mark.gpu


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def on_cpu(cache: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Five steps with transformers' own attention on padded rows, float32."""
    output = tmp_path_factory.mktemp("on-cpu") / "run"
    train(
        TrainConfig(
            cache=str(cache), model=str(policy), output=str(output), learning_rate=1e-3, batch_size=8,
            logging_steps=1, save_steps=0, device="cpu", attn_implementation="sdpa",
        )
    )  # fmt: skip
    return output, records_of(output)


def test_five_steps_equal_those_of_a_cpu(
    training: Any, on_cpu: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Packed rows in several passes, float32: losses, gradients and weights."""
    records = training(tmp_path / "run", mixed_precision="no", batch_tokens=256)
    run, expected = on_cpu
    assert len(records) == len(expected) == 5
    for name in ("loss", "grad_norm", "logps/chosen", "f/mean"):
        assert [r[name] for r in records] == pytest.approx([r[name] for r in expected], rel=1e-3), name
    found, wanted = weights_of(tmp_path / "run"), weights_of(run)
    for name, weight in wanted.items():
        # Adam moves what has hardly any gradient by the learning rate, whatever its sign.
        assert (found[name] - weight).abs().mean() <= 1e-4, name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_autocast_is_near_float32(
    checkpointing: bool, training: Any, on_cpu: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Float32 weights and bfloat16 arithmetic."""
    records = training(tmp_path / "run", mixed_precision="bf16", batch_tokens=256, gradient_checkpointing=checkpointing)
    assert losses(records) == pytest.approx(losses(on_cpu[1]), rel=0.05, abs=0.02)


def test_a_run_resumes_bit_for_bit(training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --batch-tokens given, mixed precision as it comes, and held-out pairs evaluated."""
    options = {"batch_tokens": 512, "save_steps": 2, "eval_fraction": 0.1}
    whole = training(tmp_path / "whole", **options)
    train_step = TrainRun._train_step

    def stop_at_step_3(self: TrainRun, *arguments: Any) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        train_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainRun, "_train_step", stop_at_step_3)
        with pytest.raises(KeyboardInterrupt):
            training(tmp_path / "stopped", **options)
    resumed = training(tmp_path / "stopped", **options)
    assert [{**r, "tokens_per_second": 0} for r in resumed] == [{**r, "tokens_per_second": 0} for r in whole]
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
