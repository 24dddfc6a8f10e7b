"""A policy that is in memory already, in place of a folder or hub name."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models import ModelSource, load_model, resolve
from .config import TrainConfig
from .lora import with_lora


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ModelSource):
    """A causal LM of transformers, or a PEFT model of one; it is trained in place."""

    model: Any

    @classmethod
    def of(cls, model: nn.Module) -> "LoadedModel":
        """Wraps `model`; its name is where its configuration says that it came from."""
        config: Any = model.config
        name = config._name_or_path or type(model).__name__
        return cls(name=name, folder=Path(name), kind="causal-lm", config=config.to_dict(), model=model)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of the weights as they were when this was first asked for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """None: it is in memory."""
        return ()

    @property
    def is_adapted(self) -> bool:
        """Whether it has a PEFT adapter, which alone is trained and saved."""
        return hasattr(self.model, "peft_config")

    def prepared(self, config: TrainConfig, device: torch.device, checkpoint: Path | None) -> Any:
        """The model on its device, with the weights of a checkpoint or a finished run where there is one."""
        model = self.model if hasattr(self.model, "hf_device_map") else self.model.to(device)
        if self.is_adapted:
            if checkpoint:
                _load_adapter(model, checkpoint, device)
            return model
        if config.lora_rank:
            return with_lora(config, model, checkpoint)
        if checkpoint:
            saved = load_model(resolve(str(checkpoint), "checkpoint"), dtype=model.dtype, device=torch.device("cpu"))
            model.load_state_dict(saved.state_dict())
        return model


def _load_adapter(model: Any, checkpoint: Path, device: torch.device) -> None:
    import peft

    weights = peft.load_peft_weights(str(checkpoint), device=str(device))
    peft.set_peft_model_state_dict(model, weights)
