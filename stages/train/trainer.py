"""Training from Python as TRL's users know it: a configuration, a trainer, `train()`.

A thin class over the same run as `tgdpo train`: the same steps, losses, files and messages.
"""

import os
from pathlib import Path
from typing import Any

import transformers
from pydantic import Field, model_validator
from torch import nn
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from ...data.cache import RewardCache
from ...errors import UsageError
from ..models import pick_device
from .config import TrainConfig
from .folder import RunFolder
from .loaded import LoadedModel
from .run import train

_TRL_NAMES = {
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "lr_scheduler",
    "save_total_limit": "keep_checkpoints",
    "lora_r": "lora_rank",
}
"""transformers' and TRL's names of our options."""


class TGDPOConfig(TrainConfig):
    """The options of `tgdpo train` for `TGDPOTrainer`; TRL's names of them are taken too.

    `output_dir`, `num_train_epochs`, `lr_scheduler_type`, `save_total_limit`, `lora_r` are other names; `bf16` and
    `fp16` choose `mixed_precision`; `per_device_train_batch_size` times `gradient_accumulation_steps` times the number
    of processes is `batch_size`. `cache` and `model` are the trainer's arguments.
    """

    cache: str = Field("", repr=False)
    model: str = Field("", repr=False)

    @model_validator(mode="before")
    @classmethod
    def _take_trl_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        for theirs in _TRL_NAMES.keys() & values.keys():
            _set_once(values, _TRL_NAMES[theirs], values.pop(theirs), theirs)
        for precision in ("bf16", "fp16"):
            if values.pop(precision, False):
                _set_once(values, "mixed_precision", precision, precision)
        sizes = [values.pop(name, None) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
        if sizes[0] is not None:
            size = sizes[0] * (sizes[1] or 1) * int(os.environ.get("WORLD_SIZE", "1"))
            _set_once(values, "batch_size", size, "per_device_train_batch_size")
        elif sizes[1] is not None:
            raise ValueError("gradient_accumulation_steps without per_device_train_batch_size; set batch_size")
        if values.get("max_steps") == -1:
            values["max_steps"] = None
        if isinstance(values.get("report_to"), str):
            values["report_to"] = (values["report_to"],)
        return values


def _set_once(values: dict[str, Any], name: str, value: Any, given_as: str) -> None:
    if values.setdefault(name, value) != value:
        raise ValueError(f"{given_as} and another option set {name} to {value} and to {values[name]}; set it once")


class TGDPOTrainer:
    """Trains a policy from a reward cache.

    Args:
        model: a causal LM of transformers, which is trained in place, or its folder or hub name.
        args: the options.
        train_dataset: the cache, or its folder: the output of `tgdpo score`.
        processing_class: the tokenizer; without one, that of the model's folder or hub name.
        peft_config: an adapter to train instead of the model's own weights.

    Raises:
        UsageError: an argument is of no use here.
        CacheError: there is no cache.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: TGDPOConfig,
        train_dataset: RewardCache | str | Path,
        processing_class: Any = None,
        peft_config: Any = None,
    ) -> None:
        cache = _cache_of(train_dataset)
        self.processing_class = processing_class
        self.model: Any = model
        self._start: LoadedModel | None = None
        if isinstance(model, nn.Module):
            if peft_config is not None:
                import peft

                self.model = peft.get_peft_model(model, peft_config)
            self._start = LoadedModel.of(self.model)
            name = self._start.name
        elif peft_config is not None:
            raise UsageError("peft_config with a model by name", fix="set lora_rank in args, or load the model first")
        else:
            name = str(model)
        self.args = args.model_copy(update={"cache": str(cache.storage), "model": name} | _adapter_options(self.model))

    def train(self, resume_from_checkpoint: bool | None = None) -> TrainOutput:
        """Trains, or goes on where an earlier start with the same output folder stopped.

        Args:
            resume_from_checkpoint: False refuses an output folder that holds a run.

        Returns:
            The steps, the last loss and the last metrics; `model` is then the trained policy.

        Raises:
            TgdpoError: what was asked for cannot work; checkpoints stay.
        """
        args = self.args.model_copy(update={"resume": "never"}) if resume_from_checkpoint is False else self.args
        config = TrainConfig(**args.model_dump(exclude_unset=True))
        result = train(config, start=self._start, tokenizer=self.processing_class)
        self.model = result.policy if result.policy is not None else self._finished_policy(config)
        self.model.eval()
        summary = result.summary
        return TrainOutput(summary["step"], summary["loss"], summary)

    def _finished_policy(self, config: TrainConfig) -> Any:
        """What an earlier start has trained."""
        folder = RunFolder(config)
        path = folder.fetch_model()
        if self._start is not None:
            policy = self._start.prepared(config, pick_device(config.device), path)
        else:
            policy = transformers.AutoModelForCausalLM.from_pretrained(path)
        folder.leave()
        return policy

    @property
    def state(self) -> TrainerState:
        """`log_history` with all logged steps, `global_step` and `epoch`."""
        records = RunFolder(self.args).logged()
        last = records[-1] if records else {"step": 0, "epoch": 0.0}
        return TrainerState(global_step=last["step"], epoch=last["epoch"], log_history=records)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Saves policy and tokenizer somewhere else too; the run's output folder holds them anyway."""
        if output_dir is not None:
            self.model.save_pretrained(output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)


def _cache_of(dataset: Any) -> RewardCache:
    if isinstance(dataset, RewardCache):
        return dataset
    if isinstance(dataset, str | Path):
        return RewardCache(dataset)
    raise UsageError(
        f"train_dataset is a {type(dataset).__name__}, and training reads a reward cache",
        fix="score the pairs first (tgdpo.score, tgdpo score) and give its output folder",
    )


def _adapter_options(model: Any) -> dict[str, Any]:
    """What the run must know of an adapter that the model brings."""
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return {}
    adapter = next(iter(adapters.values()))
    known = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    options = {ours: getattr(adapter, theirs) for ours, theirs in known.items() if hasattr(adapter, theirs)}
    return {"lora_rank": 1} | options
