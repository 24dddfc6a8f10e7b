"""Who trained which steps of a run."""

import json

import pytest

from tgdpo.data.versions import STEP_VERSION
from tgdpo.errors import TrainingError
from tgdpo.stages.train import history
from tgdpo.stages.train.history import History, require_same_steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `History` sees."""
    now = [0.0]
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    return now


def test_seconds_add_up_over_starts(clock: list[float]) -> None:
    first = History({"tgdpo": "1", "device": "a"})
    clock[0] = 50.0  # loading
    first.start_clock()
    clock[0] = 60.0
    saved = json.loads(json.dumps(first.state()))
    clock[0] = 75.0  # lost with the process
    second = History({"tgdpo": "2", "device": "b"})
    second.resume(7, saved)
    second.start_clock()
    clock[0] = 80.0
    assert second.state() == {
        "step_version": STEP_VERSION,
        "seconds": 15.0,
        "starts": [{"step": 0, "tgdpo": "1", "device": "a"}, {"step": 7, "tgdpo": "2", "device": "b"}],
    }


def test_a_checkpoint_of_0_1_0_says_nothing_of_who_and_how_long() -> None:
    resumed = History({"tgdpo": "2"})
    resumed.resume(7, {"step": 7})
    assert resumed.starts == [{"step": 0, "tgdpo": "0.1.0"}, {"step": 7, "tgdpo": "2"}]
    assert resumed.seconds is None


def test_steps_of_another_version_name_who_began_them(monkeypatch: pytest.MonkeyPatch) -> None:
    state = History({"tgdpo": "0.7"}).state()
    require_same_steps(state, "it was")
    require_same_steps({}, "it was")  # 0.1.0
    monkeypatch.setattr(history, "STEP_VERSION", 9)
    with pytest.raises(TrainingError, match=r"^it was begun by tgdpo 0\.7, .* finish it with tgdpo 0\.7, or"):
        require_same_steps(state, "it was")
    with pytest.raises(TrainingError, match=r"begun by tgdpo 0\.1\.0, .*\(step version 1, not 9\)"):
        require_same_steps({}, "it was")
