"""The options of `tgdpo train`. Defaults of loss and optimizer are the paper's."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from ..settings import Settings, option, writable
from .losses import LOSS_OPTIONS, LOSSES

IN_OUT, LOSS, OPTIMIZER, BATCH, LORA, LOGGING, HUB = (
    "Input and output",
    "Loss",
    "Optimizer",
    "Batches and memory",
    "LoRA",
    "Logging, evaluation, checkpoints",
    "Hugging Face hub",
)


class TrainConfig(Settings):
    """Everything that `tgdpo train` can be told."""

    cache: str = option(IN_OUT)
    """Reward cache, the --output of tgdpo score."""
    model: str = option(IN_OUT)
    """The policy to start from, normally the reference: a folder or hub name, NAME@REVISION for a revision."""
    output: str = option(IN_OUT)
    """Folder of the run, or its address in an object store (s3://bucket/run): the trained model, checkpoints, metrics,
    configuration."""
    resume: str = option(IN_OUT, "auto", min_length=1)
    """auto goes on from the newest checkpoint in the output folder; never refuses a folder that holds a run; the folder
    of a checkpoint goes on from there, in an output folder of its own where you like."""
    trust_remote_code: bool = option(IN_OUT, False)
    """Run the code that a model brings; hub models then need NAME@REVISION with a full commit hash."""

    loss: str = option(LOSS, "tgdpo", description=f"Objective: {', '.join(LOSSES)} (docs/losses.md).")
    beta: float = option(LOSS, 0.1, gt=0)
    """Strength of the KL constraint, beta in the loss; tau of ipo. Default with simpo 2.5, with sepo 1."""
    alpha: float = option(LOSS, 0.5, ge=0)
    """Strength of the token-level guidance; 0 is DPO."""
    beta_r: float | None = option(LOSS, None, ge=0)
    """Factor of the token rewards, r = beta_r * (log pi_guide - log pi_ref). Default: beta."""
    f_shape: str = option(LOSS, "linear", min_length=1)
    """Shape g of f = 1 +- alpha g(r): linear is r, sigmoid 2 sigmoid(r) - 1, clipped-linear r within [-1, 1], rank the
    place of r in its response; or a function of your own as package.module.function."""
    f_clip: float | None = option(LOSS, None, gt=0)
    """Keep f within 1 +- this bound (epsilon of Assumption 4.2). Default: f is not clipped."""
    label_smoothing: float = option(LOSS, 0.0, ge=0, lt=0.5)
    """Probability that a pair's labels are swapped (conservative DPO)."""
    gamma_beta_ratio: float = option(LOSS, 0.55, ge=0)
    """simpo: target margin gamma divided by beta."""
    ld_alpha: float = option(LOSS, 0.5, ge=0, le=1)
    """ld-dpo: weight of tokens past the length of the pair's shorter response."""
    d2po_gamma: float = option(LOSS, 0.98, gt=0, le=1)
    """d2po: token t, counted from 0, weighs this to the power of t."""
    reference: str | None = option(LOSS, None)
    """tdpo1, tdpo2: the reference, which these alone keep in memory beside the policy, with a forward pass of its own
    every step, to compare whole distributions. Must be the model that scored the cache."""
    kl: Literal["exact", "estimate"] | None = option(LOSS, None)
    """tdpo1, tdpo2: the KL from the reference in memory, or estimated from samples in the cache (tgdpo score
    --reference-samples), without it. Default: exact where --reference is given, else estimate."""
    tdpo_alpha: float = option(LOSS, 0.5, ge=0)
    """tdpo2: weight of the difference in KL."""
    sepo_ratio: float = option(LOSS, 0.3, gt=0, le=1)
    """sepo: share of a response's tokens that counts."""
    positive_guide: str | None = option(LOSS, None)
    """tis-dpo: the guide that likes what is good: the NAME of one added to the cache (tgdpo score --add-guidance), or
    guidance for the cache's own."""
    negative_guide: str | None = option(LOSS, None)
    """tis-dpo: the guide that likes what is bad, named in the same way."""
    tis_spread: float = option(LOSS, 0.3, ge=0, le=1)
    """tis-dpo: tokens weigh from 1 - N to 1 + N by their place in the response."""

    learning_rate: float = option(OPTIMIZER, 7e-7, gt=0)
    """Peak learning rate. With --lora-rank, ten times as much is usual."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup", "polynomial"] = option(
        OPTIMIZER, "cosine"
    )
    """Learning rate schedule of transformers."""
    warmup_ratio: float = option(OPTIMIZER, 0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adafactor",
        "sgd",
        "adamw_8bit",
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "lion_8bit",
        "lion_32bit",
        "paged_lion_8bit",
        "paged_lion_32bit",
        "adamw_torch_8bit",
        "adamw_torch_4bit",
    ] = option(OPTIMIZER, "adamw_torch_fused")
    """Optimizer, by transformers' names: 8-bit, paged and lion ones are bitsandbytes', adamw_torch_8bit and _4bit
    torchao's."""
    stochastic_rounding: bool = option(OPTIMIZER, False)
    """Round updates of bfloat16 weights up or down by chance (torchao), so that small ones are not lost; needs --dtype
    bfloat16 and an adamw_torch optimizer."""
    weight_decay: float = option(OPTIMIZER, 0.0, ge=0)
    """Weight decay; norms and biases are left out."""
    adam_beta1: float = option(OPTIMIZER, 0.9, ge=0, lt=1)
    """Beta 1 of AdamW."""
    adam_beta2: float = option(OPTIMIZER, 0.999, ge=0, lt=1)
    """Beta 2 of AdamW."""
    adam_epsilon: float = option(OPTIMIZER, 1e-8, gt=0)
    """Epsilon of AdamW."""
    max_grad_norm: float = option(OPTIMIZER, 1.0, ge=0)
    """Gradients are scaled down to this norm; 0 switches that off."""
    convergence_loss: float | None = option(OPTIMIZER, None, gt=0)
    """Stop when the moving average of the loss falls below this, before --epochs are over; the paper trains to
    convergence with 0.1 (section 5.3). Default: train all steps."""
    convergence_window: int = option(OPTIMIZER, 10, gt=0)
    """Optimizer steps of that moving average."""
    seed: int = option(OPTIMIZER, 42, ge=0, lt=2**32)
    """Seed of order, evaluation split, LoRA weights and dropout."""

    epochs: float = option(BATCH, 1.0, gt=0)
    """Passes over the pairs."""
    max_steps: int | None = option(BATCH, None, gt=0)
    """Stop after N optimizer steps, whatever --epochs says."""
    batch_size: int = option(BATCH, 128, gt=0)
    """Pairs of one optimizer step, over all processes."""
    batch_tokens: int | None = option(BATCH, None, gt=0)
    """Tokens of one forward and backward pass of a process, padding included; gradients are accumulated over a step's
    passes. Default: 8192, which grows on a single GPU until a pass fills its memory, up to 65536."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = option(BATCH, None)
    """Dtype of the weights; auto takes the checkpoint's own. Default: float32, which small learning rates need; with
    --lora-rank auto, since the adapter is in float32 anyway."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(BATCH, "auto")
    """Autocast of the forward pass; auto is bf16 on a GPU that has it and no on a CPU."""
    device: str = option(BATCH, "auto")
    """auto, cpu, cuda, cuda:1 …"""
    parallel: Literal["auto", "ddp", "fsdp", "deepspeed"] = option(BATCH, "auto")
    """How the policy is spread over several processes: whole on each (ddp) or in parts (fsdp, which is FSDP2). auto is
    what accelerate's configuration file says, else ddp."""
    gradient_checkpointing: bool = option(BATCH, False)
    """Compute activations again in the backward pass instead of keeping them."""
    attn_implementation: str | None = option(BATCH, None)
    """Attention of transformers (sdpa, eager, flash_attention_2 …), on padded rows. Default: packed pairs with an
    attention of their own where the model's layers can run them, else the model's own choice."""

    lora_rank: int = option(LORA, 0, ge=0)
    """Train a LoRA adapter of this rank; 0 trains all weights."""
    lora_alpha: float | None = option(LORA, None, gt=0)
    """LoRA's scale. Default: twice the rank."""
    lora_dropout: float = option(LORA, 0.0, ge=0, lt=1)
    """Dropout on LoRA's input."""
    lora_target_modules: tuple[str, ...] = option(LORA, ("all-linear",))
    """Modules that get an adapter; all-linear is every linear layer but the head. Repeatable."""
    lora_modules_to_save: tuple[str, ...] = option(LORA, ())
    """Modules that are trained in full and saved with the adapter, such as lm_head. Repeatable."""
    use_rslora: bool = option(LORA, False)
    """Scale by alpha / sqrt(rank) (rank-stabilized LoRA) instead of alpha / rank."""
    use_dora: bool = option(LORA, False)
    """Train magnitude and direction of the weights apart (DoRA)."""
    load_in_4bit: bool = option(LORA, False)
    """Quantise the policy's own weights to 4 bits as they are loaded (QLoRA, bitsandbytes). It then starts beside the
    reference, not at it, by the error of quantisation."""
    load_in_8bit: bool = option(LORA, False)
    """The same with 8 bits."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option(LORA, "nf4")
    """Type of the 4-bit numbers."""
    use_bnb_nested_quant: bool = option(LORA, False)
    """Quantise the constants of 4-bit quantisation too."""

    logging_steps: int = option(LOGGING, 10, gt=0)
    """Log every N steps; the first and the last step are always logged."""
    eval_fraction: float = option(LOGGING, 0.0, ge=0, lt=1)
    """Share of the prompts whose pairs are held out and evaluated; at least one prompt."""
    eval_split: Literal["prompt", "row"] = option(LOGGING, "prompt", before="row")
    """prompt holds out all pairs of a prompt or none; row holds out single pairs, so that a prompt with several may be
    on both sides."""
    eval_steps: int | None = option(LOGGING, None, gt=0)
    """Evaluate every N steps. Default: at the start and the end only."""
    save_steps: int = option(LOGGING, 100, ge=0)
    """Write a checkpoint every N steps; 0 writes none."""
    keep_checkpoints: int = option(LOGGING, 1, gt=0)
    """Checkpoints to keep; the newest stay."""
    checkpoint_state: Literal["full", "sharded"] | None = option(LOGGING, None)
    """With fsdp: checkpoints written by the main process alone, or in parts by all. Any number of processes can go on
    from either. Default: what accelerate's configuration file says, else full."""
    log_pairs: bool = option(LOGGING, False)
    """Write pairs.jsonl, the pairs that each step trained on."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "none"], ...] = option(LOGGING, ())
    """Trackers that get the metrics, besides metrics.jsonl; none is the default. Repeatable."""
    project: str | None = option(LOGGING, None)
    """Project of the trackers. Default: the environment's WANDB_PROJECT, else tgdpo."""
    run_name: str | None = option(LOGGING, None)
    """Name of the run in the trackers. Default: the output folder's."""

    push_to_hub: bool = option(HUB, False)
    """Upload the policy and its card when the run is finished, with the token of hf auth login or HF_TOKEN."""
    hub_model_id: str | None = option(HUB, None)
    """Repository to push to, NAME or ORGANISATION/NAME. Default: the output folder's name."""
    hub_private_repo: bool = option(HUB, False)
    """Make the repository private where it is made."""

    _folder = field_validator("output")(writable)

    @field_validator("report_to")
    @classmethod
    def _none_alone(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in trackers and len(trackers) > 1:
            raise ValueError("none goes with no other tracker")
        return () if trackers == ("none",) else trackers

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, given: Any) -> Any:
        objective = LOSSES.get(str(given.get("loss"))) if isinstance(given, dict) else None
        return {**objective.defaults, **given} if objective else given

    @classmethod
    def superseded(cls, written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
        """See `Settings.superseded`: a file that names its objective may hold that objective's own defaults, as the
        config.yaml of every run does."""
        losses = [str(layer.get("loss")) for layer in (written, given)]
        if losses[0] == losses[1] or not set(losses) <= LOSSES.keys():
            return {}
        defaults = {name: cls.model_fields[name].default for name in LOSS_OPTIONS}
        before, after = ({**defaults, **LOSSES[loss].defaults} for loss in losses)
        return {
            name: f"it is the default of --loss {losses[0]}, and that of {losses[1]} is {after[name]}"
            for name in LOSS_OPTIONS
            if name in written and name not in given and written[name] == before[name] != after[name]
        }

    @field_validator("loss")
    @classmethod
    def _loss_is_known(cls, name: str) -> str:
        if name not in LOSSES:
            raise ValueError(f"there is no objective {name}; use {', '.join(LOSSES)}")
        return name

    @model_validator(mode="after")
    def _options_fit_together(self) -> "TrainConfig":
        if self.eval_steps is not None and self.eval_fraction == 0:
            raise ValueError("--eval-steps without held-out pairs; set --eval-fraction above 0")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("--load-in-4bit and --load-in-8bit exclude each other; choose one")
        if (self.load_in_4bit or self.load_in_8bit) and not self.lora_rank:
            raise ValueError("quantised weights cannot be trained; set --lora-rank, or leave --load-in-… out")
        if self.stochastic_rounding:
            if self.dtype != "bfloat16" or self.lora_rank:
                raise ValueError(
                    "--stochastic-rounding is for bfloat16 weights; set --dtype bfloat16, without --lora-rank"
                )
            if not self.optim.startswith("adamw_torch"):
                raise ValueError(f"--stochastic-rounding with --optim {self.optim}; use an adamw_torch one")
        return self

    @model_validator(mode="after")
    def _reference_is_named(self) -> "TrainConfig":
        if LOSSES[self.loss].needs_reference and self.kl == "exact" and self.reference is None:
            raise ValueError(f"--loss {self.loss} --kl exact needs the reference; name it with --reference")
        return self

    @model_validator(mode="after")
    def _guides_are_named(self) -> "TrainConfig":
        if LOSSES[self.loss].needs_guides and not (self.positive_guide and self.negative_guide):
            raise ValueError(f"--loss {self.loss} compares two guides; name them: --positive-guide, --negative-guide")
        return self

    @property
    def idle(self) -> dict[str, str]:
        """Options that have another value than their default and do nothing, with the option that makes them idle."""
        idle: dict[str, str] = {}
        idle |= dict.fromkeys(set(LOSS_OPTIONS) - set(LOSSES[self.loss].options), f"--loss {self.loss}")
        if LOSSES[self.loss].needs_reference and self.kl == "estimate":
            idle["reference"] = "--kl estimate"
        if self.lora_rank == 0:
            lora = ("lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save")
            idle |= dict.fromkeys((*lora, "use_rslora", "use_dora"), "--lora-rank 0")
        if not self.push_to_hub:
            idle |= dict.fromkeys(("hub_model_id", "hub_private_repo"), "no --push-to-hub")
        if not self.report_to:
            idle |= dict.fromkeys(("project", "run_name"), "no --report-to")
        if not self.load_in_4bit:
            idle |= dict.fromkeys(("bnb_4bit_quant_type", "use_bnb_nested_quant"), "no --load-in-4bit")
        if self.optim in ("sgd", "adafactor"):
            idle |= dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), f"--optim {self.optim}")
        if "lion" in self.optim:
            idle["adam_epsilon"] = f"--optim {self.optim}"
        if self.convergence_loss is None:
            idle["convergence_window"] = "no --convergence-loss"
        defaults = type(self).model_fields
        return {name: why for name, why in idle.items() if getattr(self, name) != defaults[name].default}
