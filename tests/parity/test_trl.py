"""TRL's DPOTrainer from the same start on the same pairs: alpha 0 gives its losses, tokenisation to optimizer."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import trl
from support import Cli

from tgdpo.data.cache import RewardCache
from tgdpo.stages.train.order import PairOrder

BATCH, STEPS = 8, 5


class InOrder(trl.DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on its rows as they come."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def rows_in_order(cache: Path, data: Path) -> list[dict[str, str]]:
    """The rows of the source in the order that training takes them."""
    opened = RewardCache(cache)
    order = [pair.pair_id for pair in PairOrder(opened, seed=42, eval_fraction=0).epoch(0)]
    source_rows = dict(
        opened.read_row_group(opened.row_groups[0])
        .select(["pair_id", "source_row"])
        .to_pandas()
        .itertuples(index=False)
    )
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    return [{key: rows[source_rows[name]][key] for key in ("prompt", "chosen", "rejected")} for name in order]


def losses_of(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records]


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (["--loss", "dpo"], {}),
        (["--alpha", 0], {}),
        (["--loss", "ipo"], {"loss_type": ["ipo"]}),
        (["--loss", "ld-dpo", "--ld-alpha", 0.3], {"ld_alpha": 0.3}),
    ],
    ids=["dpo", "alpha-0", "ipo", "ld-dpo"],
)
def test_first_losses_equal_trls(
    options: list[object], theirs: dict[str, Any], ok: Cli, shared: Path, tmp_path: Path
) -> None:
    model = shared / "models" / "stories260K"
    data = shared / "data" / "stories_test.jsonl"
    cache, run = tmp_path / "cache", tmp_path / "run"
    ok("score", "--dataset", data, "--reference", model, "--guidance", model, "--output", cache, "--limit", 60)
    ok("train", "--cache", cache, "--model", model, "--output", run, "--batch-size", BATCH, "--max-steps", STEPS,
       "--learning-rate", 1e-3, "--warmup-ratio", 0, "--logging-steps", 1, *options)  # fmt: skip

    in_order = rows_in_order(cache, data)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0, logging_steps=1, beta=0.1, max_length=None, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **theirs,
    )  # fmt: skip
    trainer = InOrder(
        model=transformers.AutoModelForCausalLM.from_pretrained(model),
        ref_model=transformers.AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(in_order),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    require_same_losses(run, trainer)


def require_same_losses(run: Path, trainer: Any) -> None:
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(theirs) == STEPS
    assert abs(theirs[-1] - theirs[0]) > 0.01, "the runs do not learn, so they prove nothing"
    assert losses_of(run) == pytest.approx(theirs, rel=1e-4, abs=1e-4)


class InOrderSft(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer on its rows as they come."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_sft_is_trls(ok: Cli, shared: Path, tmp_path: Path) -> None:
    """The mean over the chosen tokens of a step, not the mean of its responses' means."""
    model = shared / "models" / "stories260K"
    data = shared / "data" / "stories_test.jsonl"
    cache, run = tmp_path / "cache", tmp_path / "run"
    ok("score", "--dataset", data, "--reference", model, "--output", cache, "--limit", 60)
    ok("train", "--loss", "sft", "--cache", cache, "--model", model, "--output", run, "--batch-size", BATCH,
       "--max-steps", STEPS, "--learning-rate", 1e-3, "--warmup-ratio", 0, "--logging-steps", 1,
       "--batch-tokens", 300)  # fmt: skip
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows_in_order(cache, data)]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0, logging_steps=1, max_length=None, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        completion_only_loss=True,
    )  # fmt: skip
    trainer = InOrderSft(
        model=transformers.AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    require_same_losses(run, trainer)
