"""FlexAttention over packed rows: its blocks against the mask on tokens, its results against the calls pair by pair."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo import config
from torch._inductor.exc import InductorError
from torch.nn.attention import flex_attention as torch_flex

from tgdpo.data.packing import Span
from tgdpo.errors import ModelError
from tgdpo.stages import flex
from tgdpo.stages.attention import PackedRow, shared_prompt_attention, shared_prompt_flex_attention

lengths = st.lists(st.tuples(*[st.integers(1, 300)] * 3), min_size=1, max_size=5)


def spans_of(pairs: list[tuple[int, int, int]]) -> list[Span]:
    ends = accumulate(map(sum, pairs), initial=0)
    return [
        Span(start, start + p, start + p + c, start + p + c + r) for start, (p, c, r) in zip(ends, pairs, strict=False)
    ]


def positions_of(spans: list[Span]) -> torch.Tensor:
    parts = []
    for span in spans:
        prompt = span.chosen - span.prompt
        parts += [np.arange(span.rejected - span.prompt), np.arange(prompt, prompt + span.end - span.rejected)]
    return torch.from_numpy(np.concatenate(parts))[None]


def visible_tokens(spans: list[Span], window: int | None) -> torch.Tensor:
    """[T, T], by the definition."""
    positions = positions_of(spans)[0]
    visible = torch.zeros(spans[-1].end, spans[-1].end, dtype=torch.bool)
    for span in spans:
        visible[span.prompt : span.end, span.prompt : span.end] = True
        visible[span.rejected : span.end, span.chosen : span.rejected] = False
    visible &= torch.ones_like(visible).tril()
    return visible & (positions[:, None] - positions[None, :] < window) if window else visible


@settings(deadline=None, max_examples=60)
@given(pairs=lengths, window=st.none() | st.integers(1, 200))
def test_blocks_hold_what_is_visible(pairs: list[tuple[int, int, int]], window: int | None) -> None:
    spans = spans_of(pairs)
    mask = flex.row_block_mask(spans, positions_of(spans)[0], window)
    visible = visible_tokens(spans, window)
    tokens, blocks = len(visible), mask.kv_indices.shape[-1]
    place = torch.arange(tokens)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(mask.mask_mod(zero, zero, place[:, None], place[None, :]), visible)

    computed = torch.zeros(blocks * flex.BLOCK, blocks * flex.BLOCK, dtype=torch.bool)
    for row in range(blocks):
        queries = slice(row * flex.BLOCK, (row + 1) * flex.BLOCK)
        for counts, indices, is_full in (
            (mask.kv_num_blocks, mask.kv_indices, False),
            (mask.full_kv_num_blocks, mask.full_kv_indices, True),
        ):
            for column in indices[0, 0, row, : counts[0, 0, row]]:
                keys = slice(column * flex.BLOCK, (column + 1) * flex.BLOCK)
                assert not computed[queries, keys].any(), "a block is computed twice"
                computed[queries, keys] = True
                assert not is_full or visible[queries, keys].all(), "a block that is not masked hides something"
    assert computed[:tokens, :tokens][visible].all(), "something visible is never computed"


def test_blocks_that_hide_everything_are_skipped() -> None:
    spans = spans_of([(128, 256, 256), (128, 128, 128)])
    mask = flex.row_block_mask(spans, positions_of(spans)[0], None)
    counts = (mask.kv_num_blocks + mask.full_kv_num_blocks).flatten().tolist()
    # Prompt; chosen; rejected without chosen; the second pair without the first.
    assert counts == [1, 2, 3, 2, 3, 1, 2, 2]


def require_equal(window: int | None, cap: float | None) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for pairs in ([(200, 40, 130), (5, 1, 1), (30, 300, 90)], [(17, 150, 200)]):
            spans = spans_of(pairs)
            row = PackedRow(spans, positions_of(spans))
            query, key, value = (torch.randn(1, heads, spans[-1].end, 32) for heads in (4, 2, 2))
            inputs = (nn.Identity(), query, key, value, None)
            expected, found = (
                attention(*inputs, scaling=0.2, packed_row=row, sliding_window=window, softcap=cap)[0]  # type: ignore[arg-type]
                for attention in (shared_prompt_attention, shared_prompt_flex_attention)
            )
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on a CPU is compiled with g++")
def test_the_kernel_equals_calls_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "")  # the compiler would set it for good
    require_equal(None, None)


@pytest.mark.parametrize(("window", "cap"), [(70, None), (None, 2.0), (70, 2.0)])
def test_windows_and_caps_equal_calls_pair_by_pair(
    window: int | None, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler, whose CPU kernels know neither."""
    monkeypatch.setattr(flex, "_compiled", lambda: torch_flex.flex_attention)
    require_equal(window, cap)


def attend(tokens: int = 300, window: int | None = None, cap: float | None = None, **options: Any) -> torch.Tensor:
    spans = spans_of([(tokens // 2, tokens // 4, tokens - tokens // 2 - tokens // 4)])
    row = PackedRow(spans, positions_of(spans))
    heads, dtype = options.get("heads", 2), options.get("dtype", torch.float32)
    query, key, value = (torch.randn(1, n, tokens, 16, dtype=dtype) for n in (4, heads, heads))
    return flex.flex_attention(query, key, value, row.block_mask(window), 0.2, cap)


def test_all_lengths_share_a_graph(graphs: list[Any]) -> None:
    for tokens in (320, 129, 1000, 640):
        attend(tokens)
    assert len(graphs) == 1


def test_more_kinds_than_the_compilers_own_limit_are_compiled(graphs: list[Any]) -> None:
    kinds: list[dict[str, Any]] = [{}, {"window": 70}, {"cap": 2.0}]
    with config.patch(recompile_limit=1):
        for kind in kinds * 2:
            attend(**kind)
        assert config.recompile_limit == 1, "the setting is not left behind"
    assert len(graphs) == len(kinds)


@pytest.mark.parametrize("run", [lambda call: call(), lambda call: ThreadPoolExecutor(1).submit(call).result()])
def test_at_the_limit_it_says_so(run: Any, graphs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled it would take the memory of all scores. In the backward pass's thread too, where checkpointed layers
    run again: the compiler's settings are a thread's own."""
    monkeypatch.setattr(flex, "GRAPHS", 1)
    run(partial(attend, heads=2))
    with pytest.raises(ModelError, match=r"compiled 1 times .* set --attn-implementation sdpa"):
        run(partial(attend, heads=4))
    run(partial(attend, heads=2))
    assert len(graphs) == 1


def test_what_does_not_compile_is_an_error_of_a_line(graphs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise InductorError(RuntimeError("no choices to select\nof many"), None)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(ModelError, match=r"does not compile \(RuntimeError: no choices to select\): set --attn-impl"):
        attend()


def test_rows_of_every_length_take_the_main_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one for decoding, which the compiler takes for short rows, fails for many models. Whether the option is
    heeded is seen on a GPU alone."""
    asked: list[Any] = []

    def attention(query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        asked.append(options["kernel_options"])
        return torch_flex.flex_attention(query, *arguments, **options)

    monkeypatch.setattr(flex, "_compiled", lambda: attention)
    for tokens in (20, 300):
        attend(tokens)
    assert asked == [{"BACKEND": "TRITON"}] * 2
