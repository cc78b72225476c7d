"""A real Chromium without a window, told what to do as a person would be: what to find is named by what can be read.

Chromium and its driver are Debian's packages `chromium` and `chromium-driver`. Where they are missing the tests that
want them are skipped, unless MAILBOX_BROWSER=required, as in .ci/run.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from mailbox_app.devtools.processes import wait_until

# How long a page may take on a busy machine; what a person would wait for is far less.
PATIENCE_SECONDS = 20.0
PHONE = (390, 844)
DESK = (1280, 800)
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--lang=en-GB",
)


class Browser:
    """One window of Chromium, at one site."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver, self.base = driver, base

    # Going places

    def go(self, path: str) -> None:
        self.driver.get(self.base + path)

    def reload(self) -> None:
        self.driver.refresh()

    @property
    def path(self) -> str:
        return str(self.driver.current_url).removeprefix(self.base)

    def resize(self, size: tuple[int, int]) -> None:
        """Make the page so large, as a phone or a desk would have it."""
        facts = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", facts)

    def prefer(self, scheme: str) -> None:
        """Have the person prefer a light or a dark page."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def block(self, *patterns: str) -> None:
        """Let requests of these addresses fail, until it is called without any."""
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(patterns)})

    # Looking

    def all(self, css: str) -> list[WebElement]:
        """What matches and can be seen."""
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()]

    def texts(self, css: str) -> list[str]:
        """What can be read there, one entry for each element; read in one look, for a page that moves."""
        script = """return [...document.querySelectorAll(arguments[0])]
            .filter((one) => one.checkVisibility()).map((one) => one.innerText.trim())"""
        return list(self.driver.execute_script(script, css))

    def text(self, css: str) -> str:
        """What can be read in the first that matches; blank while nothing does."""
        return next(iter(self.texts(css)), "")

    def see(self, what: Callable[[], Any], why: str = "") -> Any:
        """Wait until something is true of the page, and return it."""
        found: list[Any] = [None]

        def look() -> bool:
            with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
                found[0] = what()
                return bool(found[0])
            return False

        wait_until(look, PATIENCE_SECONDS)
        assert found[0], f"{why or 'not seen'}; the page says:\n{self.text('body')}\n{self.complaints()}"
        return found[0]

    def complaints(self) -> list[str]:
        """What the browser's console says since it was asked before."""
        return [str(entry["message"])[:300] for entry in self.driver.get_log("browser")][:20]

    def shot(self, path: Path) -> None:
        assert self.driver.save_screenshot(str(path))

    # Doing

    def press(self, css: str) -> None:
        """Press the first button that matches, as soon as it can be pressed."""

        def pressed() -> bool:
            for one in self.all(css):
                if one.is_enabled():
                    one.click()
                    return True
            return False

        self.see(pressed, f"no {css} can be pressed")

    def type(self, css: str, text: str, *, end: str = "") -> None:
        """Put a text in place of what a field holds, and end with a key."""
        field = self.see(lambda: self.all(css), f"there is no {css}")[0]
        field.send_keys(Keys.CONTROL + "a", Keys.DELETE)
        field.send_keys(text, end)


@contextlib.contextmanager
def chromium(base: str) -> Iterator[Browser]:
    """A fresh browser with no cookies, at the site `base`; it has ended after the block."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        if os.environ.get("MAILBOX_BROWSER") == "required":
            pytest.fail("chromium and chromium-driver are missing: apt-get install chromium chromium-driver")
        pytest.skip("chromium and chromium-driver are not installed")
    with tempfile.TemporaryDirectory(prefix="mailbox-browser-", ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for option in (*_OPTIONS, f"--user-data-dir={folder}", f"--window-size={DESK[0]},{DESK[1]}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        window = webdriver.Chrome(options=options, service=Service(driver))
        try:
            browser = Browser(window, base)
            browser.resize(DESK)
            yield browser
        finally:
            window.quit()
