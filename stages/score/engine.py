"""Runs one model over pairs of token ids with transformers, batches by token budget, longest first."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from ...data.cache import Scores
from ...data.packing import batches
from ...data.tokenization import PairIds
from ...errors import ModelError
from ..console import warn
from ..logps import ResponseLogps, ResponseRewards, to_device
from ..models import ModelSource, add_adapter, load_model

OnBatch = Callable[[int, int], None]
"""Called after each batch with its numbers of pairs and of tokens."""


class PairScores(NamedTuple):
    """One float32 score per response token."""

    chosen: Scores
    rejected: Scores

    @property
    def finite(self) -> bool:
        """Whether every score is finite."""
        return bool(np.isfinite(self.chosen).all() and np.isfinite(self.rejected).all())


class Engine(Protocol):
    """What stage one needs of a scoring backend."""

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """Scores of the response tokens, one entry per pair, in the pairs' order."""

    def close(self) -> None:
        """Gives the model's memory back."""


class TransformersEngine:
    """A causal LM scored by its log-probabilities, or a token classifier scored by its output.

    Args:
        source: the model; for an adapter, its base.
        adapter: a PEFT adapter to put on it. `adapter_on` switches it, so one model serves both passes.
        batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        adapter: ModelSource | None = None,
        dtype: torch.dtype,
        device: torch.device,
        attn_implementation: str | None,
        batch_tokens: int,
    ) -> None:
        self.name = adapter.name if adapter else source.name
        self.device = device
        self.batch_tokens = batch_tokens
        self.adapter_on = True
        self._model: Any = load_model(source, dtype=dtype, device=device, attn_implementation=attn_implementation)
        if adapter:
            self._model = add_adapter(self._model, adapter)
        self._has_adapter = adapter is not None
        self._forward: ResponseLogps | ResponseRewards
        if source.kind == "token-classification":
            self._forward = ResponseRewards(self._model)
        else:
            self._forward = ResponseLogps(self._model, layout="padded" if attn_implementation else None)
            for fallback in self._forward.fallbacks:
                warn(f"{self.name}: {fallback}")

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """See `Engine.score`. A batch that does not fit in memory is halved, and a score that is not finite is computed
        again in float32.

        Raises:
            ModelError: a single pair does not fit in the device's memory.
        """
        results: dict[int, PairScores] = {}
        for indices in batches(pairs, self.batch_tokens, self._forward.layout):
            batch = [pairs[i] for i in indices]
            results.update(zip(indices, self._score_batch(batch), strict=True))
            on_batch(len(batch), sum(pair.tokens for pair in batch))
        suspicious = [i for i, scores in results.items() if not scores.finite]
        if suspicious:
            with _in_float32(self._model):
                for i in suspicious:
                    results[i] = self._score_batch([pairs[i]])[0]
        return [results[i] for i in range(len(pairs))]

    @torch.inference_mode()
    def _score_batch(self, pairs: Sequence[PairIds]) -> list[PairScores]:
        batch = self._forward.collate(pairs)
        try:
            with self._adapter_state():
                flat = self._forward(to_device(batch, self.device)).cpu().numpy()
        except torch.OutOfMemoryError as error:
            if len(pairs) == 1:
                raise ModelError(
                    f"{self.name}: a pair of {pairs[0].tokens} tokens does not fit in the memory of {self.device}",
                    fix="set a smaller --max-length or --dtype, or another --device; finished shards are kept",
                ) from error
        else:
            rows = np.split(flat, np.cumsum(batch.response_lengths)[:-1])
            return [PairScores(*row) for row in zip(rows[::2], rows[1::2], strict=True)]
        # Outside the handler, which would keep the failed pass's tensors alive.
        half = len(pairs) // 2
        self._empty_cache()
        return self._score_batch(pairs[:half]) + self._score_batch(pairs[half:])

    def _adapter_state(self) -> Any:
        return self._model.disable_adapter() if self._has_adapter and not self.adapter_on else nullcontext()

    def close(self) -> None:
        """Gives the model's memory back."""
        del self._model, self._forward
        gc.collect()
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """The model's parameters in float32 for a while; exact, since every half-precision value is one of float32."""
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    for parameter, _ in dtypes:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)
