"""How many tokens a forward pass may take: as many as were asked for, or as many as the GPU's memory holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

DEFAULT_TOKENS = 8192
MOST_TOKENS = 65_536
"""A budget grows no further: a GPU has been busy for long, and the block mask of a row grows with its square."""
MEMORY_SHARE = 0.9
"""Of the memory that is free for a pass, what a grown pass may take: allocators lose some to fragments."""
MOST_GROWTH = 2.0
"""A pass that is so much larger than any before may need more a token than the measured one."""


class Memory(Protocol):
    """The memory that passes run in, in bytes."""

    def start(self) -> None:
        """A pass begins."""

    def taken(self) -> int:
        """What the pass took at its peak, above what lay there when it began."""

    def free(self) -> int:
        """What a pass could take now."""


class CudaMemory:
    """Memory of a CUDA device as PyTorch's allocator sees it.

    Args:
        reserved: bytes that are free between passes and needed during them (gradients).
    """

    def __init__(self, device: torch.device, reserved: int = 0) -> None:
        self._device = device
        self._reserved = reserved
        self._resting = 0

    def start(self) -> None:
        """See `Memory.start`."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._resting = torch.cuda.memory_allocated(self._device)

    def taken(self) -> int:
        """See `Memory.taken`."""
        return torch.cuda.max_memory_allocated(self._device) - self._resting

    def free(self) -> int:
        """See `Memory.free`. What the allocator keeps for reuse is free to the next pass."""
        outside, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return outside + kept - self._reserved


class TokenBudget:
    """The token budget of a run's passes.

    Args:
        tokens: a fixed budget; None starts at `DEFAULT_TOKENS` and, where there is a `memory` to watch, grows until a
            pass fills it or has `MOST_TOKENS`.
        memory: of the device that the passes run on; None where growing makes no sense.
    """

    def __init__(self, tokens: int | None, memory: Memory | None) -> None:
        self._tokens = tokens or DEFAULT_TOKENS
        self._memory = memory if tokens is None else None
        self._ceiling: int | None = None
        self._bytes_per_token = 0.0

    def limit(self) -> int:
        """Tokens of the next pass, padding included."""
        tokens = self._tokens
        if self._memory and self._bytes_per_token:
            tokens = min(tokens, int(MEMORY_SHARE * self._memory.free() / self._bytes_per_token))
        return max(1, min(tokens, self._ceiling or tokens))

    @contextmanager
    def spent(self, tokens: int) -> Iterator[None]:
        """Around a pass of so many tokens: learns from what it takes, and from running out of memory."""
        if self._memory:
            self._memory.start()
        try:
            yield
        except torch.OutOfMemoryError:
            self._ceiling = self._tokens = max(1, min(self.limit(), tokens * 3 // 4))
            raise
        # A pass far below the budget says little about a full one.
        if self._memory and 2 * tokens >= self._tokens:
            self._bytes_per_token = self._memory.taken() / tokens
            self._tokens = max(self._tokens, min(MOST_TOKENS, int(MOST_GROWTH * tokens)))


def token_budget(tokens: int | None, device: torch.device, *, reserved: int = 0) -> TokenBudget:
    """The budget of `--batch-tokens` on a device; `reserved` as in `CudaMemory`."""
    return TokenBudget(tokens, CudaMemory(device, reserved) if device.type == "cuda" else None)
