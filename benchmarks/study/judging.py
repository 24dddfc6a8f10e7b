"""On-policy answers to the held-out prompts, scored by the task's judge and held against the base.

Legend: N prompts, T tokens of a row, V vocabulary.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from tasks import Task
from torch import Tensor

BATCH = 64
"""Answers at a time: logits of the whole row exist for two models."""


def answers(task: Task, prompts: list[str], model: Path, seed: int) -> pd.DataFrame:
    """One answer of `model` to each prompt, sampled at temperature 1 with nothing cut off.

    Returns:
        A row per prompt: its number, `answer`, `score`, `tokens`, and `kl`, the sum over the answer's tokens of
        KL(model || base) in nats, exact at each position.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(task.base)
    policy, base = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (model, task.base))
    torch.manual_seed(seed)
    frames = [
        _batch(task, policy, base, tokenizer, prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)
    ]
    return pd.concat(frames, ignore_index=True).rename_axis("prompt").reset_index()


@torch.inference_mode()
def _batch(task: Task, policy: Any, base: Any, tokenizer: Any, prompts: list[str]) -> pd.DataFrame:
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    width, end = inputs.input_ids.shape[1], tokenizer.eos_token_id
    rows = policy.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=task.max_tokens,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=end,
    )  # fmt: skip
    # An answer's tokens up to its first end-of-text, that one included.
    ended_before = (rows[:, width:] == end).cumsum(1) - (rows[:, width:] == end).long()
    is_answer = ended_before == 0
    mask = torch.cat([inputs.attention_mask, is_answer.long()], 1)
    kl = (_position_kl(policy, base, rows, mask)[:, width - 1 : -1] * is_answer).sum(1)
    texts = [tokenizer.decode(row[kept & (row != end)]) for row, kept in zip(rows[:, width:], is_answer, strict=True)]
    return pd.DataFrame(
        {
            "answer": texts,
            "score": [task.score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
            "tokens": is_answer.sum(1).tolist(),
            "kl": kl.tolist(),
        }
    )


def _position_kl(policy: Any, base: Any, rows: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || base) of the next token's distribution, [N, T]."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": rows, "attention_mask": mask, "position_ids": positions}
    logps, base_logps = (model(**inputs).logits.float().log_softmax(-1) for model in (policy, base))
    kl: Tensor = (logps.exp() * (logps - base_logps)).sum(-1)
    return kl
