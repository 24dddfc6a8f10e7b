"""What is timed side by side computes the same."""

from importlib import import_module
from pathlib import Path

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


def test_float32_master_weights_in_two_passes_are_near() -> None:
    """Its arithmetic is bfloat16."""
    assert losses("float32-master") == pytest.approx(losses("ours"), abs=0.05)


def test_a_variant_that_fails_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common, train_step = import_module("common"), import_module("train_step")
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('not with this torch')")
    with pytest.raises(common.VariantError, match=r"^failed: ValueError: not with this torch$"):
        common.in_process(str(script), "one", [], threads=1)
    assert "Traceback" in capsys.readouterr().err
    fine = {"seconds": 1.0, "tokens": 10, "peak_mb": 5.0}
    rows = train_step.as_rows({"one": {"failed": "failed: why"}, "two": fine, "three": {}})
    assert [row[:2] for row in rows[1:]] == [["one", "failed: why"], ["two", "1.000"], ["three", "does not fit"]]
