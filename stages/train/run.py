"""Stage two from start to end: a plain loop over the reward cache with the policy as the only model in memory.

Every process runs this loop over the same global batches and trains on its part of each; the first alone prints and
writes.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState

from ...data.cache import RewardCache, ScoredPair
from ...data.tokenization import chat_template_hash, vocabulary_hash
from ...errors import CacheError, ModelError, TrainingError, UsageError
from ..console import Meter, log, meter, quiet_libraries, warn
from ..logps import ResponseLogps
from ..models import ModelSource, has_tokenizer, load_tokenizer, resolve
from .card import write_card
from .checkpoint import read_state, save_checkpoint
from .config import TrainConfig
from .folder import FINISHED, RunFolder
from .losses import LOSSES, LossSettings
from .metrics import MetricSums
from .order import PairOrder
from .parallel import Parallel
from .policy import load_policy, parameter_groups, save_policy
from .shapes import SHAPES
from .state import SHARDED, full_weights, load_optimizer, load_sharded, save_optimizer, save_sharded
from .step import StepRunner
from .trackers import Reporter, require_installed


class TrainResult(NamedTuple):
    """Where the trained policy lies, and its last metrics."""

    output: Path
    summary: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Trains the policy from the cache, or goes on where an earlier start of the same run stopped.

    Raises:
        TgdpoError: what was asked for cannot work; checkpoints stay.
    """
    quiet_libraries()
    require_installed(config.report_to)
    for name, why in config.idle.items():
        warn(f"--{name.replace('_', '-')} does nothing with {why}")
    cache = RewardCache(config.cache)
    source = resolve(config.model, "--model", trust_remote_code=config.trust_remote_code)
    tokenizer = _fitting_tokenizer(config, cache, source)
    cache.require_complete()
    folder = RunFolder(config)
    try:
        parallel = Parallel(config)
        result = _train(config, cache, source, tokenizer, folder, parallel)
        parallel.end()
        return result
    finally:
        # accelerate keeps its state for the whole process; a second run may have other settings.
        AcceleratorState._reset_state(reset_partial_state=True)


def _train(
    config: TrainConfig, cache: RewardCache, source: ModelSource, tokenizer: Any, folder: RunFolder, parallel: Parallel
) -> TrainResult:
    def claim() -> int:
        return folder.claim({"cache_sha256": cache.content_hash, "model_sha256": source.content_hash})

    step = parallel.decided_by_main(claim)
    if step == FINISHED:
        log(f"{folder.path} is finished already, nothing to do")
        return TrainResult(folder.path, folder.read_record()["summary"])
    return TrainRun(config, cache, source, tokenizer, folder, parallel, folder.checkpoint(step)).finish()


def _fitting_tokenizer(config: TrainConfig, cache: RewardCache, source: ModelSource) -> Any:
    """The policy's tokenizer. Raises where cache and policy, or cache and loss, do not go together."""
    manifest = cache.manifest
    if manifest.rows == 0:
        raise CacheError(f"{cache.storage} holds no pairs", fix="score a preference set with usable rows")
    if config.loss == "tgdpo" and manifest.reward_kind == "none":
        raise CacheError(
            f"{cache.storage} was scored without guidance, so it has no token rewards",
            fix="score it with --guidance, or train with --loss dpo",
        )
    with_tokenizer = source
    if source.kind == "adapter" and not has_tokenizer(source):
        with_tokenizer = resolve(source.base_name or "", f"--model {source.name} has the base")
    tokenizer = load_tokenizer(with_tokenizer)
    if vocabulary_hash(tokenizer) != manifest.tokenizer_vocabulary_sha256:
        raise ModelError(
            f"--model {source.name} has another vocabulary than the cache's tokenizer ({manifest.tokenizer})",
            fix="train a model of the family that the cache was scored with, or score again",
        )
    templates = chat_template_hash(tokenizer), manifest.fingerprint.get("chat_template_sha256")
    if manifest.conversational and None not in templates and templates[0] != templates[1]:
        raise ModelError(
            f"--model {source.name} has another chat template than the cache's tokenizer ({manifest.tokenizer})",
            fix="save the same template beside the policy, or score again with it",
        )
    return tokenizer


class TrainRun:
    """One training run, ready to start or to go on from `checkpoint`."""

    def __init__(
        self,
        config: TrainConfig,
        cache: RewardCache,
        source: ModelSource,
        tokenizer: Any,
        folder: RunFolder,
        parallel: Parallel,
        checkpoint: Path | None,
    ) -> None:
        self.config = config
        self.cache = cache
        self.folder = folder
        self.parallel = parallel
        self.tokenizer = tokenizer
        self.order = PairOrder(cache, seed=config.seed, eval_fraction=config.eval_fraction)
        if self.order.train_pairs == 0:
            raise UsageError(f"--eval-fraction {config.eval_fraction} leaves no pair to train on", fix="lower it")
        self.steps_per_epoch = math.ceil(self.order.train_pairs / config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * self.steps_per_epoch)
        is_sharded = checkpoint is not None and (checkpoint / SHARDED).is_dir()
        self.policy = load_policy(config, source, parallel.load_device, None if is_sharded else checkpoint)
        self._prepare_loop()
        self.step = 0
        self.tokens = 0
        self.metrics = MetricSums()
        self.last_record: dict[str, Any] = {}
        self._speed_from = (0, time.monotonic())
        if checkpoint:
            self._restore(checkpoint)

    def _prepare_loop(self) -> None:
        config = self.config
        with self.parallel.accelerator.autocast():
            forward = ResponseLogps(self.policy, layout="padded" if config.attn_implementation else None)
        for fallback in forward.fallbacks:
            warn(f"{config.model}: {fallback}")
        self.forward, self.optimizer = self.parallel.prepare(forward, self._make_optimizer)
        self.scheduler = transformers.get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=round(config.warmup_ratio * self.total_steps),
            num_training_steps=self.total_steps,
        )
        settings = LossSettings(
            beta=config.beta,
            alpha=config.alpha,
            beta_r=config.beta_r,
            shape=SHAPES[config.f_shape],
            f_clip=config.f_clip,
            label_smoothing=config.label_smoothing,
        )
        self.runner = StepRunner(
            self.parallel,
            self.forward,
            LOSSES[config.loss],
            settings,
            batch_tokens=config.batch_tokens,
            layout=forward.layout,
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.AdamW(
            parameter_groups(self.policy, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=self.parallel.device.type == "cuda",
        )

    # The loop

    def finish(self) -> TrainResult:
        """Trains the steps that are left and saves the policy."""
        config = self.config
        if self.parallel.is_main:
            self.folder.start_logs(self.step)
            self._log_sizes()
        reporter = Reporter(self.parallel, self.folder, config)
        if self.step == 0:
            self._evaluate(reporter)
        with meter("training", self.total_steps) as progress:
            progress.advance(self.step)
            for pairs in self._batches():
                self._train_step(pairs, progress, reporter)
                is_last = self.step == self.total_steps
                if is_last or (config.eval_steps and self.step % config.eval_steps == 0):
                    self._evaluate(reporter)
                if config.save_steps and self.step % config.save_steps == 0 and not is_last:
                    self._save_checkpoint()
        self._publish()
        return TrainResult(self.folder.path, self.last_record)

    def _publish(self) -> None:
        weights = full_weights(self.policy, self.forward, self.parallel)
        if self.parallel.is_main:
            self.folder.publish(lambda folder: save_policy(self.policy, self.tokenizer, folder, weights))
            write_card(self.folder.path, self.config, self.cache, self.last_record)
            self.folder.finish(self.last_record)
        self.parallel.wait()

    def _log_sizes(self) -> None:
        pairs, size = self.order.train_pairs, self.config.batch_size
        parts = [f"{pairs:,} pairs", f"{self.steps_per_epoch:,} steps an epoch", f"{self.total_steps:,} steps in all"]
        if self.order.eval_pairs:
            parts.insert(1, f"{self.order.eval_pairs:,} held out")
        if pairs % size:
            parts.append(f"an epoch's last step takes the {pairs % size} pairs that are left instead of {size}")
        if self.parallel.count > 1:
            parts.append(f"{self.parallel.count} processes ({self.parallel.kind})")
        log("training: " + ", ".join(parts))

    def _batches(self) -> Iterator[list[ScoredPair]]:
        """The global batches from the present step on; the last one of an epoch may be smaller."""
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            pairs = self.order.epoch(epoch, skip=done * self.config.batch_size)
            while self.step < self.total_steps and (batch := list(islice(pairs, self.config.batch_size))):
                yield batch

    def _train_step(self, pairs: list[ScoredPair], progress: Meter, reporter: Reporter) -> None:
        # Dropout of a step depends on nothing but step and process, so a resumed run draws the same.
        torch.manual_seed(
            int(np.random.SeedSequence([self.config.seed, self.step, self.parallel.rank]).generate_state(1)[0])
        )
        learning_rate = self.scheduler.get_last_lr()[0]
        times = self.runner.backward(pairs, self.metrics)
        grad_norm = self._clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.tokens += sum(pair.ids.tokens for pair in pairs)
        if self.config.log_pairs and self.parallel.is_main:
            names = [pair.pair_id for pair, count in zip(pairs, times, strict=True) for _ in range(count)]
            self.folder.log_pairs({"step": self.step, "pairs": names})
        if self.step == 1 or self.step == self.total_steps or self.step % self.config.logging_steps == 0:
            self._log(reporter, learning_rate, grad_norm)
        text = f"loss {self.last_record['loss']:.4f}  accuracy {self.last_record['rewards/accuracies']:.3f}"
        progress.advance(1, f"{text}  {self.last_record['tokens_per_second']:,.0f} tokens/s")

    def _clip_gradients(self) -> float:
        norm = self.parallel.clip_gradients(self.policy.parameters())
        if not math.isfinite(norm) and self.parallel.accelerator.scaler is None:
            raise TrainingError(
                f"the gradient of step {self.step + 1} is not finite",
                fix="lower --learning-rate, or use --mixed-precision no; the last checkpoint stays",
            )
        return norm

    def _log(self, reporter: Reporter, learning_rate: float, grad_norm: float) -> None:
        means = self.metrics.of_all(self.parallel).means()
        record = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 6),
            "loss": means.pop("loss"),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            **means,
            "tokens": self.tokens,
            "tokens_per_second": self._speed(),
        }
        reporter.log(record)
        self.last_record = record
        self.metrics = MetricSums()

    def _evaluate(self, reporter: Reporter) -> None:
        if self.order.eval_pairs == 0:
            return
        metrics = MetricSums()
        pairs = self.order.held_out()
        while batch := list(islice(pairs, self.config.batch_size)):
            self.runner.evaluate(batch, metrics)
        means = {f"eval_{name}": value for name, value in metrics.of_all(self.parallel).means().items()}
        reporter.log({"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 6), **means})
        self.last_record |= means

    def _speed(self) -> float:
        """Tokens per second since the last logged step."""
        now = time.monotonic()
        tokens, seconds = self.tokens - self._speed_from[0], now - self._speed_from[1]
        self._speed_from = (self.tokens, now)
        return round(tokens / seconds, 1)

    # Checkpoints

    def _save_checkpoint(self) -> None:
        if self.parallel.is_main:
            self.folder.sync_logs()
        save_checkpoint(
            self.folder.checkpoints,
            self.step,
            write=self._write_state,
            parallel=self.parallel,
            keep=self.config.keep_checkpoints,
        )

    def _write_state(self, folder: Path) -> dict[str, Any]:
        """Writes weights and optimizer; returns what the loop needs to go on."""
        if self.parallel.sharded_state:
            values = save_sharded(folder, self.policy, self.optimizer)
        else:
            weights = full_weights(self.policy, self.forward, self.parallel)
            if self.parallel.is_main:
                save_policy(self.policy, self.tokenizer, folder, weights)
            values = save_optimizer(folder, self.policy, self.optimizer, self.parallel)
        scaler = self.parallel.accelerator.scaler
        return {
            "settings": self.folder.settings,
            "step": self.step,
            "tokens": self.tokens,
            "metrics": self.metrics.of_all(self.parallel).to_json(),
            "last_record": self.last_record,
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "optimizer": values,
        }

    def _restore(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        load = load_sharded if (checkpoint / SHARDED).is_dir() else load_optimizer
        load(checkpoint, self.policy, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for group, learning_rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate
        if state["scaler"] and self.parallel.accelerator.scaler:
            self.parallel.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.tokens, self.last_record = state["step"], state["tokens"], state["last_record"]
        if self.parallel.is_main:  # the sums of all processes, kept by one
            self.metrics = MetricSums(**(state["metrics"] or {}))
        self._speed_from = (self.tokens, time.monotonic())
        log(f"going on from {checkpoint}")
