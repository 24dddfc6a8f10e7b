"""What is timed side by side computes the same."""

from importlib import import_module

import pytest


def losses(variant: str) -> list[float]:
    """Of two steps; the second one has the first one's gradients in it."""
    common, train_step = import_module("common"), import_module("train_step")
    pairs = common.make_pairs(6, 320, prompt=(3, 20), response=(1, 30))
    make_step = train_step.peer_step if variant in train_step.PEERS else train_step.our_step
    step = make_step(variant, train_step.Setup("tiny", "float32"), [pairs[:3], pairs[3:]])
    return [step(0), step(1)]


def test_ours_without_the_cache_has_the_losses_of_the_authors_structure() -> None:
    assert losses("no-cache") == pytest.approx(losses("three-models"), abs=1e-6)


@pytest.mark.parametrize("switched_off", ["no-shared-prompt", "no-packing", "no-response-only", "no-blocks"])
def test_each_speed_up_switched_off_leaves_the_losses(switched_off: str) -> None:
    assert losses(switched_off) == pytest.approx(losses("ours"), abs=1e-6)
