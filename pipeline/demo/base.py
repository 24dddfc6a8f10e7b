"""The base model: a small Llama trained from scratch on demonstrations with slips, a token per character.

It imitates the slips, so it samples a right answer about as often as it was shown one: there is something to gain.
"""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from ...stages.console import meter
from .sizes import DemoSizes
from .task import Demonstration

CONTEXT = 64
"""Longest sequence in tokens; the longest prompt and answer have less than half of that."""
_IGNORED = -100
"""Label of a position that the loss leaves out."""


def make_tokenizer() -> Any:
    """A token per byte, so that any text has tokens; puts <s> in front, as most pretrained models' tokenizers do."""
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make_base(folder: Path, demonstrations: Iterator[Demonstration], *, seed: int, sizes: DemoSizes) -> None:
    """Trains the base and saves it with its tokenizer; `folder` is there once both are whole."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = _new_model(tokenizer, sizes)
    _train(model, tokenizer, demonstrations, sizes)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def _new_model(tokenizer: Any, sizes: DemoSizes) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=2 * sizes.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def _train(model: Any, tokenizer: Any, demonstrations: Iterator[Demonstration], sizes: DemoSizes) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.base_learning_rate, betas=(0.9, 0.99))
    scheduler = transformers.get_scheduler(
        "cosine", optimizer, num_warmup_steps=sizes.base_steps // 10, num_training_steps=sizes.base_steps
    )
    model.train()
    with meter("base", sizes.base_steps) as progress:
        for _ in range(sizes.base_steps):
            batch = list(islice(demonstrations, sizes.base_batch_size))
            loss = model(**_encode(batch, tokenizer)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            progress.advance(1, f"loss {loss.item():.4f}")


def _encode(batch: list[Demonstration], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Input ids and labels, padded on the right; the loss is on the answer and its </s>."""
    # In one call each: row by row, the tokenizer takes three times as long.
    prompt_ids = tokenizer([shown.prompt for shown in batch]).input_ids
    bare = tokenizer([shown.answer for shown in batch], add_special_tokens=False).input_ids
    answer_ids = [[*ids, tokenizer.eos_token_id] for ids in bare]
    rows = [prompt + answer for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]
    labels = [[_IGNORED] * len(prompt) + answer for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]
    return {"input_ids": _padded(rows, tokenizer.pad_token_id), "labels": _padded(labels, _IGNORED)}


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
