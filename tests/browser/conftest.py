"""A headless Chromium with nothing but this machine to talk to, and a page that may not complain.

Every test here ends by checking what the browser saw meanwhile: no script error, no console error, no
violation of the Content-Security-Policy, and no request to any other origin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.chromium import find_chromium

FLAGS = [
    "--no-sandbox",  # root in a container has no user namespace to put a sandbox in
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(
    scope="module"
)  # not session: Playwright's event loop would run on under everybody's asyncio.run
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium
        executable = find_chromium(chromium.executable_path)
        if executable is None:
            pytest.fail("no Chromium: `make test` installs it, or name one in CHROMIUM", pytrace=False)
        browser = chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What went wrong in the browser while a test ran."""

    origin: str
    complaints: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        # The browser itself logs a line for every refused or failed call; the page has answered for those.
        path = urlsplit(message.location.get("url", "")).path
        if message.text.startswith("Failed to load resource") and path.startswith("/v1/"):
            return
        self.complaints.append(f"console: {message.text} {message.location}")

    def request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "blob:", "data:")):
            self.complaints.append(f"request to elsewhere: {request.url}")

    def attach(self, context: BrowserContext) -> None:
        context.on("console", self.console)
        context.on("weberror", lambda error: self.complaints.append(f"script: {error.error}"))
        context.on("request", self.request)


@pytest.fixture
def context_options() -> dict[str, Any]:
    """Browser context options; a test overrides them with ``@pytest.mark.parametrize``."""
    return {}


@pytest.fixture
def page(browser: Browser, service: Any, context_options: dict[str, Any]) -> Iterator[Page]:
    """A fresh profile: no key, no history, no profile, not yet opened."""
    context = browser.new_context(
        base_url=service.url, **{"viewport": {"width": 1280, "height": 900}, **context_options}
    )
    context.set_default_timeout(15_000)
    watch = Watch(service.url.rstrip("/"))
    watch.attach(context)
    page = context.new_page()
    # Chromium hands over file choosers only while somebody listens, and says so a little late.
    page.on("filechooser", lambda chooser: None)
    yield page
    context.close()
    assert watch.complaints == []
