"""Shapes of f: what they keep, and functions of one's own."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdpo.errors import UsageError
from tgdpo.stages.train.shapes import SHAPES, Shape, find_shape

rewards = st.lists(st.floats(-50, 50), min_size=1, max_size=8).map(lambda r: torch.tensor(r, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_leaves_zero_rewards_alone(shape: Shape) -> None:
    assert shape(torch.zeros(4)).tolist() == [0] * 4


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None)
@given(values=rewards)
def test_better_tokens_never_weigh_less(name: str, values: torch.Tensor) -> None:
    order = values.argsort()
    assert (SHAPES[name](values)[order].diff() >= 0).all()


@pytest.mark.parametrize("name", ["sigmoid", "clipped-linear", "rank"])
@settings(deadline=None)
@given(values=rewards)
def test_bounded_shapes(name: str, values: torch.Tensor) -> None:
    assert SHAPES[name](values).abs().max() <= 1


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None)
@given(values=rewards)
def test_shapes_are_odd(name: str, values: torch.Tensor) -> None:
    """What pulls a chosen token harder pushes a rejected one less, by as much."""
    torch.testing.assert_close(SHAPES[name](-values), -SHAPES[name](values))


def test_sigmoid_and_clipped_linear() -> None:
    values = torch.tensor([-3.0, 0.5, 1.0])
    assert SHAPES["sigmoid"](values)[2].item() == pytest.approx(2 / (1 + math.exp(-1)) - 1)
    assert SHAPES["clipped-linear"](values).tolist() == [-1, 0.5, 1]


def test_rank_shares_places_and_has_mean_zero() -> None:
    found = SHAPES["rank"](torch.tensor([3.0, -1.0, 3.0, 100.0]))
    assert found.tolist() == [0, -0.75, 0, 0.75]


class TestOnesOwn:
    """A function by dotted path."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A module in the working directory; its name is new for every test, since Python keeps modules."""
        name = f"own_shapes_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(
            "import torch\n"
            "number = 1\n"
            "def squashed(rewards): return torch.tanh(rewards)\n"
            "def summed(rewards): return rewards.sum()\n"
            "def endless(rewards): return rewards / 0\n"
            "def failing(rewards): raise RuntimeError('no such luck')\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", [*__import__("sys").path])
        return name

    def test_is_found_in_the_working_directory(self, module: str) -> None:
        assert find_shape(f"{module}.squashed")(torch.tensor([0.5])).item() == pytest.approx(math.tanh(0.5))

    def test_is_found_in_an_installed_package(self) -> None:
        assert find_shape("torch.tanh") is torch.tanh

    @pytest.mark.parametrize(
        ("attribute", "said"),
        [
            ("summed", "one number per reward"),
            ("endless", "one number per reward"),
            ("failing", "no such luck"),
            ("number", "is no function"),
            ("missing", "cannot be imported"),
        ],
    )
    def test_is_refused_where_it_cannot_work(self, module: str, attribute: str, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            find_shape(f"{module}.{attribute}")


@pytest.mark.parametrize("name", ["cubic", "nowhere.to.be.found", ".", "..rank"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--f-shape"):
        find_shape(name)
