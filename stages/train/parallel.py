"""The processes of a run, and the policy spread over them: one process, DDP, FSDP2, or DeepSpeed.

`accelerate launch` and `torchrun` start the processes and accelerate joins them; it does DDP and DeepSpeed, FSDP2 is in
fsdp.py. Every process makes the same number of passes a step (see split.py), so collectives meet.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ...errors import TrainingError, UsageError
from ..models import pick_device
from .config import TrainConfig
from .fsdp import FsdpOptions, is_set, shard
from .remote import working_folder

Kind = Literal["single", "ddp", "fsdp", "deepspeed"]
_TIMEOUT = timedelta(hours=2)
"""How long a process waits for another: saving a large checkpoint takes its time."""

Decision = TypeVar("Decision")
Item = TypeVar("Item")


class Parallel:
    """Joins the processes that the launcher started.

    Args:
        config: its device, mixed precision, and how to spread the policy.

    Raises:
        UsageError: the launch and the configuration do not go together.
    """

    def __init__(self, config: TrainConfig) -> None:
        launched = FsdpOptions.of_launcher()
        self._fsdp = launched or FsdpOptions()
        self.accelerator = _accelerator(config, offload=self._fsdp.offload)
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.local_rank: int = self.accelerator.local_process_index
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self.kind = self._pick_kind(config, is_fsdp_launch=launched is not None)
        self.sharded_state = self.kind == "fsdp" and (config.checkpoint_state or self._fsdp.state) == "sharded"
        """Whether checkpoints hold a part of the state per process."""
        self._max_grad_norm = config.max_grad_norm or math.inf
        self._has_own_attention = config.attn_implementation is not None

    def _pick_kind(self, config: TrainConfig, *, is_fsdp_launch: bool) -> Kind:
        if self.accelerator.distributed_type.value == "DEEPSPEED":
            if config.parallel not in ("auto", "deepspeed"):
                raise UsageError(f"--parallel {config.parallel}, but launched with DeepSpeed", fix="use one of the two")
            self._require_deepspeed_works(config)
            return "deepspeed"
        if config.parallel == "deepspeed":
            raise UsageError(
                "--parallel deepspeed, but not launched with a DeepSpeed configuration",
                fix="use accelerate launch --config_file docs/accelerate/8-gpus-zero2.yaml",
            )
        if self.count == 1:
            return "single"
        kind: Kind = "fsdp" if config.parallel == "fsdp" or (config.parallel == "auto" and is_fsdp_launch) else "ddp"
        if kind == "fsdp" and self.accelerator.scaler is not None:
            raise UsageError("--mixed-precision fp16 does not work with FSDP", fix="use bf16 or no")
        return kind

    def _require_deepspeed_works(self, config: TrainConfig) -> None:
        stage = self.accelerator.state.deepspeed_plugin.zero_stage
        if stage > 2:
            raise UsageError(
                f"DeepSpeed's ZeRO stage {stage} hides the weights that the head in blocks reads",
                fix="launch with docs/accelerate/8-gpus-fsdp.yaml, which spreads the same, or use stage 2",
            )
        if config.save_steps:
            raise UsageError(
                "DeepSpeed's checkpoints are pickles, which are not written here",
                fix="set --save-steps 0, or launch with FSDP",
            )

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def is_first_of_machine(self) -> bool:
        """Whether this process writes to what its machine has alone."""
        return self.local_rank == 0

    @property
    def is_on_main_machine(self) -> bool:
        """Whether the main process runs on this machine."""
        return self.rank < self.local_count

    @property
    def load_device(self) -> torch.device:
        """Where to load the policy: with FSDP the CPU, so that no GPU ever holds all of it.

        Not with an attention of the user's choice, which may run on a GPU alone: a policy is tried when it is wrapped.
        """
        on_cpu = self.kind == "fsdp" and not self._has_own_attention
        return torch.device("cpu") if on_cpu else self.device

    # The policy

    def prepare(self, forward: nn.Module, make_optimizer: Callable[[], Optimizer]) -> tuple[nn.Module, Any]:
        """`forward` spread over the processes, and the optimizer of its parameters.

        Args:
            forward: a `ResponseLogps`; its forward uses every parameter.
            make_optimizer: called when the parameters are those to optimize.
        """
        if self.kind == "fsdp":
            is_bf16 = self.accelerator.mixed_precision == "bf16"
            shard(forward, self.device, self.count, self._fsdp, is_bf16=is_bf16)
            return forward, self.accelerator.prepare(make_optimizer())
        if self.kind == "deepspeed":
            _fill_in_deepspeed(self.accelerator.state.deepspeed_plugin.deepspeed_config, self._max_grad_norm)
        prepared: tuple[nn.Module, Any] = self.accelerator.prepare(forward, make_optimizer())
        return prepared

    @contextmanager
    def one_pass(self, forward: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward of a pass: DDP sums gradients over processes in a step's last pass alone.

        FSDP does so in each, since a whole gradient is what it has no room for.
        """
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        waits = self.kind == "ddp" and not is_last
        with forward.no_sync() if waits else nullcontext(), self.accelerator.autocast():  # type: ignore[operator]
            yield

    def backward(self, loss: Tensor) -> None:
        """Adds this process's part of the loss; the gradient is that of the sum over processes, not their mean."""
        self.accelerator.backward(loss * self.count)

    def clip_gradients(self, parameters: Iterable[nn.Parameter]) -> float:
        """Scales the gradients down to the maximal norm over all processes. Returns the norm before that."""
        if self.kind == "deepspeed":  # it has clipped by its own configuration
            return float(self.accelerator.clip_grad_norm_(parameters, self._max_grad_norm) or 0.0)
        self.accelerator.unscale_gradients()
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        return float(norm)

    # What processes agree on

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, on each."""
        return self._reduced(values, "SUM")

    def minimum(self, values: Tensor) -> Tensor:
        """The minimum over processes, on each."""
        return self._reduced(values, "MIN")

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        if self.count > 1:
            values = values.to(self.device)
            dist.all_reduce(values, getattr(dist.ReduceOp, operation))
        return values

    def decided_by_main(self, decide: Callable[[], Decision]) -> Decision:
        """What `decide` gives on the main process, on all. Where it raises there, no process goes on."""
        if self.count == 1:
            return decide()
        answers: list[Decision | None] = [None]
        try:
            if self.is_main:
                answers = [decide()]
        finally:
            broadcast_object_list(answers)
        if answers[0] is None:
            raise TrainingError("the main process could not go on", fix="see its message")
        return answers[0]

    def union(self, mapping: dict[str, Item]) -> dict[str, Item]:
        """The items of all processes, on each."""
        if self.count == 1:
            return mapping
        return {key: item for each in gather_object([mapping]) for key, item in each.items()}

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Ends trackers and the process group."""
        self.accelerator.end_training()


def _accelerator(config: TrainConfig, *, offload: bool) -> Accelerator:
    # FSDP is done here, not by accelerate.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(f"--device {device} with several processes", fix="leave it out: each takes its own GPU")
        torch.cuda.set_device(device)
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "no" and device.type == "cuda" and torch.cuda.is_bf16_supported():
            precision = "bf16"
    backend = "cuda:nccl,cpu:gloo" if offload and device.type == "cuda" else None
    return Accelerator(
        # Told that it is on a CPU, accelerate leaves DeepSpeed out without a word.
        cpu=device.type == "cpu" and not is_set("ACCELERATE_USE_DEEPSPEED"),
        mixed_precision=precision,
        log_with=list(config.report_to) or None,
        project_dir=str(working_folder(config.output) / "logs"),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_TIMEOUT, backend=backend),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # Autocast would keep its copy of every weight from the first layer's forward to the last layer's backward:
            # half the weights' size beside activations that checkpointing has made few. Without, a weight is cast once
            # more a pass.
            AutocastKwargs(cache_enabled=not config.gradient_checkpointing),
        ],
    )


def _fill_in_deepspeed(settings: dict[str, Any], max_grad_norm: float) -> None:
    # Passes are of this package's making: DeepSpeed is to count none itself.
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["gradient_accumulation_steps"] = 1
    settings["train_batch_size"] = "auto"
    settings["gradient_clipping"] = 0.0 if math.isinf(max_grad_norm) else max_grad_norm
