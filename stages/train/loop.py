"""The training loop: plain steps over the reward cache with the policy as the only model in memory.

Every process runs this loop over the same global batches and trains on its part of each; the first alone prints and
writes.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ...data.cache import RewardCache, ScoredPair
from ...errors import TrainingError, UsageError
from ..budget import DEFAULT_TOKENS, TokenBudget, token_budget
from ..console import Meter, log, meter, warn
from ..logps import ResponseLogps
from ..models import ModelSource
from .card import write_card
from .config import TrainConfig
from .contrast import contrast_of
from .convergence import Convergence
from .finite import NOT_FINITE_FIX, listed, require_finite_weights
from .folder import RunFolder
from .history import History
from .losses import LOSSES
from .losses.settings import loss_settings
from .marker import read_state
from .metrics import OF_PAIRS_ALONE, MetricSums
from .optimizers import make_optimizer, set_learning_rate
from .order import PairOrder
from .parallel import Parallel
from .policy import load_policy, parameter_groups, save_policy
from .progress import status
from .reference import LogpsAndKl, Reference
from .sampled import LogpsOfSamples, SampleReader, estimates_kl
from .state import SHARDED, full_weights, load_optimizer, load_sharded, save_optimizer, save_sharded
from .step import StepRunner
from .trackers import Reporter


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
        history: History,
        checkpoint: Path | None,
    ) -> None:
        self.config = config
        self.cache = cache
        self.folder = folder
        self.parallel = parallel
        self.history = history
        self.tokenizer = tokenizer
        self.objective = LOSSES[config.loss]
        self.contrast = contrast_of(config, cache)
        self.samples = SampleReader(cache.manifest.reference_samples) if estimates_kl(config, cache) else None
        self.order = PairOrder(
            cache,
            seed=config.seed,
            eval_fraction=config.eval_fraction,
            eval_split=config.eval_split,
            chosen_only=self.objective.chosen_only,
            further=[name for reader in (self.contrast, self.samples) if reader for name in reader.columns],
            vocabulary=source.vocabulary_size,
        )
        if self.order.train_pairs == 0:
            held = f", and all {self.order.eval_pairs} pairs are of one prompt" if self.order.eval_prompts == 1 else ""
            raise UsageError(
                f"--eval-fraction {config.eval_fraction} leaves no pair to train on{held}",
                fix="leave it out" if held else "lower it",
            )
        self.steps_per_epoch = math.ceil(self.order.train_pairs / config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * self.steps_per_epoch)
        is_sharded = checkpoint is not None and (checkpoint / SHARDED).is_dir()
        self.policy = load_policy(config, source, parallel.load_device, None if is_sharded else checkpoint)
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
        needs_model = self.objective.needs_reference and not self.samples
        reference = Reference(config, self.cache, self.parallel) if needs_model else None
        padded = config.attn_implementation is not None or (reference is not None and reference.layout == "padded")
        with self.parallel.accelerator.autocast():
            kind = LogpsAndKl if reference else LogpsOfSamples if self.samples else ResponseLogps
            forward = kind(self.policy, layout="padded" if padded else None)
        for fallback in forward.fallbacks:
            warn(f"{config.model}: {fallback}")
        self.forward, self.optimizer = self.parallel.prepare(forward, self._make_optimizer)
        self.scheduler = transformers.get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=round(config.warmup_ratio * self.total_steps),
            num_training_steps=self.total_steps,
        )
        self.runner = StepRunner(
            self.parallel,
            self.forward,
            self.objective.load(),
            loss_settings(config),
            budget=self._budget(),
            layout=forward.layout,
            per_token=self.objective.chosen_only,
            reference=reference,
            contrast=self.contrast,
            samples=self.samples,
        )

    def _budget(self) -> TokenBudget:
        tokens = self.config.batch_tokens
        if tokens is None and self.parallel.count > 1:
            tokens = DEFAULT_TOKENS  # all processes split a batch alike, whatever memory each has
        gradients = sum(p.numel() * p.element_size() for p in self.policy.parameters() if p.requires_grad)
        return token_budget(tokens, self.parallel.device, reserved=gradients)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.policy, self.config.weight_decay)
        return make_optimizer(self.config, groups, self.parallel.device)

    # The loop

    def finish(self) -> dict[str, Any]:
        """Trains the steps that are left and saves the policy. Returns the last metrics."""
        config = self.config
        if self.parallel.is_main:
            self.folder.start_logs(self.step)
            self._log_sizes()
        reporter = Reporter(self.parallel, self.folder, config)
        self.history.start_clock()
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
        self._publish()
        self._hand_back()
        return self.last_record

    @property
    def _is_last(self) -> bool:
        return self.step == self.total_steps or self.convergence.reached

    def _publish(self) -> None:
        require_finite_weights(self.policy, self.step, self.parallel)
        weights = full_weights(self.policy, self.forward, self.parallel)
        if self.parallel.is_main:
            self.folder.require_alone()
            self.folder.publish(lambda folder: save_policy(self.policy, self.tokenizer, folder, weights))
            write_card(self.folder.path, self.config, self.cache, self.last_record, self.history)
            self.folder.finish(self.last_record, self.history)
        self.parallel.wait()

    def _hand_back(self) -> None:
        """Makes the policy a model as transformers loads it: packed rows are training's alone."""
        causal_lm = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
        causal_lm.set_attn_implementation(self._own_attention)
        causal_lm.config.use_cache = True
        causal_lm.gradient_checkpointing_disable()

    def _log_sizes(self) -> None:
        pairs, size = self.order.train_pairs, self.config.batch_size
        parts = [f"{pairs:,} pairs", f"{self.steps_per_epoch:,} steps an epoch", f"{self.total_steps:,} steps in all"]
        if self.order.eval_pairs:
            prompts = self.order.eval_prompts
            of = f" ({prompts:,} prompt{'s' if prompts > 1 else ''})" if prompts else ""
            parts.insert(1, f"{self.order.eval_pairs:,} held out{of}")
        elif self.config.eval_fraction:
            warn(f"--eval-fraction {self.config.eval_fraction} of {pairs:,} pairs is none, so nothing is evaluated")
        if pairs % size:
            parts.append(f"an epoch's last step takes the {pairs % size} pairs that are left instead of {size}")
        if self.parallel.count > 1:
            parts.append(f"{self.parallel.count} processes ({self.parallel.kind})")
        log("training: " + ", ".join(parts))

    def _batches(self) -> Iterator[list[ScoredPair]]:
        """The global batches from the present step on; the last one of an epoch may be smaller."""
        while not self._is_last:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            pairs = self.order.epoch(epoch, skip=done * self.config.batch_size)
            while not self._is_last and (batch := list(islice(pairs, self.config.batch_size))):
                yield batch

    def _train_step(self, pairs: list[ScoredPair], progress: Meter, reporter: Reporter) -> None:
        # Dropout of a step depends on nothing but step and process, so a resumed run draws the same.
        torch.manual_seed(
            int(np.random.SeedSequence([self.config.seed, self.step, self.parallel.rank]).generate_state(1)[0])
        )
        learning_rate = float(self.scheduler.get_last_lr()[0])
        seen = self.runner.backward(pairs, self.metrics)
        self.convergence.add(seen.loss)
        grad_norm = self._clip_gradients(pairs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.tokens += sum(self._tokens_of(pair) for pair in pairs)
        if self.config.log_pairs and self.parallel.is_main:
            names = [pair.pair_id for pair, count in zip(pairs, seen.times, strict=True) for _ in range(count)]
            self.folder.log_pairs({"step": self.step, "pairs": names})
        if self.step == 1 or self._is_last or self.step % self.config.logging_steps == 0:
            self._log(reporter, learning_rate, grad_norm)
        progress.advance(1, status(self.last_record, self.parallel.device))

    def _tokens_of(self, pair: ScoredPair) -> int:
        """Prompt and response of the rows that are trained on."""
        return pair.ids.tokens - (len(pair.ids.prompt) if self.objective.chosen_only else 0)

    def _clip_gradients(self, pairs: list[ScoredPair]) -> float:
        norm = self.parallel.clip_gradients(self.policy.parameters())
        if not math.isfinite(norm) and self.parallel.accelerator.scaler is None:
            raise TrainingError(
                f"the gradient of step {self.step + 1} is not finite (pair_id {listed([p.pair_id for p in pairs])})",
                fix=NOT_FINITE_FIX,
            )
        return norm

    def _log(self, reporter: Reporter, learning_rate: float, grad_norm: float) -> None:
        means = self._means(self.metrics)
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
        means = {f"eval_{name}": value for name, value in self._means(metrics).items()}
        reporter.log({"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 6), **means})
        self.last_record |= means

    def _means(self, metrics: MetricSums) -> dict[str, float]:
        """Over all processes; those of pairs alone are left out where rejected responses are."""
        means = metrics.of_all(self.parallel).means()
        left_out = OF_PAIRS_ALONE if self.objective.chosen_only else ()
        return {name: value for name, value in means.items() if not name.startswith(left_out)}

    def _speed(self) -> float:
        """Tokens per second since the last logged step."""
        now = time.monotonic()
        tokens, seconds = self.tokens - self._speed_from[0], now - self._speed_from[1]
        self._speed_from = (self.tokens, now)
        return round(tokens / seconds, 1)

    # Checkpoints

    def _save_checkpoint(self) -> None:
        require_finite_weights(self.policy, self.step, self.parallel)
        if self.parallel.is_main:
            self.folder.require_alone()
            self.folder.sync_logs()
        self.folder.checkpoints.save(
            self.step, write=self._write_state, parallel=self.parallel, keep=self.config.keep_checkpoints
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
            **self.history.state(),
            "step": self.step,
            "tokens": self.tokens,
            "metrics": self.metrics.of_all(self.parallel).to_json(),
            "convergence": self.convergence.state(),
            "last_record": self.last_record,
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "optimizer": values,
        }

    def _restore(self, checkpoint: Path) -> None:
        state = read_state(checkpoint).values
        load = load_sharded if (checkpoint / SHARDED).is_dir() else load_optimizer
        load(checkpoint, self.policy, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for group, learning_rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            set_learning_rate(group, learning_rate)
        if state["scaler"] and self.parallel.accelerator.scaler:
            self.parallel.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.tokens, self.last_record = state["step"], state["tokens"], state["last_record"]
        self.history.resume(self.step, state)
        if self.parallel.is_main:  # the sums of all processes, kept by one
            self.metrics = MetricSums.from_json(state["metrics"])
        self.convergence = Convergence(
            self.config.convergence_loss, self.config.convergence_window, state["convergence"]
        )
        self._speed_from = (self.tokens, time.monotonic())
        log(f"going on from {self.folder.shown(checkpoint)}")
