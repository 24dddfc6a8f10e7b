"""Runs one model over pairs of token ids with transformers, batches by token budget, longest first."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from ....data.packing import batches, collate
from ....data.tokenization import PairIds
from ....errors import ModelError
from ...budget import TokenBudget, token_budget
from ...console import warn
from ...loading import add_adapter, does_not_fit, load_model, require_finite
from ...logps import ResponseLogps, ResponseRewards, to_device
from ..samples import Draws, PairSamples
from . import Engine, EngineSpec, OnBatch, PairScores


class _ToDraw(NamedTuple):
    """A pair to draw tokens for."""

    pair: PairIds
    number: int
    draws: Draws


Job = TypeVar("Job", PairIds, _ToDraw)
Result = TypeVar("Result", PairScores, PairSamples)


class TransformersEngine(Engine):
    """A causal LM scored by its log-probabilities, or a token classifier scored by its output.

    See `Engine`.
    """

    switches_adapter = True
    can_sample = True

    def __init__(self, spec: EngineSpec) -> None:
        self.name = spec.name
        self.device = spec.device
        self._budget = token_budget(spec.batch_tokens, spec.device)
        self.adapter_on = True
        self._has_adapter = spec.adapter is not None
        self._forward: ResponseLogps | ResponseRewards
        try:
            self._load(spec)
        except torch.OutOfMemoryError as error:
            raise does_not_fit(self.name, spec.device) from error

    def _load(self, spec: EngineSpec) -> None:
        self._model: Any = load_model(
            spec.source, dtype=spec.dtype, device=spec.device, attn_implementation=spec.attn_implementation
        )
        if spec.adapter:
            self._model = add_adapter(self._model, spec.adapter)
        self._model.requires_grad_(False)
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
        again in float32, where that is possible.

        Raises:
            ModelError: a single pair does not fit in the device's memory, or weights are not finite, and no score is.
        """
        return self._run(self._scores, pairs, pairs, on_batch)

    def sample(self, pairs: Sequence[PairIds], draws: Draws, on_batch: OnBatch) -> list[PairSamples]:
        """See `Engine.sample`; errors as `score`."""
        numbered = [_ToDraw(pair, number, draws) for number, pair in enumerate(pairs)]
        return self._run(self._samples, pairs, numbered, on_batch)

    def _run(
        self,
        compute: Callable[[Sequence[Job]], list[Result]],
        pairs: Sequence[PairIds],
        jobs: Sequence[Job],
        on_batch: OnBatch,
    ) -> list[Result]:
        """What `compute` makes of the pairs' jobs, in the pairs' order."""
        results: dict[int, Result] = {}
        for indices in batches(pairs, self._budget.limit, self._forward.layout):
            results.update(zip(indices, self._in_parts(compute, [jobs[i] for i in indices]), strict=True))
            on_batch(len(indices), sum(pairs[i].tokens for i in indices))
        suspicious = [i for i, result in results.items() if not result.finite]
        if suspicious:
            results |= self._again_in_float32(compute, {i: jobs[i] for i in suspicious})
            if not any(result.finite for result in results.values()):
                require_finite(self._model, self.name)  # then no row is to blame
        return [results[i] for i in range(len(pairs))]

    def _again_in_float32(
        self, compute: Callable[[Sequence[Job]], list[Result]], jobs: Mapping[int, Job]
    ) -> dict[int, Result]:
        """`compute` of each job with the model in float32; a job that cannot be computed so is left out."""
        found: dict[int, Result] = {}
        reasons: list[str] = []
        self._empty_cache()
        # What float32 takes says nothing about later passes.
        budget, self._budget = self._budget, TokenBudget(1, None)
        with _noted(reasons), _in_float32(self._model), torch.no_grad(), self._adapter_state():
            for number, job in jobs.items():
                with _noted(reasons):
                    found[number] = compute([job])[0]
        self._budget = budget
        if reasons:
            lost = f"{len(jobs) - len(found)} of {len(jobs)} pairs with scores that are not finite"
            warn(f"{self.name}: {lost} could not be computed again in float32 ({reasons[0]})")
        return found

    @torch.no_grad()  # as the probe and evaluation: each mode would be compiled anew for FlexAttention
    def _in_parts(self, compute: Callable[[Sequence[Job]], list[Result]], jobs: Sequence[Job]) -> list[Result]:
        """`compute` of the jobs at once, or of their halves where memory does not hold that."""
        try:
            with self._adapter_state():
                return compute(jobs)
        except torch.OutOfMemoryError as error:
            if len(jobs) == 1:
                tokens = (jobs[0].pair if isinstance(jobs[0], _ToDraw) else jobs[0]).tokens
                raise ModelError(
                    f"{self.name}: a pair of {tokens} tokens does not fit in the memory of {self.device}",
                    fix="set a smaller --max-length or --dtype, or another --device; finished shards are kept",
                ) from error
        # Outside the handler, which would keep the failed pass's tensors alive.
        half = len(jobs) // 2
        self._empty_cache()
        return self._in_parts(compute, jobs[:half]) + self._in_parts(compute, jobs[half:])

    def _scores(self, pairs: Sequence[PairIds]) -> list[PairScores]:
        batch = collate(pairs, self._forward.layout)
        with self._budget.spent(batch.input_ids.size):
            flat = self._forward(to_device(batch, self.device)).cpu().numpy()
        rows = np.split(flat, np.cumsum(batch.response_lengths)[:-1])
        return [PairScores(*row) for row in zip(rows[::2], rows[1::2], strict=True)]

    def _samples(self, jobs: Sequence["_ToDraw"]) -> list[PairSamples]:
        assert isinstance(self._forward, ResponseLogps), "tokens are drawn from causal LMs"
        batch = collate([job.pair for job in jobs], self._forward.layout)
        uniforms = torch.from_numpy(np.concatenate([job.draws(job.number) for job in jobs])).to(self.device)
        with self._budget.spent(batch.input_ids.size):
            drawn = self._forward.draw(to_device(batch, self.device), uniforms)
        ids, logps = (np.split(part.cpu().numpy(), np.cumsum(batch.response_lengths)[:-1]) for part in drawn)
        flat_ids, flat_logps = [row.ravel().astype(np.int32) for row in ids], [row.ravel() for row in logps]
        sides = (flat_ids[::2], flat_ids[1::2], flat_logps[::2], flat_logps[1::2])
        return [PairSamples(*pair) for pair in zip(*sides, strict=True)]

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
def _noted(reasons: list[str]) -> Iterator[None]:
    """Ends with the block where memory ends, or where a kernel is not to be had in float32; takes down why."""
    try:
        yield
    except torch.OutOfMemoryError:
        reasons.append("out of memory")
    except ModelError as error:
        reasons.append(error.problem)


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """The model's parameters in float32 for a while; exact, since every half-precision value is one of float32."""
    converted: list[tuple[nn.Parameter, torch.dtype]] = []
    try:
        for parameter in model.parameters():
            dtype = parameter.dtype
            parameter.data = parameter.data.float()
            converted.append((parameter, dtype))
        yield
    finally:
        # The last first: each then has the memory that its own conversion had.
        for parameter, dtype in reversed(converted):
            parameter.data = parameter.data.to(dtype)
