"""A browser for the tests of this folder, and a tab that watches what the page asks of others."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from urllib.parse import urlsplit

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without these a fresh Chromium looks for its maker's hosts at every start.
QUIET = (
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--no-first-run", "--disable-gpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, and the test skipped where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver_is_there = importlib.util.find_spec("playwright") is not None
    if found is None or not driver_is_there:
        missing = f"no browser: none of {', '.join(BROWSERS)} is on the PATH (apt-get install chromium)"
        missing = missing if driver_is_there else "playwright is not installed (uv sync --group browser)"
        # Where it is asked for by itself in CI, a skipped test would be a green one.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    api = importlib.import_module("playwright.sync_api")
    flags = [*QUIET, "--no-sandbox"] if os.getuid() == 0 else list(QUIET)  # Chromium's sandbox refuses root
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A new tab. At the end: no error on its console, and nothing asked of any other host."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(f"page: {error}"))
    opened.on("request", lambda asked: wrong.append(f"foreign: {asked.url}") if is_foreign(asked.url) else None)
    yield opened
    context.close()
    assert wrong == []


def is_foreign(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "file", "about") and parts.hostname != "127.0.0.1"
