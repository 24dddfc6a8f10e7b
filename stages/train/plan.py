"""`tgdpo train --plan`: what a run will need, from the model's configuration and the cache's manifest alone.

Legend: p, c, r tokens of a mean prompt, chosen and rejected response.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...data.cache import RewardCache
from ..budget import DEFAULT_TOKENS
from ..console import quiet_libraries
from ..hardware import GIB, ModelSize, empty_model, forward_flops, gpu_named, size_of
from ..models import ModelSource, pick_device, pick_dtype, resolve
from . import memory
from .config import TrainConfig
from .lora import with_lora
from .losses import LOSSES
from .order import PairOrder
from .sampled import estimates_kl


class Speed(NamedTuple):
    """How fast the machine is taken to be."""

    gpu: str | None = None
    """A kind of `hardware.GPUS`."""
    gpus: int = 1
    utilisation: float = 0.4
    """Share of the peak that is reached."""
    tokens_per_second: float | None = None
    """Measured, as metrics.jsonl has it: a prompt counts once per response. Wins over the GPU."""


class Work(NamedTuple):
    """What a run computes."""

    pairs: int
    steps: int
    logged_tokens: float
    """As metrics.jsonl counts them."""
    tokens: float
    """Through the body: a shared prompt once."""
    flops: float


class Plan(NamedTuple):
    """What a run needs; bytes are those of one process without sharding."""

    size: ModelSize
    trained: int
    dtype: torch.dtype
    compute: torch.dtype
    lengths: tuple[int, int, int]
    """p, c, r; r is 0 where rejected responses are left out."""
    work: Work
    weights: int
    reference: int
    """Weights of the reference, for objectives that keep it in memory."""
    gradients: int
    optimizer: int
    logits: int
    activations: memory.Activations
    pass_pairs: int

    def total(self, *, checkpointing: bool, shards: int = 1) -> int:
        """The peak's estimate; with `shards`, what is sharded lies on that many GPUs."""
        sharded = (self.weights + self.gradients + self.optimizer) // shards
        return sharded + self.reference + self.logits + self.kept(checkpointing) + self.copies(checkpointing)

    def kept(self, checkpointing: bool) -> int:
        """Activations."""
        return self.activations.recomputed if checkpointing else self.activations.kept

    def copies(self, checkpointing: bool) -> int:
        """The weights in autocast's dtype."""
        return self.activations.layer_copies if checkpointing else self.activations.weight_copies


def make_plan(config: TrainConfig, speed: Speed) -> Plan:
    """Works the plan out. Nothing is loaded or written but configuration files.

    Raises:
        TgdpoError: there is no such cache or model, or its architecture is not known.
    """
    quiet_libraries()
    cache = RewardCache(config.cache)
    source = resolve(config.model, "--model", trust_remote_code=config.trust_remote_code, weights=False)
    if source.kind == "adapter":
        source = resolve(source.base_name or "", f"--model {source.name} has the base", weights=False)
    on_gpu = speed.gpu is not None or pick_device(config.device).type != "cpu"
    dtype = pick_dtype(config.dtype or ("auto" if config.lora_rank else "float32"), source)
    compute = _compute_dtype(config, dtype, on_gpu)
    objective = LOSSES[config.loss]
    lengths = _mean_lengths(cache, chosen_only=objective.chosen_only)
    pass_pairs = max(1, (config.batch_tokens or DEFAULT_TOKENS) // sum(lengths))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model_without_values(config, source, dtype)
        return Plan(
            size=(size := size_of(model)),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            dtype=dtype,
            compute=compute,
            lengths=lengths,
            work=_work(config, cache, size, lengths),
            weights=memory.weight_bytes(config, model),
            reference=_reference_bytes(cache, source, size) if _keeps_reference(config, cache) else 0,
            gradients=memory.gradient_bytes(model),
            optimizer=memory.optimizer_bytes(config, model),
            logits=memory.logits_bytes(model, pass_pairs * sum(lengths[1:]), compute, on_gpu=on_gpu),
            activations=memory.activation_bytes(model, lengths, pass_pairs, compute),
            pass_pairs=pass_pairs,
        )


def _model_without_values(config: TrainConfig, source: ModelSource, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model = empty_model(source.config, dtype)
        if config.lora_rank:
            model = with_lora(config, model, None)
    _move_to_fake_cpu(model)
    return model.train()


def _move_to_fake_cpu(model: nn.Module) -> None:
    """Gives the tensors of a model on the meta device a CPU's manners, still without values, tied ones still tied."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = moved.get(id(parameter))
                if empty is None:
                    data = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    empty = moved[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
                module._parameters[name] = empty
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _compute_dtype(config: TrainConfig, dtype: torch.dtype, on_gpu: bool) -> torch.dtype:
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if on_gpu else "no"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": dtype}[precision]


def _mean_lengths(cache: RewardCache, *, chosen_only: bool) -> tuple[int, int, int]:
    rows = max(1, cache.manifest.rows)
    shards = cache.manifest.shards
    totals = (
        sum(shard.prompt_tokens for shard in shards),
        sum(shard.chosen_tokens for shard in shards),
        sum(shard.rejected_tokens for shard in shards),
    )
    p, c, r = (max(1, round(total / rows)) for total in totals)
    return p, c, 0 if chosen_only else r


def _keeps_reference(config: TrainConfig, cache: RewardCache) -> bool:
    return LOSSES[config.loss].needs_reference and not estimates_kl(config, cache)


def _reference_bytes(cache: RewardCache, source: ModelSource, size: ModelSize) -> int:
    """The reference is the policy's start, in the dtype that the cache was scored in."""
    return size.parameters * pick_dtype(str(cache.manifest.fingerprint["dtype"]), source).itemsize


def _work(config: TrainConfig, cache: RewardCache, size: ModelSize, lengths: tuple[int, int, int]) -> Work:
    order = PairOrder(cache, seed=config.seed, eval_fraction=config.eval_fraction, eval_split=config.eval_split)
    steps_per_epoch = math.ceil(order.train_pairs / config.batch_size)
    steps = config.max_steps or math.ceil(config.epochs * steps_per_epoch)
    pairs = round(order.train_pairs * steps / max(1, steps_per_epoch))
    p, c, r = lengths
    in_rows = (2 if r else 1) * p + c + r
    tokens = p + c + r if config.attn_implementation is None else in_rows
    flops = _flops(config, size, lengths, tokens, keeps_reference=_keeps_reference(config, cache))
    return Work(pairs, steps, pairs * in_rows, pairs * tokens, pairs * flops)


def _flops(
    config: TrainConfig, size: ModelSize, lengths: tuple[int, int, int], tokens: int, *, keeps_reference: bool = False
) -> float:
    """Of forward and backward pass of a mean pair."""
    p, c, r = lengths
    attended = ((p + c) ** 2 + (p + r) ** 2 * (r > 0)) / 2
    if config.attn_implementation is None:
        attended = (p + c) ** 2 / 2 + p * r + r**2 / 2
    forward = forward_flops(size, tokens=tokens, head_tokens=0, attended=attended)
    head = forward_flops(size, tokens=0, head_tokens=c + r, attended=0)
    # The backward pass costs a product for the inputs, and one for the weights where these are trained; the head's
    # logits are always made twice, and the body runs twice with checkpointing.
    trains_all = config.lora_rank == 0
    reference = forward + head if keeps_reference else 0.0
    return forward * (2 + trains_all + config.gradient_checkpointing) + head * (3 + trains_all) + reference


# For people


def rendered(config: TrainConfig, plan: Plan, speed: Speed) -> str:
    """The plan as lines of at most 80 columns."""
    return "\n".join([*_what(config, plan), "", *_memory(config, plan, speed), "", *_time(plan, speed)])


def _what(config: TrainConfig, plan: Plan) -> list[str]:
    p, c, r = plan.lengths
    trained = "all trained" if plan.trained == plan.size.parameters else f"{plan.trained:,} trained"
    weights = "4-bit" if config.load_in_4bit else "8-bit" if config.load_in_8bit else _name(plan.dtype)
    autocast = f", autocast to {_name(plan.compute)}" if plan.compute != plan.dtype else ""
    return [
        f"policy    {plan.size.parameters:,} parameters, {trained}; {weights}{autocast}",
        f"pairs     {plan.work.pairs:,} in {plan.work.steps:,} steps of {config.batch_size}",
        f"a pair    prompt {p:,}, chosen {c:,}, rejected {r:,} tokens on average",
        f"tokens    {plan.work.logged_tokens:,.0f}; computed: {plan.work.tokens:,.0f}, a shared prompt once",
    ]


def _memory(config: TrainConfig, plan: Plan, speed: Speed) -> list[str]:
    checkpointing = config.gradient_checkpointing
    parts = {
        "weights": plan.weights,
        "reference": plan.reference,
        "gradients": plan.gradients,
        f"optimizer, {config.optim}": plan.optimizer,
        "half-precision copies of the weights": plan.copies(checkpointing),
        f"activations of {plan.pass_pairs} pairs, about": plan.kept(checkpointing),
        "logits of the head": plan.logits,
        "together, about": plan.total(checkpointing=checkpointing),
    }
    if speed.gpus > 1:
        sharded = plan.total(checkpointing=checkpointing, shards=speed.gpus)
        parts[f"together, sharded over {speed.gpus} (FSDP)"] = sharded
    if speed.gpu:
        gpu = gpu_named(speed.gpu)
        parts[f"one {gpu.name} has"] = gpu.memory
    rows = [f"  {name:<37} {_size(size):>9}" for name, size in parts.items() if size]
    flag, other = "without" if checkpointing else "with", _size(plan.kept(not checkpointing))
    notes = [f"activations {flag} --gradient-checkpointing: {other}"]
    if speed.gpu:
        notes.append("of what a GPU has, CUDA's context and fragments take some, not counted here")
    return ["memory of a process", *rows, *(f"  ({note})" for note in notes)]


def _time(plan: Plan, speed: Speed) -> list[str]:
    lines = [f"compute   {plan.work.flops:.3g} FLOP"]
    if speed.tokens_per_second:
        seconds = plan.work.logged_tokens / speed.tokens_per_second
        lines.append(f"time      {_duration(seconds)} at {speed.tokens_per_second:,.0f} tokens/s")
    elif speed.gpu:
        gpu = gpu_named(speed.gpu)
        seconds = plan.work.flops / (gpu.flops * speed.gpus * speed.utilisation)
        peak = f"{speed.utilisation:.0%} of {gpu.flops / 1e12:,.0f} TFLOP/s"
        lines += [f"time      {_duration(seconds)} on {speed.gpus} x {gpu.name} at {peak}", f"peak      {gpu.source}"]
    else:
        lines.append("time      say --gpu KIND, or --tokens-per-second as a run's metrics.jsonl has it")
    return lines


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
