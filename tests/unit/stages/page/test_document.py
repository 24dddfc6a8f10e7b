"""Pages of one file."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tgdpo.errors import UsageError
from tgdpo.stages.page.document import packed, packed_with, vega, write_page

PACKAGE = "tgdpo.stages.inspect"


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.mark.parametrize("content", [{}, {"a": [1, 2.5, None], "b": "</script>\u2028\x00"}])
def test_content_survives(content: dict[str, Any]) -> None:
    assert unpacked(packed(content)) == content


@pytest.mark.parametrize("content", [{}, {"a": 1}])
@pytest.mark.parametrize("items", [[], [{"n": 1}], list(range(1000))])
def test_a_list_survives(content: dict[str, Any], items: list[Any]) -> None:
    text, count = packed_with(content, "items", items, limit=10**6)
    assert count == len(items)
    assert unpacked(text) == content | {"items": items}


def test_as_many_items_as_fit() -> None:
    items = [{"text": f"{n:x}" * 50, "n": [n * 7919 % 10007] * 50} for n in range(100_000)]
    text, count = packed_with({}, "items", items, limit=100_000)
    assert 0 < count < len(items)
    assert 90_000 < len(text) < 170_000
    assert unpacked(text)["items"] == items[:count]


def test_not_a_number_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed({"a": float("nan")})


def test_the_title_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, PACKAGE, title="</title><script>alert(1)</script>", payload=packed({}))
    text = path.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_nothing_is_loaded_and_no_script_but_its_own_runs(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, PACKAGE, title="a", payload=packed({}))
    text = path.read_text()
    assert "default-src 'none'" in text
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert not re.search(r"<link|<img|<iframe|src=|href=|url\(", markup)
    nonces = re.findall(r"nonce[-=]\"?([0-9a-f]{32})", text)
    assert len(nonces) == 3
    assert len(set(nonces)) == 1
    write_page(path, PACKAGE, title="a", payload=packed({}))
    assert nonces[0] not in path.read_text()


def test_the_library_does_not_end_its_element() -> None:
    assert "</script" not in vega().lower()
    assert "<!--" not in vega()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_page(tmp_path, PACKAGE, title="a", payload="")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", PACKAGE, title="a", payload="")
