"""What a URL of fsspec may be, told from its text alone: no library is imported for it."""

import importlib.util
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
