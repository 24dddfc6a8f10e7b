"""What the workers of a cluster get, without Ray."""

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import Cli, Models

from tgdpo.errors import ModelError, UsageError
from tgdpo.pipeline.configuration import build
from tgdpo.pipeline.ray_cluster import Pool, device_of, pool_of
from tgdpo.stages.score.config import ScoreConfig


def ray_with(machines: int = 1, **resources: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: resources, nodes=lambda: [{"Alive": True}] * machines)


def config(**options: Any) -> ScoreConfig:
    return build(ScoreConfig, {"dataset": "d", "output": "o", "launcher": "ray"} | options)


@pytest.mark.parametrize(
    ("ray", "options", "expected"),
    [
        (ray_with(GPU=8, CPU=96), {}, Pool(8, 1, 1)),
        (ray_with(machines=4, GPU=32, CPU=400), {"gpus_per_worker": 4}, Pool(8, 4, 1)),
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
    assert pool_of(ray, config(**options)) == expected


def test_more_workers_than_gpus_wait_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert pool_of(ray_with(GPU=4, CPU=64), config(workers=8)).workers == 8
    assert "room for 4 of 8 workers" in capsys.readouterr().err


def test_no_gpu_for_a_worker() -> None:
    with pytest.raises(UsageError, match=r"--gpus-per-worker 2: the cluster has 1 GPUs"):
        pool_of(ray_with(GPU=1, CPU=8), config(gpus_per_worker=2))


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
