"""`--optim`: every optimizer learns, keeps the memory that its name says, and goes on from a checkpoint bit for bit."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import Cli, Models, records_of, weights_of

from tgdpo.stages.train.optimizers import OPTIMIZERS
from tgdpo.stages.train.run import TrainRun

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1, "--epochs", 2, "--keep-checkpoints", 9)


def installed(package: str) -> Any:
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


ON_CPU = [
    pytest.param(name, marks=[installed(kind.package)] if kind.package else [])
    for name, kind in OPTIMIZERS.items()
    if not kind.pages
]


@pytest.fixture
def call(scored: Path, models: Models) -> tuple[object, ...]:
    """A training run, without its output."""
    return ("train", "--cache", scored, "--model", models.reference, *FAST)


def train_with_a_stop(
    call: Any, ok: Cli, run_cli: Cli, whole: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run without a stop, and stopped at step 6 and gone on with."""
    ok(*call, "--output", whole, "--save-steps", 4)
    original = TrainRun._train_step

    def interrupted(self: TrainRun, *arguments: Any) -> None:
        if self.step == 6:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainRun, "_train_step", interrupted)
        assert run_cli(*call, "--output", stopped, "--save-steps", 4).code == 130
    assert "step-4" in ok(*call, "--output", stopped, "--save-steps", 4).stderr


def assert_same_weights(whole: Path, stopped: Path) -> None:
    expected, found = weights_of(whole), weights_of(stopped)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("name", ON_CPU)
def test_learns_and_resumes_bit_for_bit(
    name: str, call: Any, ok: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--optim", name, *(("--learning-rate", 0.3) if name == "sgd" else ()))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_with_a_stop((*call, *options), ok, run_cli, whole, stopped, monkeypatch)
    losses = [record["loss"] for record in records_of(whole)]
    assert losses[-1] < 0.9 * losses[0]
    assert [record["loss"] for record in records_of(stopped)] == losses
    assert_same_weights(whole, stopped)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adafactor_keeps_float32_moments_of_any_weights(
    dtype: str, call: Any, ok: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own loading would cast them to the weights' dtype."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ("--optim", "adafactor", "--dtype", dtype)
    train_with_a_stop((*call, *options), ok, run_cli, whole, stopped, monkeypatch)
    assert_same_weights(whole, stopped)


@installed("torchao")
def test_stochastic_rounding_moves_weights_by_less_than_their_precision(
    call: Any, models: Models, ok: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps far under bfloat16's resolution are lost to rounding to nearest, and kept on average by chance."""
    small = ("--learning-rate", 1e-6, "--dtype", "bfloat16", "--warmup-ratio", 0, "--lr-scheduler", "constant")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_with_a_stop((*call, *small, "--stochastic-rounding"), ok, run_cli, whole, stopped, monkeypatch)
    assert_same_weights(whole, stopped)
    ok(*call, *small, "--output", tmp_path / "nearest")
    name = "model.layers.0.self_attn.q_proj.weight"
    start = load_file(models.reference / "model.safetensors")[name].bfloat16()

    def changed(run: Path) -> float:
        return (weights_of(run)[name].bfloat16() != start).float().mean().item()

    assert changed(tmp_path / "nearest") < 0.02 < changed(whole)


class TestRefused:
    """One line that says what is missing or cannot be."""

    @pytest.fixture
    def refused(self, run_cli: Cli, call: Any, tmp_path: Path) -> Any:
        def refused(*options: object) -> str:
            result = run_cli(*call, "--output", tmp_path / "run", *options)
            assert result.code == 2
            assert result.stderr.splitlines() == [result.error]
            assert not (tmp_path / "run").exists()
            return result.error

        return refused

    @pytest.mark.parametrize(
        ("options", "package"),
        [
            (["--optim", "adamw_8bit"], "bitsandbytes"),
            (["--optim", "adamw_torch_4bit"], "torchao"),
            (["--dtype", "bfloat16", "--stochastic-rounding"], "torchao"),
        ],
    )
    def test_a_missing_package(
        self, options: list[str], package: str, refused: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
        )
        assert f"pip install 'tgdpo[{package}]'" in refused(*options)

    @installed("bitsandbytes")
    @pytest.mark.parametrize(
        ("name", "instead"),
        [("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch"), ("paged_lion_32bit", "lion_32bit")],
    )
    def test_paging_without_a_gpu(self, name: str, instead: str, refused: Any) -> None:
        error = refused("--optim", name)
        assert "the device is cpu" in error
        assert error.endswith(f"use --optim {instead}")

    @installed("torchao")
    def test_compiled_ones_without_a_compiler(self, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda _: None)
        assert "no C++ compiler" in refused("--optim", "adamw_torch_8bit")

    @pytest.mark.parametrize(
        "options", [["--dtype", "float32"], ["--dtype", "bfloat16", "--optim", "adamw_8bit"],
                    ["--dtype", "bfloat16", "--lora-rank", 4]],
    )  # fmt: skip
    def test_stochastic_rounding_that_would_do_nothing(self, options: list[Any], refused: Any) -> None:
        assert "--stochastic-rounding" in refused("--stochastic-rounding", *options)

    def test_an_unknown_name_lists_the_known(self, refused: Any) -> None:
        assert "adamw_torch_fused" in refused("--optim", "adamw")


def test_options_that_an_optimizer_does_not_take_are_named(call: Any, ok: Cli, tmp_path: Path) -> None:
    result = ok(*call, "--output", tmp_path / "run", "--max-steps", 1, "--optim", "sgd", "--adam-beta1", 0.5)
    assert "--adam-beta1 does nothing with --optim sgd" in result.stderr
