"""The plan's exact parts against what training really holds."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import Cli, Models

from tgdpo import TrainConfig
from tgdpo.stages.train import memory
from tgdpo.stages.train.optimizer_state import pack
from tgdpo.stages.train.optimizers import OPTIMIZERS
from tgdpo.stages.train.run import TrainRun


def installed(package: str) -> Any:
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


class Held:
    """Bytes of a run after its last step."""

    weights = gradients = state = 0


def constants_of(policy: Any) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside its numbers."""
    found: list[torch.Tensor] = []
    for module in policy.modules():
        state = getattr(module._parameters.get("weight"), "quant_state", None)
        if state is not None:
            found += [value for value in state.as_dict().values() if torch.is_tensor(value)]
            found += [state.offset] if state.nested else []
        scales = getattr(getattr(module, "state", None), "SCB", None)
        found += [scales] if scales is not None else []
    return found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Filled by the next training run."""
    found = Held()
    original, clip = TrainRun.finish, TrainRun._clip_gradients

    def clipped(self: TrainRun, *arguments: Any) -> float:
        found.gradients = sum(p.grad.nbytes for p in self.policy.parameters() if p.grad is not None)
        return clip(self, *arguments)

    def finish(self: TrainRun) -> Any:
        result = original(self)
        found.weights = sum(tensor.nbytes for tensor in [*self.policy.parameters(), *constants_of(self.policy)])
        tensors, _ = pack(self.policy, self.optimizer)
        # bitsandbytes' tables are one for all parameters.
        found.state = sum(t.nbytes for name, t in tensors.items() if not name.endswith(("/qmap1", "/qmap2")))
        return result

    monkeypatch.setattr(TrainRun, "_clip_gradients", clipped)
    monkeypatch.setattr(TrainRun, "finish", finish)
    return found


def planned_model(config: TrainConfig, folder: Path) -> Any:
    """A model of the same shapes."""
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if config.lora_rank:
        from tgdpo.stages.train.lora import with_lora

        model = with_lora(config, model, None)
    return model


ON_CPU = [
    pytest.param(name, marks=[installed(kind.package)] if kind.package else [])
    for name, kind in OPTIMIZERS.items()
    if not kind.pages
]


@pytest.mark.parametrize("name", ON_CPU)
def test_weights_gradients_and_optimizer(
    name: str, held: Held, ok: Cli, scored: Path, models: Models, tmp_path: Path
) -> None:
    options = {"cache": str(scored), "model": str(models.reference), "output": str(tmp_path / "run"), "optim": name}
    config = TrainConfig(**options, max_steps=1, batch_size=4)
    ok("train", *(part for key, value in config.model_dump(exclude_defaults=True).items()
                  for part in (f"--{key.replace('_', '-')}", value)))  # fmt: skip
    model = planned_model(config, models.reference)
    assert memory.weight_bytes(config, model) == held.weights
    assert memory.gradient_bytes(model) == held.gradients
    assert memory.optimizer_bytes(config, model) == held.state


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"lora_rank": 4},
        pytest.param({"lora_rank": 4, "load_in_8bit": True}, marks=installed("bitsandbytes")),
        pytest.param({"lora_rank": 4, "load_in_4bit": True}, marks=installed("bitsandbytes")),
        pytest.param(
            {"lora_rank": 4, "load_in_4bit": True, "use_bnb_nested_quant": True}, marks=installed("bitsandbytes")
        ),
    ],
)
def test_other_weights(
    options: dict[str, Any], held: Held, ok: Cli, scored: Path, models: Models, tmp_path: Path
) -> None:
    paths = {"cache": str(scored), "model": str(models.reference), "output": str(tmp_path / "run")}
    config = TrainConfig(**paths, **options, max_steps=1, batch_size=4)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    ok("train", "--config", tmp_path / "config.yaml")
    model = planned_model(config, models.reference)
    assert memory.weight_bytes(config, model) == held.weights
    assert memory.gradient_bytes(model) == held.gradients
    assert memory.optimizer_bytes(config, model) == held.state
