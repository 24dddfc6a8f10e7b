"""`tgdpo score --engine vllm` as a user types it, with the real vLLM where it is installed (make test-vllm)."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from support import STANDARD_ROWS, Cli, Models, make_model, make_tokenizer, write_rows

from tgdpo.data.manifest import Manifest

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (make test-vllm)")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models with a head width that vLLM's CPU kernels have."""
    tokenizer = make_tokenizer(chat=False)
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Models(*(make_model(folder / name, tokenizer, seed=n, **sizes) for n, name in enumerate(("ref", "guide"))))


def test_a_cache_by_vllm_is_one_by_transformers(ok: Cli, run_process: Cli, wide: Models, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)
    call = ["score", "--dataset", pairs, "--reference", wide.reference, "--guidance", wide.guidance]
    by_vllm = run_process(*call, "--output", tmp_path / "vllm", "--engine", "vllm", "--check-against", "transformers",
                          "--gpu-memory-utilization", "0.5", "--engine-arg", "block_size=32")  # fmt: skip
    assert by_vllm.code == 0, by_vllm.stderr
    lines = by_vllm.stderr.splitlines()
    assert len(lines) == 5, "vLLM's own log lines are not the user's"
    assert "flat prompt log-probabilities" in lines[0]
    ok(*call, "--output", tmp_path / "transformers")
    frames = [pd.read_parquet(tmp_path / name) for name in ("vllm", "transformers")]
    for column in ("chosen_ref_logps", "chosen_rewards", "rejected_ref_logps", "rejected_rewards"):
        for ours, theirs in zip(*(frame[column] for frame in frames), strict=True):
            assert abs(ours - theirs).max() < 1e-4
    manifest = Manifest.read(tmp_path / "vllm")
    assert manifest.engine_check is not None
    assert manifest.engine_check.reference.max < 1e-4
    assert manifest.fingerprint["vllm"]
    assert manifest.fingerprint["engine_arguments"] == {"block_size": 32}
    ok("verify", tmp_path / "vllm")


def test_what_vllm_refuses_is_one_line(run_cli: Cli, wide: Models, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)
    call = ["score", "--dataset", pairs, "--reference", wide.reference, "--output", tmp_path / "cache", "--engine",
            "vllm"]  # fmt: skip
    unknown = run_cli(*call, "--engine-arg", "blocksize=3")
    assert unknown.code == 2
    assert "vllm has no such argument: did you mean 'block_size'?" in unknown.error
    refused = run_cli(*call, "--tensor-parallel-size", 64)
    assert refused.code == 1
    assert "must be divisible by tensor parallel size" in refused.error
    Path(refused.error.rpartition(" ")[2]).unlink()
