"""What the workers of a cluster get, without Ray."""

import pickle
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import Cli, Models

from tgdpo.errors import ModelError, UsageError
from tgdpo.pipeline import ray_launcher
from tgdpo.pipeline.configuration import build
from tgdpo.pipeline.ray_cluster import Pool, device_of, gpus_at_hand, gpus_of_worker, pool_of
from tgdpo.stages.score.config import ScoreConfig


def ray_with(machines: int = 1, **resources: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: resources, nodes=lambda: [{"Alive": True}] * machines)


def config(**options: Any) -> ScoreConfig:
    return build(ScoreConfig, {"dataset": "d", "output": "o", "launcher": "ray"} | options)


@pytest.mark.parametrize(
    ("ray", "options", "expected"),
    [
        (ray_with(GPU=8, CPU=96), {}, Pool(8, 1, 1)),
        (ray_with(machines=4, GPU=32, CPU=400), {"tensor_parallel_size": 4}, Pool(8, 4, 1)),
        (ray_with(GPU=2, CPU=16), {"gpus_per_worker": 0.5}, Pool(4, 0.5, 1)),
        (ray_with(GPU=8, CPU=96), {"workers": 3}, Pool(3, 1, 1)),
        (ray_with(GPU=8, CPU=96), {"device": "cpu"}, Pool(1, 0, 96)),
        (ray_with(machines=3, CPU=24), {}, Pool(3, 0, 8)),
        (ray_with(CPU=16), {"workers": 4}, Pool(4, 0, 4)),
        (ray_with(CPU=2), {"workers": 8}, Pool(8, 0, 0.25)),
        (ray_with(GPU=8, CPU=96), {"gpus_per_worker": 0, "workers": 2}, Pool(2, 0, 48)),
    ],
)
def test_pool(ray: Any, options: dict[str, Any], expected: Pool) -> None:
    given = config(**options)
    gpus = gpus_of_worker(given, "vllm", {"tensor_parallel_size": options.get("tensor_parallel_size", 1)},
                          gpus_at_hand(ray, given))  # fmt: skip
    assert pool_of(ray, given, gpus) == expected


def gpus_with(engine: str, arguments: dict[str, int], asked: float | None) -> float:
    given = config() if asked is None else config(gpus_per_worker=asked)
    return gpus_of_worker(given, engine, arguments, gpus_at_hand(ray_with(GPU=8, CPU=96), given))


@pytest.mark.parametrize(
    ("engine", "arguments", "asked", "expected"),
    [
        ("transformers", {}, None, 1),
        ("transformers", {}, 0.5, 0.5),
        ("transformers", {}, 0, 0),
        ("vllm", {}, None, 1),
        ("vllm", {"tensor_parallel_size": 4}, None, 4),
        ("vllm", {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, None, 8),
        ("vllm", {"tensor_parallel_size": 4}, 4, 4),
        ("vllm", {"tensor_parallel_size": 4}, 0, 0),
        ("my.own.Engine", {}, None, 1),
        ("my.own.Engine", {}, 2, 2),
    ],
)
def test_gpus_of_a_worker_are_those_of_a_model(
    engine: str, arguments: dict[str, int], asked: float | None, expected: float
) -> None:
    assert gpus_with(engine, arguments, asked) == expected


@pytest.mark.parametrize(
    ("engine", "arguments", "asked", "message"),
    [
        ("vllm", {"tensor_parallel_size": 4}, 1, "per-worker 1: with --tensor-parallel-size 4 a model runs on 4 GPUs"),
        ("vllm", {"tensor_parallel_size": 2}, 0.5, "a model runs on 2 GPUs: leave --gpus-per-worker out"),
        ("vllm", {"tensor_parallel_size": 2}, 4, "vllm would run a model on 2 of them.* --tensor-parallel-size 4"),
        ("transformers", {}, 2, "transformers would run a model on 1 of them.* --engine vllm --tensor-parallel-size 2"),
    ],
)
def test_gpus_that_the_engine_does_not_use(engine: str, arguments: dict[str, int], asked: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gpus_with(engine, arguments, asked)


def test_more_workers_than_gpus_wait_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert pool_of(ray_with(GPU=4, CPU=64), config(workers=8), gpus=1).workers == 8
    assert "room for 4 of 8 workers" in capsys.readouterr().err


def test_no_gpu_for_a_worker() -> None:
    with pytest.raises(UsageError, match=r"a worker needs 2 GPUs: the cluster has 1"):
        pool_of(ray_with(GPU=1, CPU=8), config(), gpus=2)


def test_gpus_that_would_idle_are_refused_before_anything_is_done(
    run_cli: Cli, models: Models, pairs_file: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_launcher, "import_ray", lambda: ray_with(GPU=8, CPU=96))
    monkeypatch.setattr(ray_launcher, "cluster", lambda *_: nullcontext())
    result = run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
                     "--launcher", "ray", "--gpus-per-worker", 2, "--engine", "transformers")  # fmt: skip
    assert result.code == 2
    assert "--gpus-per-worker 2: transformers would run a model on 1 of them" in result.error
    assert not (tmp_path / "cache").exists()


def test_devices_are_the_workers() -> None:
    """Of the launcher's machine nothing is asked; each worker sees its own GPUs alone, so their number says nothing."""
    assert device_of(config(), 1.0) == torch.device("cuda")
    assert device_of(config(device="cuda:3"), 1.0) == torch.device("cuda")
    assert device_of(config(), 0.0) == torch.device("cpu")
    with pytest.raises(UsageError, match="the workers get no GPU"):
        device_of(config(device="cuda"), 0.0)


def test_without_ray_a_line_says_what_to_install(
    run_cli: Cli, models: Models, pairs_file: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")  # the launcher would set it for good
    result = run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
                     "--launcher", "ray")  # fmt: skip
    assert result.code == 2
    assert "pip install 'tgdpo[ray]'" in result.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers is for Ray workers: add --launcher ray"),
        (["--launcher", "ray", "--worker", "0/2"], "two ways to share the work: choose one"),
        (["--gpus", "8"], "--gpus is what --plan reckons with"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, run_cli: Cli, models: Models, pairs_file: Any, tmp_path: Any
) -> None:
    result = run_cli(
        *("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache", *options)
    )
    assert result.code == 2
    assert message in result.error


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ModelError("a model is broken", fix="mend it")))
    assert isinstance(error, ModelError)
    assert (str(error), error.problem, error.fix) == ("a model is broken: mend it", "a model is broken", "mend it")
