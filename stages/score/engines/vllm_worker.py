"""vLLM in the process that scores: token ids in, log-probabilities of the response tokens out.

Two routes, the cheaper one that the installed vLLM offers:

 - target ids: vLLM's V2 model runner (CUDA) runs the LM head on the response's positions alone and gives float32 back;
 - flat: `prompt_logprobs=0` in flat lists, of which the response's part is taken after its token ids were compared.

Both responses of a pair go in one after the other, and the second may read the prompt's keys and values from the
prefix cache. A hit that reaches into the response leaves rows without a score (or, on the flat route, with a wrong
one): such a request is asked again without the cache. Nothing is ever filled in, and no text or tokenizer is involved.
"""

import gc
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ....data.cache import Scores
from ....data.tokenization import Ids, PairIds
from ....errors import ModelError, UsageError
from ...budget import DEFAULT_TOKENS
from ...console import quiet_libraries
from ...model_files import link_model
from ...models import add_adapter, load_model
from . import Engine, EngineSpec, OnBatch, PairScores, argument_option
from .process import first_line
from .vllm import VllmEngine, installed_version

FLAT_BATCH_TOKENS = 2048
"""Tokens of a pass on the flat route: it makes all logits of a pass, 6 bytes each, which vLLM's own memory profile does
not see (6.3 GB for 8,192 tokens and a vocabulary of 128,256)."""

MEMORY_SHARE = 0.85
"""Share of the GPU's memory for weights and cache. Less than vLLM's default, for the logits."""

ATTEMPTS = 3
"""Requests for one score: with the prefix cache, without, and once more."""


class _Request(NamedTuple):
    """One response of a pair, behind its prompt."""

    pair: int
    prompt: Ids
    response: Ids
    shared: int
    """Tokens that it has in common with the request before it."""

    @property
    def ids(self) -> list[int]:
        ids: list[int] = np.concatenate([self.prompt, self.response]).tolist()
        return ids

    def may_read_cache(self, block: int) -> bool:
        """Whether what the request before it left in the prefix cache ends before the row that predicts the
        response's first token. The cache is read in whole blocks, or not at all."""
        return self.shared // block * block < len(self.prompt)


def _requests(pairs: Sequence[PairIds]) -> Iterator[_Request]:
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        yield _Request(number, prompt, chosen, 0)
        both = min(len(chosen), len(rejected))
        alike = int(np.argmin(np.append(chosen[:both] == rejected[:both], False)))
        yield _Request(number, prompt, rejected, len(prompt) + alike)


class InProcessVllm(Engine):
    """vLLM in this process; `VllmEngine` runs it in one of its own. See `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        quiet_libraries()
        from vllm import LLM

        self.name = spec.name
        by_target_ids = _expects_v2_runner(spec)
        with _merged(spec) as folder:
            arguments = engine_arguments(spec, folder, by_target_ids=by_target_ids)
            try:
                self._llm = LLM(**arguments)
            except Exception as error:
                raise ModelError(
                    f"{self.name}: vllm cannot load it ({_reason(error)})",
                    fix=_advice(error),
                ) from error
        self._engine = self._llm.llm_engine
        self._by_target_ids = bool(getattr(self._engine.vllm_config, "use_v2_model_runner", False)) and not getattr(
            self._engine.vllm_config.cache_config, "kv_sharing_fast_prefill", False
        )
        self._vocabulary = int(self._engine.model_config.get_vocab_size())
        self._block = int(self._engine.vllm_config.cache_config.block_size)
        self._window = 2 * int(arguments["max_num_seqs"])
        self._requests_made = 0
        route = "log-probabilities of given ids" if self._by_target_ids else "flat prompt log-probabilities"
        self.notes = [
            f"{self.name}: vllm {installed_version()}, {route}, "
            f"{self._engine.vllm_config.scheduler_config.max_num_batched_tokens:,} tokens a pass"
        ]

    @staticmethod
    def versions() -> dict[str, str]:
        """See `Engine.versions`."""
        return VllmEngine.versions()

    def score(self, pairs: Sequence[PairIds], on_batch: OnBatch) -> list[PairScores]:
        """See `Engine.score`. What vLLM computes as not finite stays so: it runs in one dtype alone.

        Raises:
            ModelError: an id outside the vocabulary, or vLLM gave no score for a response however often it was asked.
        """
        self._require_known(pairs)
        # A shard's bytes depend on its own rows alone, not on what was scored before it.
        self._llm.reset_prefix_cache()
        requests = list(_requests(pairs))
        results: dict[int, Scores] = {}
        open_responses = [2] * len(pairs)
        pending = range(len(requests))
        for attempt in range(ATTEMPTS):
            for finished in self._run(requests, pending, reads_cache=attempt == 0):
                done = 0
                tokens = 0
                for number, scores in finished:
                    results[number] = scores
                    pair = requests[number].pair
                    open_responses[pair] -= 1
                    if not open_responses[pair]:
                        done, tokens = done + 1, tokens + pairs[pair].tokens
                if done:
                    on_batch(done, tokens)
            pending = [number for number in pending if number not in results]  # type: ignore[assignment]
            if not pending:
                return [PairScores(results[2 * i], results[2 * i + 1]) for i in range(len(pairs))]
        raise ModelError(
            f"{self.name}: vllm gave no scores for {len(pending)} responses, asked {ATTEMPTS} times",
            fix="use --engine transformers; finished shards are kept",
        )

    def _require_known(self, pairs: Sequence[PairIds]) -> None:
        """One id outside the vocabulary would stop the engine for good."""
        for pair in pairs:
            for ids in pair:
                if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocabulary:
                    raise ModelError(
                        f"{self.name}: token id {int(ids.max())} lies outside its vocabulary of {self._vocabulary}",
                        fix="use the tokenizer that the models were trained with (--tokenizer)",
                    )

    def _run(
        self, requests: Sequence[_Request], numbers: Sequence[int], *, reads_cache: bool
    ) -> Iterator[list[tuple[int, Scores]]]:
        """Runs requests by number; yields, a step of the engine at a time, those that were scored."""
        from vllm.inputs import tokens_input

        waiting = deque(numbers)
        running: dict[str, tuple[int, list[int]]] = {}
        while waiting or running:
            while waiting and len(running) < self._window:
                number = waiting.popleft()
                request, ids = requests[number], requests[number].ids
                name = str(self._requests_made)
                self._requests_made += 1
                parameters = self._parameters(request, reads_cache and request.may_read_cache(self._block))
                self._engine.add_request(name, tokens_input(ids), parameters)
                running[name] = number, ids
            finished = []
            for output in self._engine.step():
                if output.finished:
                    number, ids = running.pop(output.request_id)
                    scores = self._scores_of(requests[number], ids, output)
                    if scores is not None:
                        finished.append((number, scores))
            yield finished

    def _parameters(self, request: _Request, reads_cache: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        wanted: dict[str, Any]
        if self._by_target_ids:
            wanted = {
                "prompt_logprob_token_ids": request.response.astype(np.int32)[:, None],
                "prompt_logprob_start": len(request.prompt) - 1,
            }
        else:
            wanted = {"prompt_logprobs": 0, "flat_logprobs": True}
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            skip_reading_prefix_cache=not reads_cache,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **wanted,
        )

    def _scores_of(self, request: _Request, ids: list[int], output: Any) -> Scores | None:
        """The scores in an output, float32; None where they are missing or not those of the request."""
        return (
            target_scores(len(request.response), ids, output)
            if self._by_target_ids
            else flat_scores(len(request.prompt), ids, output)
        )

    def close(self) -> None:
        """See `Engine.close`; on a GPU only the end of the process gives all memory back."""
        del self._llm, self._engine
        gc.collect()


def target_scores(responses: int, ids: list[int], output: Any) -> Scores | None:
    """Scores by the route of target ids.

    Args:
        responses: number of response tokens.
        ids: prompt and response.
        output: vLLM's RequestOutput. Its `prompt_token_id_logprobs` is None where rows were read from the cache.
    """
    found = output.prompt_token_id_logprobs
    if found is None or found.shape != (responses, 1) or list(output.prompt_token_ids) != ids:
        return None
    return np.ascontiguousarray(found[:, 0], np.float32)


def flat_scores(prompt: int, ids: list[int], output: Any) -> Scores | None:
    """Scores by the flat route.

    Args:
        prompt: number of prompt tokens.
        ids: prompt and response.
        output: vLLM's RequestOutput. Its rows that were read from the prefix cache hold values and ids that mean
            nothing: the row that predicts the response's first token must not be among them.
    """
    cached, flat, first = output.num_cached_tokens, output.prompt_logprobs, prompt - 1
    if cached is None or cached > first or flat is None or flat.token_ids[first:] != ids[prompt:]:
        return None
    return np.asarray(flat.logprobs[first:], np.float32)


def engine_arguments(spec: EngineSpec, folder: Path, *, by_target_ids: bool) -> dict[str, Any]:
    """What vLLM's LLM is called with; the user's arguments win.

    Raises:
        UsageError: the longest row does not fit in the user's max_model_len.
    """
    tokens = spec.batch_tokens or DEFAULT_TOKENS
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": str(spec.dtype).removeprefix("torch."),
        "trust_remote_code": spec.source.trust_remote_code,
        "skip_tokenizer_init": True,
        "runner": "generate",
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "max_num_batched_tokens": tokens if by_target_ids else min(tokens, FLAT_BATCH_TOKENS),
        "max_num_seqs": 256,
        "seed": 0,
        "disable_log_stats": True,
    }
    if spec.device.type == "cuda":
        arguments["gpu_memory_utilization"] = MEMORY_SHARE
    else:
        # vLLM takes 128 on a CPU, and shorter prompts would not be shared at all.
        arguments["block_size"] = 32
    if spec.arguments.get("quantization") is None:
        arguments["load_format"] = "safetensors"
    if spec.longest is not None:
        # A token is generated after each row, since vLLM does not run without.
        arguments["max_model_len"] = spec.longest + 1
        asked = spec.arguments.get("max_model_len")
        if asked is not None and asked <= spec.longest:
            raise UsageError(
                f"{argument_option('max_model_len')} {asked}: the longest row has {spec.longest} tokens, and one more "
                "is needed",
                fix="leave it out, or cut the rows with --max-length",
            )
    return arguments | dict(spec.arguments)


def _expects_v2_runner(spec: EngineSpec) -> bool:
    return (
        spec.device.type == "cuda"
        and os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "1") != "0"
        and find_spec("triton") is not None
    )


def _reason(error: Exception) -> str:
    """An exception in one line; of pydantic's, what is wrong with the first value."""
    messages = getattr(error, "errors", None)
    text = messages()[0]["msg"].removeprefix("Value error, ") if callable(messages) else first_line(error)
    return f"{type(error).__name__}: {text}"


def _advice(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or "memory" in text:
        return "change --gpu-memory-utilization, or spread the model with --tensor-parallel-size; finished shards stay"
    return "check the model and the options, or use --engine transformers"


@contextmanager
def _merged(spec: EngineSpec) -> Iterator[Path]:
    """The model's folder; with an adapter, a temporary one that holds the base with the adapter merged in, and with
    further safetensors files in it, one of links to the model's own: vLLM reads whatever weights there are.

    Raises:
        ModelError: the adapter does not fit, or cannot be merged.
    """
    files = spec.source.files
    if spec.adapter is None and set(spec.source.folder.glob("*.safetensors")) <= set(files):
        yield spec.source.folder
        return
    with tempfile.TemporaryDirectory(prefix="tgdpo-model-") as name:
        if spec.adapter is None:
            link_model(spec.source.folder, files, Path(name))
        else:
            _write_merged(spec, Path(name))
        yield Path(name)


def _write_merged(spec: EngineSpec, folder: Path) -> None:
    assert spec.adapter is not None
    model: Any = add_adapter(load_model(spec.source, dtype=spec.dtype, device=torch.device("cpu")), spec.adapter)
    try:
        merged = model.merge_and_unload(safe_merge=True)
        merged.save_pretrained(folder)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(
            f"the adapter {spec.adapter.name} cannot be merged into its base ({first_line(error)})",
            fix="use --engine transformers",
        ) from error
    except OSError as error:
        raise ModelError(
            f"{spec.adapter.name}, merged into its base, does not fit in {folder.parent} ({first_line(error)})",
            fix="set TMPDIR to a folder with room for the base model's weights",
        ) from error
    for script in spec.source.folder.glob("*.py") if spec.source.trust_remote_code else ():
        shutil.copy(script, folder)
    del model, merged
    gc.collect()
