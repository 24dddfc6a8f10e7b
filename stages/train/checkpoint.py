"""Checkpoints, whole or not there: written under a temporary name and renamed when all of it is on disk.

No pickle: weights and optimizer state are safetensors, the rest is JSON.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ...data.files import sync
from ...errors import TrainingError
from .optimizer_state import pack, unpack

STATE_VERSION = 2
_STATE = "trainer_state.json"
_OPTIMIZER = "optimizer.safetensors"
_VALUES = "values"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`."""
    found = [path for path in folder.glob("step-*") if (path / _STATE).is_file()]
    return max(found, key=_step_of, default=None)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    save_weights: Any,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> None:
    """Writes `folder/step-N` and removes all but the newest `keep`.

    Args:
        save_weights: called with the folder to write the weights to.
        state: JSON values that the loop needs to go on.
    """
    temporary = folder / f".step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(temporary)
    tensors, values = pack(policy, optimizer)
    save_file(tensors, temporary / _OPTIMIZER, metadata={_VALUES: json.dumps(values)})
    # A learning rate may be a tensor.
    (temporary / _STATE).write_text(json.dumps({"state_version": STATE_VERSION} | state, indent=1, default=float))
    for path in temporary.iterdir():
        sync(path)
    final = folder / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)
    os.rename(temporary, final)
    sync(folder)
    for old in sorted(folder.glob("step-*"), key=_step_of)[:-keep]:
        shutil.rmtree(old)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint. Raises TrainingError for another version."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    if state.get("state_version") != STATE_VERSION:
        raise TrainingError(
            f"{checkpoint} has state version {state.get('state_version')}, this tgdpo reads {STATE_VERSION}",
            fix="use the tgdpo that wrote it, or start in another --output",
        )
    return state


def load_optimizer(checkpoint: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the saved moments back; hyperparameters stay those of the configuration."""
    with safe_open(checkpoint / _OPTIMIZER, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()[_VALUES])
    unpack(policy, optimizer, tensors, values)
