"""Stage two from start to end: a plain loop over the reward cache with the policy as the only model in memory."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ...data.cache import RewardCache, ScoredPair
from ...data.tokenization import chat_template_hash, vocabulary_hash
from ...errors import CacheError, ModelError, TrainingError, UsageError
from ..console import Meter, log, meter, quiet_libraries, warn
from ..logps import ResponseLogps
from ..models import ModelSource, has_tokenizer, load_tokenizer, pick_device, resolve
from .card import write_card
from .checkpoint import load_optimizer, read_state, save_checkpoint
from .config import TrainConfig
from .convergence import Convergence
from .finite import NOT_FINITE_FIX, listed, require_finite_weights
from .folder import RunFolder
from .hub import open_repository, push
from .loaded import LoadedModel
from .losses import LOSSES, LossSettings
from .metrics import MetricSums
from .optimizers import make_optimizer, require_optimizer, set_learning_rate
from .order import PairOrder
from .policy import load_policy, parameter_groups, save_policy
from .progress import status
from .quantization import require_quantization
from .shapes import SHAPES
from .step import StepRunner
from .trackers import Reporter, require_installed


class TrainResult(NamedTuple):
    """Where the trained policy lies, and its last metrics."""

    output: Path
    summary: dict[str, Any]
    policy: Any = None
    """The trained model; None where the run was finished already."""


def train(config: TrainConfig, *, start: LoadedModel | None = None, tokenizer: Any = None) -> TrainResult:
    """Trains the policy from the cache, or goes on where an earlier start of the same run stopped.

    Args:
        start: a policy in memory, instead of `config.model`, which then is its name.
        tokenizer: the policy's; None takes the one saved beside `config.model`.

    Raises:
        TgdpoError: what was asked for cannot work; checkpoints stay.
    """
    quiet_libraries()
    require_installed(config.report_to)
    require_optimizer(config, pick_device(config.device))
    for name, why in config.idle.items():
        warn(f"--{name.replace('_', '-')} does nothing with {why}")
    cache = RewardCache(Path(config.cache).expanduser())
    source = start or resolve(config.model, "--model", trust_remote_code=config.trust_remote_code)
    require_quantization(config, source)
    tokenizer = _fitting_tokenizer(config, cache, source, tokenizer)
    cache.require_unchanged()
    folder = RunFolder(config, {"cache_sha256": cache.content_hash, "model_sha256": source.content_hash})
    record = folder.claim()
    repository = open_repository(config) if config.push_to_hub else None
    if record is not None:
        log(f"{folder.path} is finished already, nothing to do")
        result = TrainResult(folder.path, record["summary"])
    else:
        try:
            result = TrainRun(config, cache, source, tokenizer, folder).finish()
        finally:
            # accelerate keeps its state for the whole process; a second run may have other settings.
            AcceleratorState._reset_state(reset_partial_state=True)
    if repository:
        log(f"pushed to {push(folder.path, repository)}")
    return result


def _fitting_tokenizer(config: TrainConfig, cache: RewardCache, source: ModelSource, tokenizer: Any) -> Any:
    """The policy's tokenizer. Raises where cache and policy, or cache and loss, do not go together."""
    manifest = cache.manifest
    if manifest.rows == 0:
        raise CacheError(f"{cache.folder} holds no pairs", fix="score a preference set with usable rows")
    if config.loss == "tgdpo" and manifest.reward_kind == "none":
        raise CacheError(
            f"{cache.folder} was scored without guidance, so it has no token rewards",
            fix="score it with --guidance, or train with --loss dpo",
        )
    if tokenizer is None:
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
    """One training run, ready to go on from its newest checkpoint."""

    def __init__(
        self, config: TrainConfig, cache: RewardCache, source: ModelSource, tokenizer: Any, folder: RunFolder
    ) -> None:
        self.config = config
        self.cache = cache
        self.folder = folder
        self.tokenizer = tokenizer
        self.order = PairOrder(cache, seed=config.seed, eval_fraction=config.eval_fraction)
        if self.order.train_pairs == 0:
            raise UsageError(f"--eval-fraction {config.eval_fraction} leaves no pair to train on", fix="lower it")
        self.steps_per_epoch = math.ceil(self.order.train_pairs / config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.accelerator = _accelerator(config, folder.path)
        checkpoint = folder.newest_checkpoint()
        self.policy = load_policy(config, source, self.accelerator.device, checkpoint)
        self._prepare_loop()
        self.step = 0
        self.tokens = 0
        self.metrics = MetricSums()
        self.last_record: dict[str, Any] = {}
        self.convergence = Convergence(config.convergence_loss, config.convergence_window)
        self._speed_from = (0, time.monotonic())
        if checkpoint:
            self._restore(checkpoint)

    def _prepare_loop(self) -> None:
        config = self.config
        causal_lm = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
        self._own_attention = causal_lm.config._attn_implementation
        with self.accelerator.autocast():
            forward = ResponseLogps(self.policy, layout="padded" if config.attn_implementation else None)
        for fallback in forward.fallbacks:
            warn(f"{config.model}: {fallback}")
        groups = parameter_groups(self.policy, config.weight_decay)
        optimizer = make_optimizer(config, groups, self.accelerator.device)
        self.scheduler = transformers.get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=round(config.warmup_ratio * self.total_steps),
            num_training_steps=self.total_steps,
        )
        prepared_forward, self.optimizer = self.accelerator.prepare(forward, optimizer)
        settings = LossSettings(
            beta=config.beta,
            alpha=config.alpha,
            beta_r=config.beta_r,
            shape=SHAPES[config.f_shape],
            f_clip=config.f_clip,
            label_smoothing=config.label_smoothing,
        )
        self.runner = StepRunner(
            self.accelerator,
            prepared_forward,
            LOSSES[config.loss],
            settings,
            batch_tokens=config.batch_tokens,
            layout=forward.layout,
        )

    # The loop

    def finish(self) -> TrainResult:
        """Trains the steps that are left and saves the policy."""
        config = self.config
        self.folder.start_metrics(self.step)
        reporter = Reporter(self.accelerator, self.folder, config)
        if self.step == 0:
            self._evaluate(reporter)
        with meter("training", self.total_steps, done=self.step) as progress:
            for pairs in self._batches():
                self._train_step(pairs, progress, reporter)
                if self._is_last or (config.eval_steps and self.step % config.eval_steps == 0):
                    self._evaluate(reporter)
                if config.save_steps and self.step % config.save_steps == 0 and not self._is_last:
                    self._save_checkpoint()
        if self.convergence.reached:
            log(f"converged: the loss of the last {config.convergence_window} steps is {self.convergence.average:.4f}")
        summary = self.last_record
        require_finite_weights(self.policy, self.step)
        save_policy(self.policy, self.tokenizer, self.folder.path)
        write_card(self.folder.path, config, self.cache, summary)
        self.folder.finish(summary)
        self.accelerator.end_training()
        self._hand_back()
        return TrainResult(self.folder.path, summary, self.policy)

    def _hand_back(self) -> None:
        """Makes the policy a model as transformers loads it: packed rows are training's alone."""
        causal_lm = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
        causal_lm.set_attn_implementation(self._own_attention)
        causal_lm.config.use_cache = True
        causal_lm.gradient_checkpointing_disable()

    @property
    def _is_last(self) -> bool:
        return self.step == self.total_steps or self.convergence.reached

    def _batches(self) -> Iterator[list[ScoredPair]]:
        """The global batches from the present step on; the last one of an epoch may be smaller."""
        while not self._is_last:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            pairs = self.order.epoch(epoch, skip=done * self.config.batch_size)
            while not self._is_last and (batch := list(islice(pairs, self.config.batch_size))):
                yield batch

    def _train_step(self, pairs: list[ScoredPair], progress: Meter, reporter: Reporter) -> None:
        # Dropout of a step depends on nothing but the step, so a resumed run draws the same.
        torch.manual_seed((self.config.seed << 32) + self.step)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        before = self.metrics.pair_sums.get("loss", 0.0)
        self.runner.backward(pairs, self.metrics)
        self.convergence.add((self.metrics.pair_sums["loss"] - before) / len(pairs))
        grad_norm = self._clip_gradients(pairs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.tokens += sum(pair.ids.tokens for pair in pairs)
        if self.step == 1 or self._is_last or self.step % self.config.logging_steps == 0:
            self._log(reporter, learning_rate, grad_norm)
        progress.advance(1, status(self.last_record, self.accelerator.device))

    def _clip_gradients(self, pairs: list[ScoredPair]) -> float:
        limit = self.config.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise TrainingError(
                f"the gradient of step {self.step + 1} is not finite (pair_id {listed([p.pair_id for p in pairs])})",
                fix=NOT_FINITE_FIX,
            )
        return norm

    def _log(self, reporter: Reporter, learning_rate: float, grad_norm: float) -> None:
        means = self.metrics.means()
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
        means = {f"eval_{name}": value for name, value in metrics.means().items()}
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
        require_finite_weights(self.policy, self.step)
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.folder.checkpoints,
            self.step,
            save_weights=lambda folder: save_policy(self.policy, self.tokenizer, folder),
            policy=self.policy,
            optimizer=self.optimizer,
            state={
                "step": self.step,
                "tokens": self.tokens,
                "metrics": self.metrics.to_json(),
                "convergence": self.convergence.state(),
                "last_record": self.last_record,
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            },
            keep=self.config.keep_checkpoints,
        )

    def _restore(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        load_optimizer(checkpoint, self.policy, self.optimizer)
        self.scheduler.load_state_dict(state["scheduler"])
        for group, learning_rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            set_learning_rate(group, learning_rate)
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.tokens, self.last_record = state["step"], state["tokens"], state["last_record"]
        self.metrics = MetricSums(**(state["metrics"] or {}))
        self.convergence = Convergence(
            self.config.convergence_loss, self.config.convergence_window, state["convergence"]
        )
        self._speed_from = (self.tokens, time.monotonic())
        log(f"going on from {checkpoint}")


def _accelerator(config: TrainConfig, output: Path) -> Accelerator:
    device = pick_device(config.device)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=list(config.report_to) or None,
        project_dir=str(output / "logs"),
    )
    if accelerator.num_processes > 1:
        raise UsageError(
            f"tgdpo train was launched as {accelerator.num_processes} processes", fix="launch it as one process"
        )
    return accelerator
