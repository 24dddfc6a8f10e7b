"""A step that runs out of memory is done again in smaller passes, with the same result."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tgdpo import TrainConfig
from tgdpo.data.cache import ScoredPair
from tgdpo.data.tokenization import PairIds
from tgdpo.errors import TrainingError
from tgdpo.stages.budget import TokenBudget
from tgdpo.stages.logps import DeviceBatch
from tgdpo.stages.train.losses import LOSSES
from tgdpo.stages.train.losses.types import LossSettings
from tgdpo.stages.train.metrics import MetricSums
from tgdpo.stages.train.parallel import Parallel
from tgdpo.stages.train.step import Seen, StepRunner

TOKENS = 90
"""Of the six pairs, packed."""


class SmallDevice(nn.Module):
    """A unigram model on a device that holds passes of so many tokens."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, 50))
        self.holds = holds
        self.passes: list[int] = []

    def forward(self, batch: DeviceBatch) -> Tensor:
        tokens = batch.input_ids.numel()
        if tokens > self.holds:
            raise torch.OutOfMemoryError(f"{tokens} tokens")
        self.passes.append(tokens)
        return self.logits.log_softmax(0)[batch.input_ids.flatten()[batch.places]]


@pytest.fixture
def parallel() -> Iterator[Parallel]:
    """This process alone, on the CPU."""
    yield Parallel(TrainConfig(cache="cache", model="model", output="run", device="cpu"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pairs() -> list[ScoredPair]:
    """Of 10, 12, 14 … tokens."""
    rng = np.random.default_rng(1)

    def pair(number: int) -> ScoredPair:
        prompt, chosen, rejected = (rng.integers(0, 50, n).astype(np.int32) for n in (4, 3 + number, 3 + number))
        scores = [rng.normal(size=3 + number).astype(np.float32) for _ in range(4)]
        return ScoredPair(f"pair-{number}", PairIds(prompt, chosen, rejected), *scores)

    return [pair(number) for number in range(6)]


def step(
    parallel: Parallel, device: SmallDevice, pairs: list[ScoredPair], budget: TokenBudget
) -> tuple[Seen, MetricSums, Tensor]:
    runner = StepRunner(parallel, device, LOSSES["tgdpo"].load(), LossSettings(), budget=budget, layout="packed")
    metrics = MetricSums()
    seen = runner.backward(pairs, metrics)
    assert device.logits.grad is not None
    return seen, metrics, device.logits.grad


@pytest.mark.parametrize("holds", [80, 45, 20])
def test_the_step_is_that_of_a_larger_device(parallel: Parallel, pairs: list[ScoredPair], holds: int) -> None:
    expected = step(parallel, SmallDevice(10**6), pairs, TokenBudget(None, None))
    small, budget = SmallDevice(holds), TokenBudget(None, None)
    seen, metrics, gradient = step(parallel, small, pairs, budget)
    assert budget.limit() <= holds
    assert seen.times == [1] * 6
    assert seen.loss == pytest.approx(expected[0].loss, abs=1e-6)
    assert metrics.means() == pytest.approx(expected[1].means(), abs=1e-5)
    torch.testing.assert_close(gradient, expected[2], atol=1e-7, rtol=1e-5)


def test_the_next_step_fits_at_once(parallel: Parallel, pairs: list[ScoredPair]) -> None:
    small, budget = SmallDevice(45), TokenBudget(None, None)
    step(parallel, small, pairs, budget)
    small.passes.clear()
    step(parallel, small, pairs, budget)
    assert sum(small.passes) == TOKENS


def test_a_pair_that_does_not_fit_is_named(parallel: Parallel, pairs: list[ScoredPair]) -> None:
    with pytest.raises(TrainingError, match=re.escape("a pass of 20 tokens (pair_id pair-5)")) as error:
        step(parallel, SmallDevice(19), pairs, TokenBudget(None, None))
    assert "--gradient-checkpointing" in str(error.value)


def test_processes_that_wait_for_one_another_do_not_try_again(
    parallel: Parallel, pairs: list[ScoredPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "count", 2)
    with pytest.raises(TrainingError, match="a smaller --batch-tokens"):
        step(parallel, SmallDevice(20), pairs, TokenBudget(60, None))


PLAIN = [name for name, objective in LOSSES.items() if not objective.needs_guides and not objective.needs_reference]


@pytest.mark.parametrize("objective", PLAIN)
def test_an_evaluation_is_one_number_however_pairs_are_batched(
    objective: str, parallel: Parallel, pairs: list[ScoredPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sft's loss is a mean over tokens, all others over pairs; the pairs have unequal numbers of tokens."""
    monkeypatch.setattr(parallel, "_reduced", lambda values, _: values)
    is_sft = LOSSES[objective].chosen_only
    if is_sft:
        pairs = [pair.without_rejected() for pair in pairs]

    def evaluated(batch_size: int, batch_tokens: int, processes: int) -> dict[str, float]:
        of_all = MetricSums()
        for rank in range(processes):
            monkeypatch.setattr(parallel, "count", processes)
            monkeypatch.setattr(parallel, "rank", rank)
            runner = StepRunner(parallel, SmallDevice(10**6), LOSSES[objective].load(), LossSettings(),
                                budget=TokenBudget(batch_tokens, None), layout="packed", per_token=is_sft)  # fmt: skip
            metrics = MetricSums()
            for start in range(0, len(pairs), batch_size):
                runner.evaluate(pairs[start : start + batch_size], metrics)
            of_all.merge(metrics.of_all(parallel))
        return of_all.means()

    expected = evaluated(6, 10**6, 1)
    for ways in [(1, 10**6, 1), (4, 10**6, 1), (6, 20, 1), (4, 10**6, 2), (5, 20, 3)]:
        assert evaluated(*ways) == pytest.approx(expected, rel=1e-5), ways
    if is_sft:
        tokens = sum(len(pair.ids.chosen) for pair in pairs)
        assert expected["loss"] == pytest.approx(-expected["logps/chosen"] * len(pairs) / tokens)


def test_the_logged_loss_of_several_sft_steps_is_that_of_their_tokens(
    parallel: Parallel, pairs: list[ScoredPair]
) -> None:
    pairs = [pair.without_rejected() for pair in pairs]
    logged = []
    for batch_size in (1, 2, 6):
        runner = StepRunner(parallel, SmallDevice(10**6), LOSSES["sft"].load(), LossSettings(),
                            budget=TokenBudget(None, None), layout="packed", per_token=True)  # fmt: skip
        metrics, losses = MetricSums(), []
        for start in range(0, len(pairs), batch_size):
            losses.append(runner.backward(pairs[start : start + batch_size], metrics).loss)
        logged.append(metrics.means()["loss"])
    assert logged == pytest.approx([logged[0]] * 3, rel=1e-6)
    assert losses == pytest.approx([logged[0]], rel=1e-6), "one step has the loss that is logged of it"


def test_sums_that_0_1_0_saved_are_taken_on() -> None:
    saved = {"pairs": 2, "pair_sums": {"loss": 3.0, "phi": 1.0}, "tokens": 4, "f_sum": 4.0, "f_negative": 0}
    assert MetricSums.from_json(saved).means()["loss"] == 1.5
    assert MetricSums.from_json(None).means() == {}
