"""A self-contained HTML file.

Texts of a cache may come from anywhere. They reach the page as a compressed JSON object in base64 and become text nodes
there, never markup; what the template itself shows is escaped. A content security policy forbids the page every
connection and every script but its own, which bear a number drawn when the page is made.
"""

import base64
import json
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ...data.files import replace
from ...errors import UsageError


def write_page(path: Path, package: str, *, title: str, payload: str) -> None:
    """Writes `page.html` of `package` with its `page.css` and `page.js` to `path`, whole or not at all.

    Args:
        package: where the template lies; it extends `base.html` of this package.
        payload: what the script gets, of `packed`.

    Raises:
        UsageError: nothing can be written there.
    """
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder", fix="name a file, report.html say")
    text = _rendered(package, title=title, payload=payload)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UsageError(f"--html {path} cannot be written ({error.strerror})", fix="name another file") from error


def packed(content: Mapping[str, Any]) -> str:
    """`content` as JSON, compressed, in base64."""
    return _base64(_gzip_json(content, "", (), 0)[0])


def packed_with(content: Mapping[str, Any], name: str, items: Iterable[Any], *, limit: int) -> tuple[str, int]:
    """As `packed`, with a list `name` of as many items as fit.

    Args:
        limit: bytes of base64; the last item may go a little over it.

    Returns:
        The text, and how many items are in it.
    """
    data, count = _gzip_json(content, name, items, limit * 3 // 4)
    return _base64(data), count


def _gzip_json(content: Mapping[str, Any], name: str, items: Iterable[Any], limit: int) -> tuple[bytes, int]:
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts: list[bytes] = []
    size = count = 0
    for piece, is_item in _pieces(content, name, items):
        parts.append(compressor.compress(piece.encode()))
        size += len(parts[-1])
        count += is_item
        if is_item and size >= limit:
            break
    closing = "]}" if name else "}"
    return b"".join([*parts, compressor.compress(closing.encode()), compressor.flush()]), count


def _pieces(content: Mapping[str, Any], name: str, items: Iterable[Any]) -> Iterator[tuple[str, bool]]:
    yield _json(content)[:-1], False
    if name:
        yield ("," if content else "") + f"{json.dumps(name)}:[", False
        for n, item in enumerate(items):
            yield ("," if n else "") + _json(item), True


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _rendered(package: str, **values: str) -> str:
    import jinja2

    here, own = _folder(__package__ or ""), _folder(package)
    loader = jinja2.DictLoader({"base.html": _text(here, "base.html"), "page.html": _text(own, "page.html")})
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html").render(
        nonce=secrets.token_hex(16),
        styles=_text(here, "base.css") + _text(own, "page.css"),
        scripts=[vega(), _text(here, "base.js") + _text(own, "page.js")],
        licence=_text(here, "vega-licence.txt"),
        **values,
    )


def _folder(package: str) -> Traversable:
    return files(package)


def _text(folder: Traversable, name: str) -> str:
    return folder.joinpath(name).read_text(encoding="utf-8")


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package that carries them."""
    try:
        import vl_convert
    except ImportError as error:
        raise UsageError(
            "--html: vl-convert-python, which carries Vega, is not installed", fix="pip install vl-convert-python"
        ) from error
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script
