"""The admin's page of a run in a real Chromium, and `mailbox_tail` beside it, while a real worker executes the run."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from mailbox_app.devtools.probes import ROOT, StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.walkthrough.browser import Browser, chromium

pytestmark = [pytest.mark.slow, pytest.mark.both, pytest.mark.timeout(300)]

# Slow enough to see it grow.
WORD_SECONDS = "0.4"
LIVE, LINE = "#live pre", "#live p"
EVENTS = "#timeline tbody td:nth-child(4)"
STATUS = ".fieldBox.field-status .readonly"
FOLLOWING = "Following this run: the page shows what happens."
# Keeps every text that is shown live.
RECORD = """
    window.texts = []
    const live = document.querySelector("#live pre")
    new MutationObserver(() => window.texts.push(live.textContent)).observe(live, { childList: true })
"""
# Where the screenshots go that are looked at by people.
SHOTS = os.environ.get("MAILBOX_SHOTS")


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    with StackProcess("--without", "flower", environment={"MAILBOX_SUPPORT_WORD_SECONDS": WORD_SECONDS}) as stack:
        yield stack


@pytest.fixture(scope="module")
def signed_in(stack: StackProcess) -> Iterator[Browser]:
    facts = stack.facts
    with chromium(facts["urls"]["web"]) as browser:
        browser.go("/admin/login/?next=/admin/")
        browser.type("[name=username]", facts["demo"]["user"])
        browser.type("[name=password]", facts["demo"]["password"], end=Keys.ENTER)
        browser.see(lambda: browser.path == "/admin/")
        browser.complaints()  # a site without an icon
        yield browser


@pytest.fixture
def tailing(stack: StackProcess) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts `mailbox_tail` on the stack's database; it has ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(run_id: str) -> "subprocess.Popen[str]":
        one = subprocess.Popen(
            [sys.executable, "-m", "django", "mailbox_tail", run_id],
            cwd=ROOT,
            env={**os.environ, **stack.environment, "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()


def submitted(stack: StackProcess, text: str, **more: Any) -> dict[str, Any]:
    body = {"agent": "support", "messages": [{"role": "user", "content": text}], **more}
    answer = stack.request("POST", "/v1/runs", body=body)
    assert answer.status == 202, answer.text
    return dict(answer.json)


def opened(page: Browser, run_id: str) -> None:
    """Open the run's page, with something in it that a reload would lose."""
    page.go(f"/admin/mailbox/run/{run_id}/change/")
    page.driver.execute_script("window.isTheSamePage = true")


def is_the_same(page: Browser) -> bool:
    return bool(page.driver.execute_script("return window.isTheSamePage === true"))


def shot(page: Browser, name: str) -> None:
    if SHOTS:
        page.shot(Path(SHOTS) / f"{name}.png")


def stored(stack: StackProcess, run_id: str) -> list[str]:
    items = stack.request("GET", f"/v1/runs/{run_id}/events").json["items"]
    return [item["kind"] for item in items]


def test_the_page_and_the_terminal_show_a_run_as_it_goes_on(
    stack: StackProcess, signed_in: Browser, tailing: Callable[[str], subprocess.Popen[str]]
) -> None:
    page = signed_in
    before = submitted(stack, "Refund A-10420")  # it asks, and waits
    run = submitted(stack, "Refund A-10420", thread_id=before["thread_id"])
    tail = tailing(run["run_id"])
    opened(page, run["run_id"])
    page.see(lambda: page.text(LINE) == FOLLOWING)
    page.driver.execute_script("document.querySelector('details').open = true")
    assert (page.text(STATUS), page.texts(EVENTS)) == ("Created", ["RunQueued"])
    page.driver.execute_script(RECORD)
    # What it stands behind goes away.
    assert stack.request("POST", f"/v1/runs/{before['run_id']}/cancel").status in (200, 202)
    page.see(lambda: page.text(STATUS) == "Running", "it is not seen to run")
    page.see(lambda: "are above" in page.text(LIVE), "no live text")
    shot(page, "running")
    page.see(lambda: page.text(STATUS) == "Waiting", "it is not seen to wait")
    texts = [text for text in page.driver.execute_script("return window.texts") if text]
    assert len(texts) > 2, "it does not grow"
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts)), texts
    page.see(lambda: "ToolPermissionRequested" in page.texts(EVENTS))
    assert page.texts("#tickets tbody td:nth-child(2)") == ["approve-refund"]
    page.see(lambda: not page.text(LIVE), "what is a message now is live beside it")
    assert page.all("#acts input[value='Cancel…']")
    ticket = stack.request("GET", "/v1/waits").json["items"][0]["tickets"][0]["ticket_id"]
    answer = {"ticket_id": ticket, "action": "resume", "payload": {"approved": False}}
    assert stack.request("POST", f"/v1/runs/{run['run_id']}/decision", body=answer).status in (200, 202)
    page.see(lambda: page.text(LIVE).startswith("I am sorry"), "no live text after the answer")
    page.see(lambda: page.text(STATUS) == "Done", "it is not seen to be done")
    page.see(lambda: not page.all("#live"), "it is followed after its end")
    assert page.texts(EVENTS) == stored(stack, run["run_id"])
    assert not page.all("#acts"), "nothing is left to be done about it"
    assert "Ended" in page.text(".field-stands")
    assert is_the_same(page)
    assert page.driver.execute_script("return document.querySelector('details').open"), "what was opened is open"
    assert page.complaints() == []
    out, notes = tail.communicate(timeout=60)
    assert tail.returncode == 0, notes
    lines = out.splitlines()
    assert [line.split()[2] for line in lines if line[:2].isdigit()] == stored(stack, run["run_id"])
    said = " ".join(line.removeprefix("  | ") for line in lines if line.startswith("  | "))
    assert said.startswith("189.00 EUR for order A-10420 are above")
    assert "I am sorry" in said


def is_served(stack: StackProcess) -> bool:
    with contextlib.suppress(OSError):
        return stack.request("GET", "/health/live").status == 200
    return False


def test_a_server_that_is_away_and_a_session_that_is_over_are_told(stack: StackProcess, signed_in: Browser) -> None:
    page = signed_in
    run = submitted(stack, "Refund A-10420")
    opened(page, run["run_id"])
    page.see(lambda: page.text(STATUS) == "Waiting")
    stack.kill("web")
    page.see(lambda: page.text(LINE).startswith("The server does not answer"), "nobody is told")
    shot(page, "away")
    wait_until(lambda: is_served(stack), 60)
    page.see(lambda: page.text(LINE) == FOLLOWING, "it does not try again")
    assert stack.request("POST", f"/v1/runs/{run['run_id']}/cancel").status == 200
    page.see(lambda: page.text(STATUS) == "Done")
    run = submitted(stack, "Refund A-10420")
    opened(page, run["run_id"])
    page.see(lambda: page.text(LINE) == FOLLOWING)
    page.driver.delete_all_cookies()
    page.see(lambda: "sign in again" in page.text(LINE), "nobody is told")
    assert is_the_same(page)
    page.complaints()
