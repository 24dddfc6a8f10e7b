"""What the tests of vLLM's two sides share."""

from typing import Any

import pytest
import torch
from support import Models

from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec


@pytest.fixture
def spec(models: Models) -> Any:
    """Makes specs of a small model for a GPU; nothing is loaded."""
    source = resolve(str(models.reference), "--reference")

    def make(**changes: Any) -> EngineSpec:
        values: dict[str, Any] = {"device": torch.device("cuda"), "batch_tokens": 8192, "longest": 100} | changes
        return EngineSpec(source=source, dtype=torch.bfloat16, **values)

    return make
