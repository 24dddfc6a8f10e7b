"""The options of `tgdpo score`."""

import datetime
import json
import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from ...data.additions import GUIDE_NAME, MAX_SAMPLES
from ...data.template_date import parsed_day
from ..settings import Settings, option, writable
from ..yaml_text import TRUTH_WORDS
from .share import Share

DATA, MODELS, LENGTHS, RUN, ENGINE = "Preference set", "Models", "Lengths", "Run", "Engine"
WORKERS, PLAN = "Many workers", "Planning"

TEXT_OPTIONS = (
    *("split", "prompt_column", "chosen_column", "rejected_column", "allow_control_tokens"),
    *("max_length", "max_prompt_length", "overlong", "pairs_per_shard"),
)
"""Options that decide the prepared tokens, each a field of the fingerprint."""


class ScoreConfig(Settings):
    """Everything that `tgdpo score` can be told."""

    dataset: str | None = option(DATA, None)
    """A JSON, JSONL, Parquet or CSV file, a folder of them, or a dataset of the Hugging Face hub. Required without
    --reuse."""
    split: str = option(DATA, "train")
    """Split of the dataset."""
    dataset_config: str | None = option(DATA, None)
    """Configuration of a hub dataset, or of a folder whose README.md names some."""
    prompt_column: str = option(DATA, "prompt")
    """Column of the prompts; where there is none, the prompt is what chosen and rejected begin with."""
    chosen_column: str = option(DATA, "chosen")
    """Column of the chosen responses."""
    rejected_column: str = option(DATA, "rejected")
    """Column of the rejected responses."""
    limit: int | None = option(DATA, None, gt=0)
    """Read only the first N rows."""
    max_set_aside: float = option(DATA, 0.01, ge=0, le=1)
    """Stop if more than this share of the rows cannot be used."""
    template_date: str | None = option(DATA, None)
    """YYYY-MM-DD, for chat templates that write the date. Default: the day on which the run began."""
    allow_control_tokens: bool = option(DATA, False)
    """Keep plain-text rows that hold control tokens, for text already rendered with a chat template."""
    reuse: str | None = option(DATA, None)
    """Take pairs, reference log-probabilities and rows set aside from this finished cache, a folder or a URL, with its
    settings; only what it lacks is scored, into another --output."""

    reference: str | None = option(MODELS, None)
    """Reference model: a folder or hub name, NAME@REVISION for a revision. Default: the base of a guidance adapter."""
    guidance: str | None = option(MODELS, None)
    """Guidance model: a causal LM, a PEFT adapter, or a token classifier with one label. Without one, only the
    reference is scored and all rewards are 0 (enough for --loss dpo)."""
    add_guidance: tuple[str, ...] = option(MODELS, ())
    """NAME=MODEL: a further guide, whose rewards get columns of their own, chosen_NAME_rewards and
    rejected_NAME_rewards; may be repeated. In YAML a mapping."""
    reference_samples: int = option(MODELS, 0, ge=0, le=MAX_SAMPLES)
    """Draw N tokens from the reference for each response token, in a pass of their own, so that tdpo1 and tdpo2 can
    estimate its KL without it. Their columns are N times as long as the others; 0 draws none."""
    tokenizer: str | None = option(MODELS, None)
    """Tokenizer, where it is not the reference's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(MODELS, "auto")
    """Weights' dtype; auto takes each checkpoint's own. Log-softmax is in float32 whatever this says."""
    device: str = option(MODELS, "auto")
    """auto, cpu, cuda, cuda:1 …"""
    attn_implementation: str | None = option(MODELS, None)
    """Attention of transformers (sdpa, eager, flash_attention_2 …), on padded rows. Default: packed pairs with an
    attention of their own where the model's layers can run them, else the model's own choice."""
    trust_remote_code: bool = option(MODELS, False)
    """Run the code that a model brings; hub models then need NAME@REVISION with a full commit hash."""

    max_length: int | None = option(LENGTHS, None, gt=1)
    """Cut responses so that prompt and response have at most N tokens. Default: nothing is cut."""
    max_prompt_length: int | None = option(LENGTHS, None, gt=1)
    """Cut prompts on the left to N tokens, BOS stays. Default: nothing is cut."""
    overlong: Literal["truncate", "set-aside"] = option(LENGTHS, "truncate")
    """What happens to rows over these limits."""

    output: str = option(RUN)
    """Folder of the reward cache, or its URL in an object store (s3://…, gs://…, abfs://…). The same command goes on
    where it stopped."""
    batch_tokens: int | None = option(RUN, None, gt=0)
    """Tokens of one forward pass, padding included (vllm: at most 2048 where it makes all logits of a pass). Default:
    8192, with transformers on CUDA more as long as memory lasts, up to 65536."""
    pairs_per_shard: int = option(RUN, 8192, gt=0)
    """Source rows behind one shard."""

    engine: str = option(ENGINE, "auto")
    """What runs the models: transformers, vllm, the dotted path of an engine of your own, or auto (vllm on CUDA where
    it is installed and knows the models, else transformers)."""
    check_against: str | None = option(ENGINE, None)
    """Score N pairs with another engine as well and report the difference: ENGINE or ENGINE:N, N is 32 by default."""
    check_bound: float | None = option(ENGINE, None, gt=0)
    """Warn where that difference, on average per token, is larger (nats). Default: 0.001 in float32, 0.1 else."""
    tensor_parallel_size: int | None = option(ENGINE, None, gt=0)
    """vllm: GPUs that share each layer."""
    pipeline_parallel_size: int | None = option(ENGINE, None, gt=0)
    """vllm: groups of GPUs that share the layers out."""
    quantization: str | None = option(ENGINE, None)
    """vllm: quantise the weights (fp8, bitsandbytes …). A checkpoint's own quantisation needs no option."""
    gpu_memory_utilization: float | None = option(ENGINE, None, gt=0, le=1)
    """vllm: share of each GPU's memory to use. Default: 0.85."""
    max_model_len: int | None = option(ENGINE, None, gt=1)
    """vllm: longest sequence in tokens. Default: that of the data, and one more."""
    engine_arg: tuple[str, ...] = option(ENGINE, ())
    """KEY=VALUE, an argument of the engine by its own name, vllm's EngineArgs for example; may be repeated. In YAML a
    mapping."""

    worker: str | None = option(WORKERS, None)
    """i/n: be worker i of n, i from 0 to n-1, on one output folder; for job arrays. Whoever ends last finishes the
    cache; the same command without --worker does what is missing."""

    launcher: Literal["local", "ray"] = option(WORKERS, "local")
    """Where the work is done: in this process, or by the workers of a Ray cluster."""
    workers: int | None = option(WORKERS, None, gt=0)
    """Ray workers. Default: as many as the cluster has GPUs for; without GPUs, one a machine."""
    gpus_per_worker: float | None = option(WORKERS, None, ge=0)
    """GPUs of a Ray worker, also 0 or a fraction. Default: where the cluster has GPUs, as many as a model runs on (one,
    with vllm its tensor times its pipeline parallel size)."""
    address: str | None = option(WORKERS, None)
    """Address of a running Ray cluster, or local to start one here. Default: $RAY_ADDRESS, else one that runs here,
    else local."""

    plan: bool = option(PLAN, False)
    """Print what the run will take, and do nothing: pairs, tokens, disk, FLOPs, hours. No weights are loaded."""
    gpu: str = option(PLAN, "H100")
    """Kind of GPU that --plan reckons with."""
    gpus: int = option(PLAN, 1, gt=0)
    """Number of GPUs that --plan reckons with."""
    utilisation: float = option(PLAN, 0.4, gt=0, le=1)
    """Share of the GPUs' dense bfloat16 peak that --plan reckons with."""
    gpu_price: float | None = option(PLAN, None, gt=0)
    """Price of a GPU hour; --plan then prints the cost."""

    _address = field_validator("output")(writable)

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_a_day(cls, given: Any) -> str | None:
        text = str(given) if isinstance(given, datetime.date) else given  # as YAML reads one
        if text is not None and parsed_day(text) is None:
            raise ValueError("write a day as YYYY-MM-DD")
        return text

    @field_validator("check_against")
    @classmethod
    def _engine_and_number(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[^:]+(:0*[1-9]\d*)?", given):
            raise ValueError("write ENGINE or ENGINE:N, as transformers:64")
        return given

    @field_validator("add_guidance", mode="before")
    @classmethod
    def _guides_from_mapping(cls, given: Any) -> Any:
        return tuple(f"{name}={model}" for name, model in given.items()) if isinstance(given, dict) else given

    @field_validator("add_guidance")
    @classmethod
    def _guides_have_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = [text.partition("=")[0] for text in given]
        for text, name in zip(given, names, strict=True):
            if not GUIDE_NAME.fullmatch(name) or not text.partition("=")[2]:
                raise ValueError("write NAME=MODEL, NAME in small letters, digits and _, as good=models/dpo")
            if name in ("reference", "guidance", "samples"):
                raise ValueError(f"{name} is the name of other columns' model; choose another one")
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice; each guide needs a name of its own")
        return given

    @field_validator("engine_arg", mode="before")
    @classmethod
    def _from_mapping(cls, given: Any) -> Any:
        if isinstance(given, dict):
            # A word for true or false is not quoted, so that the engine gets the truth value.
            texts = {n: v if str(v).lower() in TRUTH_WORDS else json.dumps(v) for n, v in given.items()}
            return tuple(f"{name}={text}" for name, text in texts.items())
        return given

    @field_validator("worker")
    @classmethod
    def _worker_is_one_of_n(cls, worker: str | None) -> str | None:
        if worker is not None:
            Share.parse(worker)
        return worker

    @model_validator(mode="before")
    @classmethod
    def _has_pairs(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("dataset") is None and given.get("reuse") is None:
            raise ValueError("--dataset is missing; name the preference set, or a finished cache with --reuse")
        return given

    @model_validator(mode="after")
    def _has_something_to_do(self) -> "ScoreConfig":
        if self.reuse and not (self.guidance or self.add_guidance or self.reference_samples):
            raise ValueError("--reuse alone would copy the cache; name a model with --guidance or --add-guidance")
        return self

    @property
    def guides_to_add(self) -> dict[str, str]:
        """--add-guidance as names and models."""
        return dict(text.split("=", 1) for text in self.add_guidance)

    @model_validator(mode="after")
    def _options_of_one_launcher(self) -> "ScoreConfig":
        given = [name for name in ("workers", "gpus_per_worker", "address") if getattr(self, name) is not None]
        if given and self.launcher != "ray":
            raise ValueError(f"--{given[0].replace('_', '-')} is for Ray workers; add --launcher ray")
        # What --dry-run printed has all options, at their defaults too.
        names = ("gpu", "gpu_price", "gpus", "utilisation")
        planned = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if planned and not self.plan:
            name = planned[0].replace("_", "-")
            raise ValueError(f"--{name} is what --plan reckons with; add --plan, or --launcher ray to use many GPUs")
        if self.worker and self.launcher == "ray":
            raise ValueError("--worker and --launcher ray are two ways to share the work; choose one")
        return self
