"""Logs of a run, with what kills and accidents do to them."""

from pathlib import Path

import pytest

from tgdpo.errors import TrainingError
from tgdpo.stages.train.logs import JsonLines


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl", "metrics.jsonl")
    assert log.read() == []
    for step in (1, 2, 3):
        log.append({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert [record["step"] for record in log.read()] == [1, 2, 3]
    log.cut(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("line", [b"{", b"\xff", b"3", b"{}", b'{"step": null}', b"[" * 10_000])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl, line 2 is damaged"):
        JsonLines(path, path).read()
