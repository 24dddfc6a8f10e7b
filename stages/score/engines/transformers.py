"""Runs one model over pairs of token ids with transformers, batches by token budget, longest first."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from ....data.packing import batches, collate
from ....data.tokenization import PairIds
from ....errors import ModelError
from ...budget import token_budget
from ...console import warn
from ...logps import ResponseLogps, ResponseRewards, to_device
from ...models import add_adapter, load_model
from . import Engine, EngineSpec, OnBatch, PairScores


class TransformersEngine(Engine):
    """A causal LM scored by its log-probabilities, or a token classifier scored by its output.

    See `Engine`.
    """

    switches_adapter = True

    def __init__(self, spec: EngineSpec) -> None:
        self.name = spec.name
        self.device = spec.device
        self._budget = token_budget(spec.batch_tokens, spec.device)
        self.adapter_on = True
        self._model: Any = load_model(
            spec.source, dtype=spec.dtype, device=spec.device, attn_implementation=spec.attn_implementation
        )
        if spec.adapter:
            self._model = add_adapter(self._model, spec.adapter)
        self._model.requires_grad_(False)
        self._has_adapter = spec.adapter is not None
        self._forward: ResponseLogps | ResponseRewards
        if spec.source.kind == "token-classification":
            self._forward = ResponseRewards(self._model)
        else:
            self._forward = ResponseLogps(self._model, layout="padded" if spec.attn_implementation else None)
            for fallback in self._forward.fallbacks:
                warn(f"{self.name}: {fallback}")

    @staticmethod
    def versions() -> dict[str, str]:
        """See `Engine.versions`."""
        return {"transformers": version("transformers")}

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """See `Engine.score`. A batch that does not fit in memory is halved, and a score that is not finite is computed
        again in float32.

        Raises:
            ModelError: a single pair does not fit in the device's memory.
        """
        results: dict[int, PairScores] = {}
        for indices in batches(pairs, self._budget.limit, self._forward.layout):
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
        batch = collate(pairs, self._forward.layout)
        try:
            with self._budget.spent(batch.input_ids.size), self._adapter_state():
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
