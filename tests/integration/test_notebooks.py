"""The notebooks of docs/ run from their first cell to the last on a cache that lies beside them."""

from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from support import STANDARD_ROWS, Models, write_rows

from tgdpo import RewardCache, ScoreConfig, score

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a cache."""
    folder = tmp_path_factory.mktemp("notebooks")
    score(
        ScoreConfig(
            dataset=str(write_rows(folder / "pairs.jsonl", STANDARD_ROWS)),
            reference=str(models.reference),
            guidance=str(models.guidance),
            output=str(folder / "cache"),
        )
    )
    return folder


def executed(path: Path, folder: Path) -> list[str]:
    """What each code cell shows, as text."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(out.get("data", {}).get("text/plain", "") for out in cell.outputs) for cell in cells]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["alpha", "rewards"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, folder: Path) -> None:
    shown = executed(path, folder)
    frame = RewardCache(folder / "cache").to_pandas()
    if path.stem == "rewards":
        margins = frame.chosen_rewards.map(sum) - frame.rejected_rewards.map(sum)
        assert any(f"{(margins > 0).mean()}" in text for text in shown)
    else:
        rewards = [np.concatenate(frame[f"{side}_rewards"].to_list()) for side in ("chosen", "rejected")]
        f = np.concatenate([1 + 0.8 * rewards[0], 1 - 0.8 * rewards[1]])
        assert f"{(f < 0).mean():.6f}" in shown[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
