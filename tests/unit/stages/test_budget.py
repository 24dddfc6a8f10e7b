"""The token budget on devices whose memory is made up."""

import pytest
import torch

from tgdpo.stages.budget import DEFAULT_TOKENS, MEMORY_SHARE, MOST_TOKENS, TokenBudget


class Device:
    """So many bytes free, so many taken a token; a pass over that runs out."""

    def __init__(self, free: int, per_token: int) -> None:
        self.room, self.per_token = free, per_token
        self.last = 0

    def start(self) -> None:
        self.last = 0

    def taken(self) -> int:
        return self.last

    def free(self) -> int:
        return self.room

    def run(self, budget: TokenBudget, tokens: int) -> None:
        with budget.spent(tokens):
            self.last = tokens * self.per_token
            if self.last > self.room:
                raise torch.OutOfMemoryError


def grown(budget: TokenBudget, device: Device, passes: int = 20) -> int:
    for _ in range(passes):
        device.run(budget, budget.limit())
    return budget.limit()


def test_a_fixed_budget_stays() -> None:
    device = Device(10**9, 10)
    assert grown(TokenBudget(1000, device), device) == 1000


def test_without_a_memory_to_watch_the_default_stays() -> None:
    budget = TokenBudget(None, None)
    with budget.spent(DEFAULT_TOKENS):
        pass
    assert budget.limit() == DEFAULT_TOKENS


def test_grows_until_memory_is_nearly_full() -> None:
    device = Device(10**9, 20_000)
    assert grown(TokenBudget(None, device), device) == pytest.approx(MEMORY_SHARE * 50_000, rel=0.01)


def test_grows_to_a_most_however_much_memory_there_is() -> None:
    device = Device(10**12, 1)
    assert grown(TokenBudget(None, device), device) == MOST_TOKENS
    device = Device(10**12, 1)
    assert grown(TokenBudget(2 * MOST_TOKENS, device), device) == 2 * MOST_TOKENS, "what was asked for is taken"


def test_grows_no_faster_than_twofold() -> None:
    device = Device(10**12, 1)
    budget = TokenBudget(None, device)
    device.run(budget, budget.limit())
    assert budget.limit() == 2 * DEFAULT_TOKENS


def test_small_passes_do_not_make_it_grow() -> None:
    device = Device(10**9, 1000)
    budget = TokenBudget(None, device)
    for _ in range(5):
        device.run(budget, DEFAULT_TOKENS // 4)
    assert budget.limit() == DEFAULT_TOKENS


def test_shrinks_when_memory_is_taken_by_something_else() -> None:
    device = Device(10**9, 1000)
    budget = TokenBudget(None, device)
    grown(budget, device)
    device.room = 10**7
    assert budget.limit() <= 10**4


@pytest.mark.parametrize("tokens", [None, 20_000])
def test_running_out_lowers_it_for_good(tokens: int | None) -> None:
    device = Device(10_000, 1)
    budget = TokenBudget(tokens, device)
    with pytest.raises(torch.OutOfMemoryError):
        device.run(budget, 15_000)
    assert budget.limit() <= 15_000 * 3 // 4
    for _ in range(10):
        tokens = min(budget.limit(), 9000)
        device.run(budget, tokens)
    assert budget.limit() <= 15_000 * 3 // 4


def test_what_ran_out_once_is_not_tried_again_where_memory_seems_free() -> None:
    """As with memory in fragments: a device says that it has room, and a pass ends all the same."""
    budget = TokenBudget(None, Device(10**9, 1))
    with pytest.raises(torch.OutOfMemoryError), budget.spent(6000):
        raise torch.OutOfMemoryError
    assert grown(budget, Device(10**9, 1)) == 6000 * 3 // 4
