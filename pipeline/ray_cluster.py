"""A Ray cluster: connected to or started, and what a pool of workers gets of it."""

import math
import os
import socket
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ..errors import UsageError
from ..stages.console import log, warn
from ..stages.score.config import ScoreConfig
from ..stages.score.engines import ENGINES, argument_option


@dataclass(frozen=True)
class Pool:
    """How many workers, and what each of them gets."""

    workers: int
    gpus: float
    cpus: float


def import_ray() -> Any:
    """The module. Raises UsageError where it is not installed."""
    # Ray would hide all GPUs from actors that ask for none with a warning, and send usage statistics.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError("--launcher ray: the package ray is not installed", fix="pip install 'tgdpo[ray]'") from error


@contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster: the one of `address` or $RAY_ADDRESS, else one that runs here, else one of our own."""
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            _require_listener(address or os.environ.get("RAY_ADDRESS"))
            ray.init(
                address=address, include_dashboard=False if address in (None, "local") else None, logging_level="ERROR"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--launcher ray: no cluster answers at {address or 'the default address'} ({last_line(error)})",
                fix="check the address, and set RAY_AUTH_MODE=token where the cluster wants a token; or start one "
                "with 'ray start --head', or leave --address out to use this machine",
            ) from error
    try:
        yield
    finally:
        if not was_connected:
            ray.shutdown()


def _require_listener(address: str | None) -> None:
    """Raises OSError where nobody listens at HOST:PORT, which Ray would find out after minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def gpus_at_hand(ray: Any, config: ScoreConfig) -> float:
    """GPUs of a worker, where nothing but the options and the cluster is known: as asked, else one if there are any."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU") and not config.device.startswith("cpu") else 0.0


def gpus_of_worker(config: ScoreConfig, engine: str, arguments: Mapping[str, Any], at_hand: float) -> float:
    """GPUs of a worker: as many as the engine runs a model on.

    Args:
        engine: its name.
        arguments: the engine's, by its own names.
        at_hand: what `gpus_at_hand` says; 0 stays 0.

    Raises:
        UsageError: other than the engine can use were asked for.
    """
    if engine not in ENGINES or not at_hand:
        return at_hand
    sizes = {name: int(arguments.get(name, 1)) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    needed = math.prod(sizes.values()) if engine == "vllm" else 1
    asked = config.gpus_per_worker
    if asked is None or asked == needed or (asked < 1 and needed == 1):
        return asked or float(needed)
    if asked < needed:
        given = " ".join(f"{argument_option(name)} {size}" for name, size in sizes.items() if size > 1)
        raise UsageError(
            f"--gpus-per-worker {asked:g}: with {given} a model runs on {needed} GPUs",
            fix="leave --gpus-per-worker out",
        )
    raise UsageError(
        f"--gpus-per-worker {asked:g}: {engine} would run a model on {needed} of them, and the others would idle",
        fix=f"leave it out, or use --engine vllm --tensor-parallel-size {math.ceil(asked)}",
    )


def pool_of(ray: Any, config: ScoreConfig, gpus: float) -> Pool:
    """What was asked for; by default as many workers as there are GPUs for, or without GPUs a worker per machine.

    Without GPUs the workers share the CPUs, also where there are fewer.

    Args:
        gpus: of a worker.

    Raises:
        UsageError: the cluster has no room for one worker, and no number of workers was given.
    """
    total = ray.cluster_resources()
    machines = sum(node["Alive"] for node in ray.nodes())
    workers = config.workers or (int(total.get("GPU", 0) / gpus) if gpus else machines)
    if not workers:
        raise UsageError(
            f"a worker needs {gpus:g} GPUs: the cluster has {total.get('GPU', 0):g}",
            fix="use fewer (--gpus-per-worker, --tensor-parallel-size), or name --workers and add machines meanwhile",
        )
    share = total.get("CPU", 1.0) / workers
    cpus = 1.0 if gpus else float(int(share)) if share >= 1 else math.floor(1000 * share) / 1000
    room = min(int(total.get("GPU", 0) / gpus) if gpus else workers, int(total.get("CPU", 1) / cpus))
    log(f"ray: {workers} workers with {gpus:g} GPUs and {cpus:g} CPUs each, {machines} machines")
    if room < workers:
        warn(f"the cluster has room for {room} of {workers} workers; the others wait until there is more")
    return Pool(workers, gpus, cpus)


def device_of(config: ScoreConfig, gpus: float) -> torch.device:
    """The workers' device, which this process need not have. Ray shows each worker its own GPUs alone."""
    if config.device == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind = config.device.partition(":")[0]
    if kind == "cuda" and not gpus:
        raise UsageError("--device cuda, but the workers get no GPU", fix="give them some with --gpus-per-worker")
    return torch.device(kind)


def last_line(error: Exception) -> str:
    """What Ray has to say, shortened to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 160, placeholder=" …") if lines else type(error).__name__
