"""FlexAttention compiled for a backend that runs what it gets, so that graphs can be counted without a compiler."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from tgdpo.stages import flex


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is compiled in a test, by the product's own call."""
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    _forget()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield compiled
    _forget()


def _forget() -> None:
    torch.compiler.reset()
    flex._compiled.cache_clear()
    flex._room_for_graphs.cache_clear()
