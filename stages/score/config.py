"""The options of `tgdpo score`."""

import json
import re
from typing import Any, Literal

from pydantic import field_validator

from ..settings import Settings, option

DATA, MODELS, LENGTHS, RUN, ENGINE = "Preference set", "Models", "Lengths", "Run", "Engine"


class ScoreConfig(Settings):
    """Everything that `tgdpo score` can be told."""

    dataset: str = option(DATA)
    """A JSON, JSONL, Parquet or CSV file, a folder of them, or a dataset of the Hugging Face hub."""
    split: str = option(DATA, "train")
    """Split of the dataset."""
    dataset_config: str | None = option(DATA, None)
    """Configuration of a hub dataset."""
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
    allow_control_tokens: bool = option(DATA, False)
    """Keep plain-text rows that hold control tokens, for text already rendered with a chat template."""

    reference: str | None = option(MODELS, None)
    """Reference model: a folder or hub name, NAME@REVISION for a revision. Default: the base of a guidance adapter."""
    guidance: str | None = option(MODELS, None)
    """Guidance model: a causal LM, a PEFT adapter, or a token classifier with one label. Without one, only the
    reference is scored and all rewards are 0 (enough for --loss dpo)."""
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
    """Folder of the reward cache. The same command goes on where it stopped."""
    batch_tokens: int = option(RUN, 8192, gt=0)
    """Tokens of one forward pass, padding included (vllm: at most 2048 where it makes all logits of a pass)."""
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

    @field_validator("check_against")
    @classmethod
    def _engine_and_number(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[^:]+(:0*[1-9]\d*)?", given):
            raise ValueError("write ENGINE or ENGINE:N, as transformers:64")
        return given

    @field_validator("engine_arg", mode="before")
    @classmethod
    def _from_mapping(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return tuple(f"{name}={json.dumps(value)}" for name, value in given.items())
        return given
