"""What a path or a URL of fsspec may be, told from its text alone: no library is imported for it."""

import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UsageError

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
"""The package that opens URLs of a kind. All of these stores have a request that makes a file only where none of its
name is. In one without, the second of two writers would replace what the first has noted the hash of: nothing is
written there."""


def is_url(location: str) -> bool:
    """Whether `location` is a URL and not a path."""
    return "://" in location


def local_path(location: str | Path) -> Path:
    """The path that a location names, which Python and the libraries open alike.

    Raises:
        UsageError: Python names it in the locale's encoding, pyarrow and tokenizers in UTF-8, and these differ.
    """
    path = Path(location).expanduser()
    name = os.path.abspath(path)
    try:
        is_utf8 = os.fsencode(name) == name.encode()
    except UnicodeEncodeError:
        is_utf8 = False
    if is_utf8:
        return path
    encoding = sys.getfilesystemencoding()
    raise UsageError(
        f"{location}: this name is not UTF-8"
        + (f", as the locale's encoding is {encoding}" if encoding != "utf-8" else ""),
        fix="rename it" if encoding == "utf-8" else "set PYTHONUTF8=1 or another locale, or use a name in ASCII",
    )


def credentials_in(url: str) -> str | None:
    """A URL that holds credentials, as it may be shown; None for one that holds none."""
    parts = urlsplit(url)
    if "@" not in parts.netloc and not parts.query:
        return None
    return f"{_scheme(url)}://…" + "@…" * ("@" in parts.netloc) + "?…" * bool(parts.query)


def why_not_writable(url: str) -> str | None:
    """Why nothing can be written below `url`, or None."""
    if credentials_in(url):
        return "the URL holds credentials; put them into the environment instead"
    if _scheme(url) not in PACKAGES:
        return "what is written goes to a folder or to s3://, gs:// or abfs://; copy it there when it is finished"
    if any(character in url for character in "*?[]"):
        return "the URL holds * ? [ or ], which stand for other characters; name it without"
    return None


def require_package(url: str) -> None:
    """Raises UsageError where the package that opens `url` is missing."""
    package = PACKAGES.get(_scheme(url))
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(f"{url}: {package} is not installed", fix=f"pip install {package}")


def _scheme(url: str) -> str:
    return url.partition("://")[0]
