"""Log-probabilities and KL in blocks against both models' full logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import Models

from tgdpo.data.packing import Layout, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages import head
from tgdpo.stages.logps import ResponseLogps, to_device
from tgdpo.stages.train.reference import LogpsAndKl, ReferenceStates


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).float()


def naive(policy: Any, reference: Any, pairs: list[PairIds]) -> torch.Tensor:
    """[2, R] from full logits, a response at a time."""
    parts = []
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            ids = torch.tensor(np.concatenate([pair.prompt, response]), dtype=torch.int64)[None]
            logps, ref_logps = (model(ids).logits[0].log_softmax(-1) for model in (policy, reference))
            predicting = slice(len(pair.prompt) - 1, ids.shape[1] - 1)
            logps, ref_logps = logps[predicting], ref_logps[predicting].detach()
            kl = (ref_logps.exp() * (ref_logps - logps)).sum(-1)
            targets = torch.tensor(response, dtype=torch.int64)[:, None]
            parts.append(torch.stack([logps.gather(1, targets)[:, 0], kl]))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("rows", [1000, 3])
def test_equals_full_logits(layout: Layout, rows: int, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, reference, naive_policy = (load(path) for path in (models.reference, models.guidance, models.reference))
    monkeypatch.setattr(head, "CPU_BLOCK_BYTES", rows * 4 * policy.config.vocab_size)
    rng = np.random.default_rng(0)
    pairs = [
        PairIds(*(rng.integers(5, 300, n).astype(np.int32) for n in lengths)) for lengths in [(3, 6, 4), (5, 2, 9)]
    ]
    forwards = [LogpsAndKl(policy, "padded" if layout == "padded" else None),
                ResponseLogps(reference, "padded" if layout == "padded" else None)]  # fmt: skip
    assert [forward.layout for forward in forwards] == [layout] * 2
    batch = to_device(collate(pairs, layout), torch.device("cpu"))
    with torch.no_grad():
        states = ReferenceStates(forwards[1], forwards[1].states(batch))
    found = forwards[0](batch, states)
    expected = naive(naive_policy, load(models.guidance), pairs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found[1].min() > 0

    weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip(policy.parameters(), naive_policy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)
    assert all(parameter.grad is None for parameter in reference.parameters() if not parameter.requires_grad)


def test_a_model_is_at_no_distance_from_itself(models: Models) -> None:
    policy, reference = LogpsAndKl(load(models.reference)), ResponseLogps(load(models.reference))
    pairs = [PairIds(*(np.array(ids, np.int32) for ids in ([7, 8], [9, 10], [11])))]
    batch = to_device(collate(pairs, policy.layout), torch.device("cpu"))
    logps, kl = policy(batch, ReferenceStates(reference, reference.states(batch)))
    torch.testing.assert_close(kl, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(logps, reference(batch), atol=1e-5, rtol=1e-5)
