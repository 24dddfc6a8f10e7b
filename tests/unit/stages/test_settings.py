"""Options that earlier versions did not have, or had."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from tgdpo.stages.settings import Settings, option


class Config(Settings):
    """One option of always, one with its default's meaning, one that changed what happens."""

    gone: ClassVar = {"old": (1, 2)}

    name: str = option("Panel")
    """Of always."""
    size: int = option("Panel", 3)
    """Newer; its default is what was done before."""
    words: tuple[str, ...] = option("Panel", ("new",), before=("old", "way"))
    """Newer; its default is not."""


def test_a_record_gets_what_was_done_before() -> None:
    assert Config.completed({"name": "a"}) == {"name": "a", "size": 3, "words": ["old", "way"]}
    assert Config.completed({"name": "a", "words": ["b"]}) == {"name": "a", "size": 3, "words": ["b"]}


def test_only_options_that_are_recorded_are_added() -> None:
    assert Config.completed({"other": 1}, ["size"]) == {"other": 1, "size": 3}


def test_a_gone_option_is_dropped_at_its_default_alone() -> None:
    assert "old" not in Config.completed({"name": "a", "old": (1, 2)})
    assert Config.completed({"name": "a", "old": 7})["old"] == 7
    assert Config(name="a", old=(1, 2)) == Config(name="a")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="old"):
        Config(name="a", old=7)  # type: ignore[call-arg]


def test_work_that_was_begun_without_an_option_keeps_its_ways_unless_told() -> None:
    begun = {"name": "a"}
    assert Config(name="a").as_begun(begun).words == ("old", "way")
    assert Config(name="a", words=("new",)).as_begun(begun).words == ("new",)
    assert Config(name="a").as_begun(begun | {"words": ["b"]}).words == ("new",)
    assert Config(name="a").as_begun(begun, ["size"]).words == ("new",)


def test_what_is_completed_equals_what_is_resumed() -> None:
    resumed = Config(name="a").as_begun({"name": "a"})
    assert resumed.model_dump(mode="json") == Config.completed({"name": "a"})
