"""How a launch is read; what runs on several processes is in tests/integration/test_parallel.py."""

import pytest

from tgdpo.stages.train.fsdp import FsdpOptions

LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FsdpOptions()),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, FsdpOptions(reshard_after_forward=False)),
        ({"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_OFFLOAD_PARAMS": "true"}, FsdpOptions(offload=True)),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, FsdpOptions(state="sharded")),
        ({"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, FsdpOptions(state="full")),
    ],
)
def test_options_of_accelerates_launcher(
    settings: dict[str, str], expected: FsdpOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (LAUNCHED | settings).items():
        monkeypatch.setenv(name, value)
    assert FsdpOptions.of_launcher() == expected
    assert "warning" not in capsys.readouterr().err


def test_without_fsdp_in_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert FsdpOptions.of_launcher() is None


def test_version_1_is_told_to_run_as_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (LAUNCHED | {"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}).items():
        monkeypatch.setenv(name, value)
    assert FsdpOptions.of_launcher() == FsdpOptions()
    assert "runs as version 2" in capsys.readouterr().err
