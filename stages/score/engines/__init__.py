"""Engines: what runs a model over pairs of token ids. One file an engine, behind `Engine`; `ENGINES` names them.

A run loads an engine per pass, or one for both passes where guidance is an adapter on the reference.
"""

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from ....data.cache import Scores
from ....data.tokenization import PairIds
from ....errors import ModelError, UsageError
from ...models import ModelSource
from ..samples import Draws, PairSamples

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


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What an engine is to load and how; picklable, so that it can be loaded in another process."""

    source: ModelSource
    """The model; for an adapter, its base."""
    adapter: ModelSource | None = None
    """A PEFT adapter to put on it. `adapter_on` switches it, so that one model can serve both passes."""
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None = None
    batch_tokens: int | None = None
    """Tokens of one forward pass, padding included; None leaves it to the engine."""
    longest: int | None = None
    """Tokens of the longest row, prompt and response together, once the data is known."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the engine, by the engine's own names."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.adapter.name if self.adapter else self.source.name


class Engine(Protocol):
    """Scores pairs with one model.

    For a causal LM a score is log pi(y_t | x, y_<t) in nats; for a token classifier with one label, its output.
    A class of your own inherits from this one, or has all its members.
    """

    switches_adapter: ClassVar[bool] = False
    """Whether one loaded engine gives scores with and without the spec's adapter, as `adapter_on` says. Otherwise an
    engine is loaded for each pass, and the spec's adapter always counts."""

    can_sample: ClassVar[bool] = False
    """Whether it has `sample`."""

    adapter_on: bool = True
    """Whether scores are those with the spec's adapter. Without an adapter it changes nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the model. Raises ModelError where it cannot be loaded or run."""

    @staticmethod
    def versions() -> dict[str, str]:
        """What, beside the spec, decides the scores: the fingerprint takes it up. Loads nothing."""

    @classmethod
    def check(cls, spec: EngineSpec) -> None:
        """Raises UsageError or ModelError where the spec asks for what this engine cannot do. Loads nothing; called
        before the data is read. As it stands here, it refuses all `arguments`."""
        require_arguments_known(spec.arguments, (), cls.__name__)

    @staticmethod
    def lasting_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `arguments` that may change scores: the fingerprint takes them up. As it stands here, all."""
        return dict(arguments)

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """Scores of the response tokens, one entry per pair, in the pairs' order, float32. What is not finite after all
        that the engine can try stays so, and its pair will be set aside."""

    def sample(self, pairs: Sequence[PairIds], draws: Draws, on_batch: OnBatch) -> list[PairSamples]:
        """Tokens drawn from a causal LM's distributions at the response tokens, for --reference-samples; only where
        `can_sample`. What is not finite is treated as by `score`."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives the model's memory back."""


ENGINES = {
    "transformers": "tgdpo.stages.score.engines.transformers.TransformersEngine",
    "vllm": "tgdpo.stages.score.engines.vllm.VllmEngine",
    "dummy": "tgdpo.stages.score.engines.dummy.DummyEngine",
}
"""Where each engine's class is. Imported when asked for: an engine's library may be large, or not installed."""

NAMED_ARGUMENTS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "quantization",
    "gpu_memory_utilization",
    "max_model_len",
)
"""Engine arguments that are options by themselves, under the engine's own names."""

_MEMBERS = ("switches_adapter", "adapter_on", "versions", "check", "lasting_arguments", "score", "close")


def engine_class(name: str) -> type[Engine]:
    """The class of the engine `name`: one of `ENGINES`, or a dotted path.

    Raises:
        UsageError: there is none, or it lacks something that an engine has.
    """
    if "." not in name and name not in ENGINES:
        raise UsageError(f"--engine {name}: there is no such engine", fix=nearest(name, [*ENGINES, "auto"]))
    if name not in ENGINES and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = class_at(ENGINES.get(name, name))
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--engine {name} cannot be imported ({error})", fix="name a class as package.module.Class"
        ) from error
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing or not inspect.isclass(found):
        lack = f"has no {missing[0]}" if missing else "is no class"
        raise UsageError(
            f"--engine {name} {lack}", fix="let it inherit from tgdpo.stages.score.engines.Engine (see docs/engines.md)"
        )
    return found


def class_at(dotted: str) -> type[Engine]:
    """The class at a dotted path."""
    module, _, attribute = dotted.rpartition(".")
    found: Any = getattr(import_module(module), attribute)
    return found  # type: ignore[no-any-return]


def score_pairs(engine: Engine, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
    """The engine's scores of `pairs`, held against the pairs.

    Raises:
        ModelError: the engine gave another number of scores than there are response tokens.
    """
    scores = engine.score(pairs, on_batch)
    expected = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    if [(len(pair.chosen), len(pair.rejected)) for pair in scores] != expected:
        raise ModelError(
            f"{type(engine).__name__} gave other numbers of scores than the pairs have response tokens",
            fix="mend the engine: one score per response token, pairs in their order",
        )
    return scores


def require_arguments_known(arguments: Mapping[str, Any], known: Sequence[str], whose: str) -> None:
    """Raises UsageError for an argument that is not among `known`, with the nearest that is."""
    for name in arguments:
        if name not in known:
            fix = nearest(name, known) if known else "leave it out, or name another --engine, as vllm"
            raise UsageError(f"{argument_option(name)}: {whose} has no such argument", fix=fix)


def argument_option(name: str) -> str:
    """How the engine argument `name` is given on the command line."""
    return f"--{name.replace('_', '-')}" if name in NAMED_ARGUMENTS else f"--engine-arg {name}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Advice on a name that is not among `known`."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}"
