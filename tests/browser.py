"""A page in headless Chromium, where there is one (Debian: apt-get install chromium)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def opened(page_file: Path, **options: Any) -> Iterator[Any]:
    """The page when its script has run. Any error, dialog, or request but for the file fails the test.

    Args:
        options: of Playwright's `new_page`, `color_scheme` say.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    problems: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(**({"viewport": {"width": 1300, "height": 900}} | options))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: problems.append(request.url) if request.url != page_file.as_uri() else None)
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
        yield page
        browser.close()
    assert problems == []
