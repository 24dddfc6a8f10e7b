"""TRL's DPOTrainer for train_step.py: its own loop, on the pairs of the others."""

import statistics
import tempfile
import time
from typing import Any

import tokenizers
import torch
from common import DEVICE, make_model, peak_mb

from tgdpo.data.tokenization import PairIds


def measure_trl(variant: str, name: str, dtype: str, steps: list[list[PairIds]], warm: int) -> dict[str, float]:
    """TRL's own training loop on the same ids; gradient checkpointing and bf16 autocast, its defaults, are off."""
    import datasets
    import transformers
    import trl

    class GivenIds(trl.DPOTrainer):  # type: ignore[misc]
        """Takes token ids as they are, in their order."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    rows = [{f"{part}_ids": ids.tolist() for part, ids in pair._asdict().items()} for pairs in steps for pair in pairs]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder, per_device_train_batch_size=len(steps[0]), max_steps=len(steps), max_length=None,
            bf16=False, gradient_checkpointing=False, use_cpu=DEVICE.type == "cpu", report_to=[], learning_rate=1e-5,
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            precompute_ref_log_probs=variant == "trl-cached", use_liger_kernel=variant == "trl-liger",
        )  # fmt: skip
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), eos_token="</s>", pad_token="</s>"
        )
        trainer = GivenIds(
            model=make_model(name, dtype),
            ref_model=make_model(name, dtype),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return {"seconds": statistics.median(clock.seconds[warm:]), "peak_mb": peak_mb()}
