"""When `tgdpo train` stops before its last step: at convergence, and where numbers are not finite."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import Cli, Models, records_of, weights_of

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1, "--epochs", 6)
"""30 steps; the loss falls from 0.69 to under 0.1."""


@pytest.fixture
def call(scored: Path, models: Models, tmp_path: Path) -> tuple[object, ...]:
    """A training run, without its output."""
    return ("train", "--cache", scored, "--model", models.reference)


class TestConvergence:
    """--convergence-loss."""

    OPTIONS = (*FAST, "--convergence-loss", 0.4, "--convergence-window", 3)

    def test_stops_where_the_moving_average_is_below(self, ok: Cli, call: Any, tmp_path: Path) -> None:
        ok(*call, "--output", tmp_path / "whole", *FAST)
        losses = [record["loss"] for record in records_of(tmp_path / "whole")]
        expected = next(step for step in range(3, 30) if sum(losses[step - 3 : step]) / 3 < 0.4)
        assert 3 < expected < 30
        result = ok(*call, "--output", tmp_path / "run", *self.OPTIONS)
        assert result.stderr.splitlines()[-1].startswith("converged: the loss of the last 3 steps is 0.")
        assert f"step {expected}," in result.stdout
        assert [record["loss"] for record in records_of(tmp_path / "run")] == losses[:expected]
        again = ok(*call, "--output", tmp_path / "run", *self.OPTIONS)
        assert again.stdout == result.stdout

    def test_logs_evaluates_and_saves_where_it_stops(self, ok: Cli, call: Any, tmp_path: Path) -> None:
        ok(*call, "--output", tmp_path / "run", *self.OPTIONS, "--logging-steps", 100, "--eval-fraction", 0.2)
        train, evaluation = records_of(tmp_path / "run")[-2:]
        assert train["step"] == evaluation["step"] < 30
        assert "loss" in train
        assert "eval_loss" in evaluation
        assert (tmp_path / "run" / "model.safetensors").is_file()

    def test_a_resumed_run_stops_at_the_same_step(
        self, ok: Cli, run_cli: Cli, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ok(*call, "--output", tmp_path / "whole", *self.OPTIONS)
        steps = records_of(tmp_path / "whole")[-1]["step"]

        from tgdpo.stages.train.run import TrainRun

        original = TrainRun._train_step

        def interrupted(self: TrainRun, *arguments: Any) -> None:
            if self.step == steps - 1:
                raise KeyboardInterrupt
            original(self, *arguments)

        command = (*call, "--output", tmp_path / "stopped", *self.OPTIONS, "--save-steps", steps - 2)
        with monkeypatch.context() as patch:
            patch.setattr(TrainRun, "_train_step", interrupted)
            assert run_cli(*command).code == 130
        ok(*command)
        assert records_of(tmp_path / "stopped")[-1]["step"] == steps
        whole, stopped = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
        assert all(torch.equal(whole[name], stopped[name]) for name in whole)

    def test_a_window_alone_does_nothing_and_says_so(self, ok: Cli, call: Any, tmp_path: Path) -> None:
        result = ok(*call, "--output", tmp_path / "run", "--max-steps", 1, "--convergence-window", 3)
        assert "--convergence-window does nothing" in result.stderr


class TestNotFinite:
    """One line with the pairs' ids; what was saved before stays, and is finite."""

    @pytest.fixture
    def pair_ids(self, scored: Path) -> set[str]:
        """Of all pairs."""
        import pandas as pd

        return set(pd.read_parquet(scored).pair_id)

    def test_a_loss(self, run_cli: Cli, call: Any, pair_ids: set[str], tmp_path: Path) -> None:
        result = run_cli(*call, "--output", tmp_path / "run", "--learning-rate", 1e30, "--batch-size", 4,
                         "--warmup-ratio", 0, "--save-steps", 1)  # fmt: skip
        assert result.code == 1
        assert "is not finite" in result.error
        assert any(pair_id in result.error for pair_id in pair_ids)
        self.require_good_checkpoint(tmp_path / "run", step=1)

    def test_a_gradient(self, run_cli: Cli, call: Any, pair_ids: set[str], tmp_path: Path) -> None:
        """With f near float32's largest number the loss is still finite, and the gradient is not."""
        result = run_cli(*call, "--output", tmp_path / "run", "--alpha", 1e38, "--batch-size", 8)
        assert result.code == 1
        assert "the gradient of step 1 is not finite" in result.error
        assert sum(pair_id in result.error for pair_id in pair_ids) == 5
        assert "and 3 more" in result.error
        assert not (tmp_path / "run" / "model.safetensors").exists()

    def test_weights(self, run_cli: Cli, call: Any, tmp_path: Path) -> None:
        """A step that is too large leaves weights that must not be saved."""
        result = run_cli(*call, "--output", tmp_path / "run", "--learning-rate", 1e6, "--dtype", "float16",
                         "--batch-size", 4, "--warmup-ratio", 0, "--save-steps", 1)  # fmt: skip
        assert result.code == 1
        assert "after step 1 weights are not finite" in result.error
        assert not list((tmp_path / "run").rglob("*.safetensors"))

    def require_good_checkpoint(self, run: Path, *, step: int) -> None:
        checkpoint = run / "checkpoints" / f"step-{step}"
        assert json.loads((checkpoint / "trainer_state.json").read_text())["step"] == step
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint / "model.safetensors").values())
        assert not (run / "model.safetensors").exists()
