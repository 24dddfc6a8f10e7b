"""Operations per pair, against a count by hand."""

from importlib import import_module

import pytest


def test_llama_3_8b() -> None:
    floor = import_module("floor")
    size = floor.parameters(floor.SIZES["Llama-3-8B"])
    assert size.parameters == 8_030_261_248
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14_336
    body, head = 32 * layer, 4096 * 128_256
    attention = 4 * 4096 * 32
    flops = floor.pair_flops(size, floor.Lengths(512, 512, 512))
    in_full = 2 * body * 2048 + 2 * head * 2048 + attention * 1024**2
    ours = 2 * body * 1536 + 2 * head * 1024 + attention * (1024**2 / 2 + 512 * 512 + 512**2 / 2)
    assert flops.three_models == pytest.approx(5 * in_full, rel=1e-3)
    assert flops.two_models == pytest.approx(4 * in_full, rel=1e-3)
    assert flops.cached == pytest.approx(3 * in_full, rel=1e-3)
    assert flops.shared_prompt == pytest.approx(3 * ours, rel=1e-3)
