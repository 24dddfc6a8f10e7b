"""Convergence against a plain moving average."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tgdpo.stages.train.convergence import Convergence

losses = st.lists(st.floats(0, 2, allow_nan=False), max_size=30)


@given(losses, st.integers(1, 8), st.floats(0.01, 1))
def test_stops_where_the_mean_of_a_whole_window_is_below_the_threshold(
    losses: list[float], window: int, threshold: float
) -> None:
    convergence = Convergence(threshold, window)
    for step, loss in enumerate(losses, 1):
        convergence.add(loss)
        last = losses[max(0, step - window) : step]
        assert math.isclose(convergence.average, sum(last) / len(last), rel_tol=1e-9, abs_tol=1e-12)
        assert convergence.reached == (step >= window and math.fsum(last) / window < threshold)


@given(losses, losses, st.integers(1, 8))
def test_goes_on_from_its_state(before: list[float], after: list[float], window: int) -> None:
    whole = Convergence(0.5, window)
    for loss in before:
        whole.add(loss)
    resumed = Convergence(0.5, window, whole.state())
    for loss in after:
        whole.add(loss)
        resumed.add(loss)
        assert (resumed.reached, resumed.average) == (whole.reached, whole.average)


def test_without_a_threshold_it_never_stops() -> None:
    convergence = Convergence(None, 1)
    assert math.isnan(convergence.average)
    convergence.add(0.0)
    assert not convergence.reached
