"""Small models and preference sets made on the spot, and what a call of the command line gave."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "What color is the sky? The sky is blue, the sea is green.",
    "Once upon a time there was a little girl who liked to play in the park with her friends.",
    "user assistant system Hello! How can I help you today? Tell me a story about a cat.",
]


def make_tokenizer(*, chat: bool, vocabulary: int = 400) -> Any:
    """A byte-level BPE tokenizer; with `chat` it ends turns with <|im_end|>, else it adds BOS by itself."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    if not chat:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>" if chat else "</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"] if chat else [],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(folder: Path, tokenizer: Any, *, seed: int, **config: Any) -> Path:
    """A randomly initialised two-layer Llama, saved with its tokenizer."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Models:
    """Folders of a reference and a guidance model with one tokenizer."""

    reference: Path
    guidance: Path


def make_models(folder: Path, *, chat: bool) -> Models:
    """A reference and a guidance model in `folder`."""
    tokenizer = make_tokenizer(chat=chat)
    return Models(
        make_model(folder / "reference", tokenizer, seed=0), make_model(folder / "guidance", tokenizer, seed=1)
    )


STANDARD_ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"The {color} fox said:",
        "chosen": f" the sky is {color}{'!' * n}",
        "rejected": f" I like dogs{'.' * n}",
    }
    for n, color in enumerate(["blue", "green", "brown", "red", "black", "white", "gray", "pink", "gold", "tan"] * 2)
]
CHAT_ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"].strip()}],
        "rejected": [{"role": "assistant", "content": row["rejected"].strip()}],
    }
    for row in STANDARD_ROWS
]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class CliResult:
    """What a call printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that begins with `tgdpo: `."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("tgdpo: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


Cli = Callable[..., CliResult]


def records_of(run: Path) -> list[dict[str, Any]]:
    """What a training run logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a saved policy, its adapter's included."""
    return dict(transformers.AutoModelForCausalLM.from_pretrained(run).state_dict())
