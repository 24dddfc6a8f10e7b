"""Optimizer states through safetensors and JSON, shared and composite tensors included."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tgdpo.errors import TrainingError
from tgdpo.stages.train.optimizer_state import pack, unpack


def train(optimizer: Any, model: nn.Module, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(4, 128)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def through_files(model: nn.Module, optimizer: Any, folder: Path) -> Any:
    tensors, state = pack(model, optimizer)
    save_file(tensors, folder / "tensors")
    return load_file(folder / "tensors"), json.loads(json.dumps(state))


def model_of(weights: dict[str, torch.Tensor] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    if weights:
        model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("bits", [8, 32])
def test_paged_state_is_put_back_into_the_optimizers_own_buffers(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kind = bitsandbytes.optim.AdamW
    model = model_of()
    optimizer = kind(model.parameters(), lr=1e-2, optim_bits=bits, is_paged=True)
    train(optimizer, model, 3)
    files = through_files(model, optimizer, tmp_path)
    other = model_of(model.state_dict())
    resumed = kind(other.parameters(), lr=1e-2, optim_bits=bits, is_paged=True)
    made: list[torch.dtype] = []
    own = kind.get_state_buffer

    def recorded(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        made.append(dtype)
        return own(self, p, dtype)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "get_state_buffer", recorded)
        unpack(other, resumed, *files)
    weight_dtype = torch.uint8 if bits == 8 else torch.float32
    assert sorted(map(str, made)) == sorted(map(str, [weight_dtype, weight_dtype, torch.float32, torch.float32]))
    train(optimizer, model, 3)
    train(resumed, other, 3)
    assert torch.equal(model.weight, other.weight)  # type: ignore[arg-type]


def test_numbers_and_nothing_come_back_as_they_are(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer, resumed = (torch.optim.SGD(model.parameters()) for _ in range(2))
    optimizer.state[model.weight] = {"momentum_buffer": None, "step": 3, "RMS": 0.1}
    unpack(model, resumed, *through_files(model, optimizer, tmp_path))
    assert resumed.state[model.weight] == {"momentum_buffer": None, "step": 3, "RMS": 0.1}


def test_a_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    train(optimizer, model, 1)
    files = through_files(model, optimizer, tmp_path)
    with pytest.raises(TrainingError, match="of other weights"):
        unpack(model, torch.optim.AdamW([model.weight]), *files)
    other = nn.Sequential(model_of())
    with pytest.raises(TrainingError, match="of other weights"):
        unpack(other, torch.optim.AdamW(other.parameters()), *files)


def test_no_class_is_imported_but_torchaos() -> None:
    model = nn.Linear(2, 2)
    packed = {"weight/exp_avg": {"class": "subprocess.Popen", "parts": {}, "attributes": []}}
    with pytest.raises(TrainingError, match=r"subprocess\.Popen"):
        unpack(model, torch.optim.AdamW(model.parameters()), {}, packed)


@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao is not installed")
def test_quantised_moments_stay_quantised(tmp_path: Path) -> None:
    from torchao.optim import AdamW8bit

    model = model_of()
    optimizer = AdamW8bit(model.parameters())
    weight = model.weight
    weight.grad = torch.randn_like(weight)  # type: ignore[arg-type]
    state = optimizer.state[weight]
    state |= {"step": torch.tensor(1.0), "exp_avg": optimizer._new_buffer(weight, True)}
    state["exp_avg"].copy_(weight.grad)
    tensors, values = through_files(model, optimizer, tmp_path)
    assert tensors["weight/exp_avg/codes"].dtype == torch.uint8
    resumed = AdamW8bit(model.parameters())
    unpack(model, resumed, tensors, values)
    found, expected = resumed.state[weight]["exp_avg"], state["exp_avg"]
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert torch.equal(found.dequantize(), expected.dequantize())
