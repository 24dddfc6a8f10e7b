"""Configurations from YAML and options: one set of names, later layers win, anything else is one clear error."""

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from tgdpo.errors import UsageError
from tgdpo.pipeline.configuration import MAX_BYTES, build, read_yaml, section
from tgdpo.pipeline.run import read_run
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.settings import Settings, option
from tgdpo.stages.train.config import TrainConfig

PANEL = "Panel"


class Small(Settings):
    """A configuration with a field of every kind."""

    name: str = option(PANEL)
    """What it is called."""
    rate: float = option(PANEL, 0.5, gt=0)
    """How fast."""
    count: int | None = option(PANEL, None, gt=0)
    """How many."""
    active: bool = option(PANEL, False)
    """Whether."""
    kind: Literal["auto", "no"] = option(PANEL, "auto")
    """Which."""
    many: tuple[str, ...] = option(PANEL, ())
    """Some."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


class TestBuild:
    """Layers of mappings become one configuration."""

    def test_later_layers_win(self) -> None:
        built = build(Small, {"name": "a", "rate": 1, "count": 3}, {"rate": 2, "active": True}, {"active": False})
        assert built == Small(name="a", rate=2, count=3, active=False)

    def test_a_default_given_explicitly_wins_too(self) -> None:
        assert build(Small, {"name": "a", "rate": 1}, {"rate": 0.5}).rate == 0.5

    @pytest.mark.parametrize("key", ["max_prompt_length", "max-prompt-length"])
    def test_keys_have_dashes_or_underscores(self, key: str) -> None:
        assert build(ScoreConfig, {"dataset": "d", "output": "o", key: 7}).max_prompt_length == 7

    def test_both_spellings_are_one_key(self) -> None:
        built = build(ScoreConfig, {"dataset": "d", "output": "o", "max_length": 7}, {"max-length": 8})
        assert built.max_length == 8

    def test_one_value_where_several_may_be_given(self) -> None:
        assert build(Small, {"name": "a", "many": "x y"}).many == ("x y",)
        assert build(Small, {"name": "a", "many": ["x", "y"]}).many == ("x", "y")
        assert build(Small, {"name": "a", "many": []}).many == ()

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({}, ["--name is missing", "What it is called."]),
            ({"name": "a", "rte": 1}, ["unknown key 'rte'", "did you mean 'rate'?"]),
            ({"name": "a", "xyz": 1}, ["unknown key 'xyz'", "name, rate, count, active, kind, many"]),
            ({"name": "a", "rate": -1}, ["--rate -1", "greater than 0"]),
            ({"name": "a", "rate": float("nan")}, ["--rate nan", "finite"]),
            ({"name": "a", "rate": "fast"}, ["--rate fast", "valid number"]),
            ({"name": "a", "count": 1.5}, ["--count 1.5", "valid integer"]),
            ({"name": "a", "kind": "other"}, ["--kind other", "'auto' or 'no'"]),
            ({"name": 3}, ["--name 3", "valid string"]),
            ({"name": "a", "many": 3}, ["--many 3"]),
            ({"name": "a", "rate": [1]}, ["--rate […]", "valid number"]),
            ({"name": None}, ["--name None"]),
            ({"name": "a", "rate": True}, ["--rate True", "a number, not a truth value"]),
            ({"name": "a", "count": False}, ["--count False", "a number, not a truth value"]),
            ({"name": "a", "count": "yes"}, ["--count yes", "valid integer"]),
            ({"name": "a", "rate": "on"}, ["--rate on", "valid number"]),
            ({"name": "a", "rate": "1:30"}, ["--rate 1:30", "valid number"]),
            ({"name": "a", "active": "maybe"}, ["--active maybe", "valid boolean"]),
            ({"name": "a", "active": 2}, ["--active 2", "valid boolean"]),
            ({"name": "\udce6"}, ["--name", "not valid UTF-8", "PYTHONUTF8=1"]),
            ({"name": "a", "many": ["b", "\udce6"]}, ["--many", "not valid UTF-8"]),
        ],
    )
    def test_what_does_not_fit_is_named_with_what_would(self, values: dict[str, Any], says: list[str]) -> None:
        with pytest.raises(UsageError) as error:
            build(Small, values)
        for part in says:
            assert part in str(error.value)

    def test_options_that_do_not_go_together(self) -> None:
        with pytest.raises(UsageError, match=r"^--eval-steps without held-out pairs: set --eval-fraction above 0$"):
            build(TrainConfig, {"cache": "c", "model": "m", "output": "o", "eval_steps": 3})


class TestYaml:
    """What a file may hold."""

    @pytest.mark.parametrize(
        ("text", "field", "value"),
        [
            ("rate: 1e-6", "rate", 1e-6),  # text in YAML 1.1, which wants 1.0e-6
            ("rate: 5.0E-7", "rate", 5e-7),
            ("rate: 1", "rate", 1.0),
            ("kind: no", "kind", "no"),  # false in YAML 1.1
            ("kind: 'no'", "kind", "no"),
            ("active: no", "active", False),
            ("active: yes", "active", True),
            ("active: true", "active", True),
            ("active: off", "active", False),
            ("active: On", "active", True),
            ("active: 1", "active", True),
            ("many: [yes, 2026-01-01]", "many", ("yes", "2026-01-01")),
            ("count: 010", "count", 10),  # 8 in YAML 1.1
            ("count: 0x10", "count", 16),
            ("count: 1_000", "count", 1000),
            ("count: 1e3", "count", 1000),
            ("count:", "count", None),
            ("many: x", "many", ("x",)),
            ("many: [x, y]", "many", ("x", "y")),
            ("many:\n- x\n- y", "many", ("x", "y")),
        ],
    )
    def test_values_as_people_write_them(self, text: str, field: str, value: Any, path: Path) -> None:
        path.write_text(f"name: a\n{text}\n")
        assert getattr(build(Small, read_yaml(path)), field) == value

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
    def test_an_empty_file_sets_nothing(self, text: str, path: Path) -> None:
        path.write_text(text)
        assert read_yaml(path) == {}

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"- rate: 1", "no mapping"),
            (b"just text", "no mapping"),
            (b"3", "no mapping"),
            (b"1: 2", "no mapping"),
            (b"rate: [1", "not valid YAML, line 1"),
            (b"a: 1\nb: 2\n c: 3", "not valid YAML, line 3"),
            (b"\trate: 1", "not valid YAML, line 1"),
            (b"rate: \xff", "not valid YAML"),
            (b"[a]: 1\n[b]: 2", "not valid YAML"),
            (b"a: " + b"[" * 10_000, "not valid YAML"),
            (b"x: !!python/object/apply:os.getcwd []", "not valid YAML"),
            (b"x: !!timestamp 2020-99-99", "not valid YAML"),
            (b'x: "\\Ufffffff0"', "not valid YAML"),
            (b"rate: 1\nname: a\nrate: 2", "not valid YAML, line 3 sets 'rate' again, after line 1: correct the file"),
            (b"learning-rate: 1\nlearning_rate: 2", "line 2 sets 'learning_rate' again, after line 1"),
            (b"train:\n  beta: 1\n  beta: 1", "line 3 sets 'beta' again, after line 2"),
            (b"train:\n  beta: 1\nscore: {}\ntrain:\n  beta: 2", "line 4 sets 'train' again, after line 1"),
        ],
    )
    def test_anything_else_is_refused(self, content: bytes, says: str, path: Path) -> None:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=says) as error:
            read_yaml(path)
        assert str(path) in str(error.value)

    def test_missing_or_too_large(self, path: Path) -> None:
        with pytest.raises(UsageError, match="no such file"):
            read_yaml(path)
        with pytest.raises(UsageError, match="no such file"):
            read_yaml(path.parent)
        path.write_bytes(b"#" * (MAX_BYTES + 1))
        with pytest.raises(UsageError, match=str(MAX_BYTES)):
            read_yaml(path)

    def test_aliases_that_would_fill_the_memory(self, path: Path) -> None:
        """Nine lines that write out to ten billion entries; the message must not write them out."""
        lines = ["a: &a0 [x]"] + [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
        path.write_text("\n".join(lines) + "\nrate: *a10\n")
        start = time.monotonic()
        rate = read_yaml(path)["rate"]
        with pytest.raises(UsageError) as error:
            build(Small, {"name": "a", "rate": rate})
        assert len(str(error.value)) < 100
        assert time.monotonic() - start < 5


class TestSuperseded:
    """Defaults that a run wrote down are no wishes for another objective."""

    NEEDED: ClassVar = {"cache": "c", "model": "m", "output": "o"}

    @pytest.mark.parametrize(
        ("first", "second", "beta"), [("dpo", "simpo", 2.5), ("simpo", "dpo", 0.1), ("tgdpo", "sepo", 1.0),
                                      ("sepo", "simpo", 2.5), ("simpo", "sft", 0.1), ("dpo", "ipo", 0.1)]
    )  # fmt: skip
    def test_another_objective_has_its_own_default(
        self, first: str, second: str, beta: float, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path.write_text(TrainConfig(**self.NEEDED, loss=first).to_yaml())
        assert build(TrainConfig, read_yaml(path), {"loss": second}).beta == beta
        told = capsys.readouterr().err.splitlines()
        before = TrainConfig(**self.NEEDED, loss=first).beta
        expected = f"--beta {before} in the file counts as not set: it is the default of --loss {first}, and that of "
        assert told == ([] if beta == before else [f"{expected}{second} is {beta}"])

    @pytest.mark.parametrize(
        ("written", "given", "beta"),
        [
            ({"loss": "dpo", "beta": 0.3}, {"loss": "simpo"}, 0.3),
            ({"loss": "dpo", "beta": 0.1}, {"loss": "simpo", "beta": 0.1}, 0.1),
            ({"loss": "dpo", "beta": 0.1}, {"loss": "dpo"}, 0.1),
            ({"loss": "simpo", "beta": 0.1}, {}, 0.1),
            ({"loss": "simpo", "beta": 0.1}, {"loss": "sepo"}, 0.1),
            ({"beta": 0.1}, {"loss": "simpo"}, 0.1),  # by hand: a record names its objective
        ],
    )
    def test_what_somebody_has_set_stays(
        self,
        written: dict[str, Any],
        given: dict[str, Any],
        beta: float,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert build(TrainConfig, self.NEEDED | written, given).beta == beta
        assert capsys.readouterr().err == ""

    def test_an_unknown_objective_is_refused_as_ever(self) -> None:
        with pytest.raises(UsageError, match="no objective nonsense"):
            build(TrainConfig, self.NEEDED | {"loss": "dpo", "beta": 0.1}, {"loss": "nonsense"})


class TestSection:
    """A flat file configures one stage; sections `score` and `train` configure both."""

    def test_flat(self) -> None:
        assert section({"beta": 1}, "train", Path("c.yaml")) == {"beta": 1}
        assert section({}, "train", Path("c.yaml")) == {}

    def test_of_each_stage(self) -> None:
        content = {"score": {"limit": 1}, "train": {"beta": 2}}
        assert section(content, "score", Path("c.yaml")) == {"limit": 1}
        assert section(content, "train", Path("c.yaml")) == {"beta": 2}

    @pytest.mark.parametrize("content", [{"train": {"beta": 2}}, {"train": {"beta": 2}, "score": None}])
    def test_missing_or_empty(self, content: dict[str, Any]) -> None:
        assert section(content, "score", Path("c.yaml")) == {}

    def test_options_beside_sections_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"c\.yaml: unknown key 'beta'.*score, train"):
            section({"train": {}, "beta": 2}, "train", Path("c.yaml"))

    @pytest.mark.parametrize("value", [3, "x", [1]])
    def test_one_that_is_no_mapping_is_refused(self, value: Any) -> None:
        with pytest.raises(UsageError, match="'train' holds no mapping"):
            section({"train": value}, "train", Path("c.yaml"))


class TestRun:
    """`tgdpo run` takes the cache and the policy from the first stage."""

    def write(self, path: Path, **content: Any) -> Path:
        path.write_text(yaml.safe_dump(content))
        return path

    def test_stage_two_goes_on_from_stage_one(self, path: Path) -> None:
        score = {"dataset": "d", "reference": "r", "output": "c"}
        scored, trained = read_run(self.write(path, score=score, train={"output": "o"}))
        assert (scored.output, trained.cache, trained.model, trained.output) == ("c", "c", "r", "o")

    def test_unless_it_says_otherwise(self, path: Path) -> None:
        score = {"dataset": "d", "reference": "r", "output": "c"}
        _, trained = read_run(self.write(path, score=score, train={"output": "o", "model": "p", "cache": "e"}))
        assert (trained.cache, trained.model) == ("e", "p")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ({"score": {}}, "no section 'train'"),
            ({"train": {}}, "no section 'score'"),
            ({"score": {}, "train": 3}, "no section 'train'"),
            ({"score": {}, "train": {}, "scoer": {}}, "unknown key 'scoer': did you mean 'score'"),
            ({"beta": 1}, "unknown key 'beta'"),
            ({"score": {}, "train": {}}, "--dataset is missing"),
            ({"score": {"dataset": "d", "output": "o", "limit": True}, "train": {}}, "--limit True: .* not a truth"),
            ({"score": {"dataset": "d", "output": "o"}, "train": {"output": "o"}}, "--model is missing"),
        ],
    )
    def test_what_is_wrong_is_named(self, content: dict[str, Any], says: str, path: Path) -> None:
        with pytest.raises(UsageError, match=says):
            read_run(self.write(path, **content))
