"""The chat page in a real Chromium, on a real stack: web, worker, database and broker are processes of their own."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.walkthrough.browser import DESK, PATIENCE_SECONDS, PHONE, Browser, chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Slow enough to do something in mid-answer.
WORD_SECONDS = "0.12"
MINE, ITS, LIVE, CHILD = "li.user p", "li.assistant p", ".live:not(.child) p", ".child p"
QUEUE = ".queue .row p"
ABOUT = "Tell me about A-10420"
BEGINNING, ENDING = "Order A-10420 is 1 wool rug for 189.00 EUR.", "and more when it is approved."


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    with StackProcess("--without", "flower", environment={"MAILBOX_SUPPORT_WORD_SECONDS": WORD_SECONDS}) as stack:
        yield stack


@pytest.fixture(scope="module")
def signed_in(stack: StackProcess) -> Iterator[Browser]:
    """The demo user's browser, at the page that `mailbox_dev` prints."""
    facts = stack.facts
    with chromium(facts["urls"]["web"]) as browser:
        browser.go(facts["urls"]["chat"].removeprefix(browser.base))
        assert browser.path.startswith("/admin/login/"), "strangers may not chat"
        browser.type("[name=username]", facts["demo"]["user"])
        browser.type("[name=password]", facts["demo"]["password"], end=Keys.ENTER)
        browser.see(lambda: browser.path == "/chat/")
        yield browser


@pytest.fixture
def page(signed_in: Browser) -> Iterator[Browser]:
    """A new conversation; the browser's console has nothing to say about it."""
    signed_in.go("/chat/")
    # Before its scripts have run there is nothing to type into yet.
    signed_in.see(lambda: signed_in.all(".hello button"))
    signed_in.complaints()
    yield signed_in
    assert signed_in.complaints() == []


def say(page: Browser, text: str, *, key: str = Keys.ENTER) -> None:
    page.type("#text", text, end=key)
    page.see(lambda: page.driver.find_element(By.ID, "text").get_attribute("value") == "", f"{text!r} was not sent")


def steer(page: Browser, text: str) -> None:
    say(page, text, key=Keys.CONTROL + Keys.ENTER)


def log(page: Browser) -> list[str]:
    return page.texts(".log ol[role=log] p")


def messages(stack: StackProcess, page: Browser) -> list[str]:
    """What the database has of the conversation."""
    thread_id = uuid.UUID(page.path.removeprefix("/chat/").strip("/"))
    items = stack.request("GET", f"/v1/threads/{thread_id}/messages").json["items"]
    return [message["content"] for message in items]


def test_what_is_said_is_answered_live_and_stays(stack: StackProcess, page: Browser) -> None:
    say(page, f"{ABOUT}, <b>please</b>")
    begun = page.see(lambda: page.text(LIVE), "no live text")
    grown = page.see(lambda: (text := page.text(LIVE)) != begun and text, "the live text does not grow")
    assert grown.startswith(begun)
    assert page.texts(ITS) == [], "it is no message yet"
    answer = page.see(lambda: page.texts(ITS))[0]
    assert answer.startswith(BEGINNING)
    assert answer.endswith(ENDING)
    assert answer.startswith(grown)
    page.see(lambda: not page.text(LIVE), "the live text stays beside the message")
    assert page.texts(".log b") == [], "what is said is text, not markup"
    assert messages(stack, page) == log(page) == [f"{ABOUT}, <b>please</b>", answer]
    page.reload()
    page.see(lambda: log(page) == [f"{ABOUT}, <b>please</b>", answer], "it is not there after a reload")


def test_what_waits_for_its_turn_can_be_edited_ordered_and_withdrawn(stack: StackProcess, page: Browser) -> None:
    say(page, "Refund A-10420")
    page.see(lambda: page.all(".question"), "it does not ask")
    for text in ("A-10421 in short", "Hello <i>you</i>", "Refund A-10425"):
        say(page, text)
    page.see(lambda: page.texts(QUEUE) == ["A-10421 in short", "Hello <i>you</i>", "Refund A-10425"])

    page.press(".queue li:nth-of-type(2) [name=edit]")
    page.type(".queue li:nth-of-type(2) textarea", "A-10423 in short", end=Keys.ENTER)
    page.see(lambda: page.texts(QUEUE)[1:2] == ["A-10423 in short"], "it was not edited")
    page.press(".queue li:nth-of-type(3) [name=withdraw]")
    page.see(lambda: page.texts(QUEUE) == ["A-10421 in short", "A-10423 in short"], "it was not withdrawn")
    page.press(".queue li:nth-of-type(2) [name=up]")
    page.see(lambda: page.texts(QUEUE) == ["A-10423 in short", "A-10421 in short"], "it was not moved")

    page.press("[name=refuse]")
    page.see(lambda: len(page.texts(ITS)) == 4, "the queue was not answered")
    assert log(page) == messages(stack, page)
    assert page.texts(MINE) == ["Refund A-10420", "A-10423 in short", "A-10421 in short"]
    assert page.texts(ITS)[1:] == [
        "I am sorry: the refund of order A-10420 was not approved.",
        "Order A-10423 is 2 cushions for 49.00 EUR.",
        "Order A-10421 is 1 desk lamp for 39.90 EUR.",
    ]
    assert page.texts(QUEUE) == []


def test_an_edit_that_comes_too_late_is_told(stack: StackProcess, page: Browser) -> None:
    say(page, "Refund A-10420")
    page.see(lambda: page.all(".question"))
    say(page, "A-10421 in short")
    page.press(".queue [name=edit]")
    # Somebody else is quicker, and this page does not hear of it before it has sent its own.
    thread_id = page.path.removeprefix("/chat/").strip("/")
    pending = stack.request("GET", f"/v1/threads/{thread_id}/pending").json["items"][0]
    page.driver.execute_script(
        "window.stop(); window.fetchBefore = window.fetch; window.fetch = () => new Promise(() => {})"
    )
    edited = stack.request(
        "PATCH", f"/v1/threads/{thread_id}/pending/{pending['id']}", body={"content": "A-10423 in short"}
    )
    assert edited.status == 200
    page.driver.execute_script("window.fetch = window.fetchBefore")
    page.type(".queue textarea", "A-10424 in short", end=Keys.ENTER)
    page.see(lambda: "changed meanwhile" in page.text("[role=alert]"), "nobody is told")
    page.complaints()
    assert messages(stack, page)[1:] == [messages(stack, page)[1]]


def test_steering_is_read_in_mid_answer(stack: StackProcess, page: Browser) -> None:
    say(page, ABOUT)
    page.see(lambda: page.text(LIVE), "no live text")
    page.driver.execute_script(
        """const [live, its] = arguments;
        window.seen = [];
        setInterval(() => window.seen.push([
            document.querySelector(live).textContent,
            [...document.querySelectorAll(its)].map((one) => one.textContent),
        ]), 20)""",
        LIVE,
        ITS,
    )
    steer(page, "Rather refund 20 of it")
    page.see(lambda: len(page.texts(ITS)) == 2, "it was not answered")
    seen = page.driver.execute_script("return window.seen")
    assert [live for live, _ in seen if live.startswith("Done:")], "the next answer was not seen live"
    assert not [live for live, its in seen if its and live.startswith(its[0])], "what is a message is live beside it"
    broken_off, paid = page.texts(ITS)
    assert broken_off.startswith(BEGINNING)
    assert broken_off.endswith("— You say “Rather refund 20 of it”: I come to that now.")
    assert ENDING not in broken_off
    assert paid == "Done: 20.00 EUR of order A-10420 go back to the customer."
    assert page.texts(MINE) == [ABOUT, "Rather refund 20 of it"]
    assert "RefundPaid" in page.texts(".events b")
    assert messages(stack, page) == log(page)


def test_stop_stops_the_answer_and_holds_what_waits(page: Browser) -> None:
    say(page, ABOUT)
    page.see(lambda: page.text(LIVE), "no live text")
    say(page, "A-10424 in short")
    page.see(lambda: page.texts(QUEUE))
    page.press(".stop")
    page.see(lambda: page.texts("li.system p") == ["Stopped."], "it did not stop")
    page.see(lambda: page.texts(".queue .tag") == ["held"], "what waits is not held")
    page.see(lambda: not page.all(".stop"), "there is something left to stop")
    assert page.texts(ITS) == []
    page.press(".queue h2 button")
    page.see(lambda: page.texts(ITS) == ["Order A-10424 is 1 cushion for 24.50 EUR."], "it was not released")


def test_instead_stops_the_answer_and_reads_this(page: Browser) -> None:
    say(page, ABOUT)
    page.see(lambda: page.text(LIVE), "no live text")
    page.type("#text", "A-10424 in short")
    page.press("[name=instead]")
    page.see(lambda: page.texts(ITS) == ["Order A-10424 is 1 cushion for 24.50 EUR."], "it was not read instead")
    assert page.texts("li.system p") == ["Stopped."]


def test_a_refund_is_approved_and_a_child_writes_the_letter(stack: StackProcess, page: Browser) -> None:
    say(page, "Refund A-10420")
    page.see(lambda: page.text(".question h2") == "Refund 189.00 EUR of order A-10420 (Wool rug)?", "it does not ask")
    assert page.text(".now").startswith("Waits for your decision")
    page.reload()
    page.type(".question [name=amount]", "120.50")
    page.type(".question [name=note]", "Keep the rug.")
    page.press("[name=approve]")
    page.see(lambda: page.text(CHILD).startswith("Dear customer,"), "the child is not seen at work")
    assert page.text(".now").startswith("Waits for a child run: the letter is being written")
    page.see(lambda: len(page.texts(ITS)) == 3, "the letter did not come")
    assert not page.all(".question")
    _, paid, letter = page.texts(ITS)
    assert paid == "Done: 120.50 EUR of order A-10420 go back to the customer."
    assert letter.startswith("This is the letter for the customer:\n\nDear customer,\n\n")
    assert "120.50 EUR back to you, the same way as you paid. Keep the rug.\n" in letter
    assert page.text(CHILD) == ""
    assert messages(stack, page) == log(page)


def test_a_reload_in_mid_answer_shows_what_was_said_so_far(stack: StackProcess, page: Browser) -> None:
    say(page, ABOUT)
    page.see(lambda: page.text(LIVE).startswith(BEGINNING), "no live text")
    page.reload()
    text = page.see(lambda: page.text(LIVE), "the live text is gone")
    assert text.startswith(BEGINNING)
    say(page, "A-10424 in short")
    page.reload()
    page.see(lambda: page.texts(QUEUE) == ["A-10424 in short"], "the queue is gone")
    page.see(lambda: len(page.texts(ITS)) == 2)
    answer, _ = page.texts(ITS)
    assert answer.startswith(text)
    assert answer.endswith(ENDING)
    assert messages(stack, page) == log(page)


def test_without_a_stream_it_looks_for_itself(page: Browser) -> None:
    page.block("*/events/stream*")
    try:
        say(page, "A-10424 in short")
        page.see(lambda: page.texts(ITS) == ["Order A-10424 is 1 cushion for 24.50 EUR."], "it was not looked for")
        assert page.text(".link").startswith("no stream")
    finally:
        page.block()
    page.see(lambda: page.text(".link") == "live", "it does not try again")
    assert all("ERR_BLOCKED_BY_CLIENT" in line for line in page.complaints())


def test_a_web_process_that_dies_is_got_over(stack: StackProcess, page: Browser) -> None:
    say(page, ABOUT)
    page.see(lambda: page.text(LIVE), "no live text")
    stack.kill("web")
    say(page, "A-10424 in short")
    answers = page.see(lambda: len(texts := page.texts(ITS)) == 2 and texts, "it was not answered")
    assert answers[0].endswith(ENDING)
    page.see(lambda: page.text(".link") == "live", "it has not found back to the stream")
    page.see(lambda: not page.text("[role=alert]"), "it complains on")
    assert page.texts(MINE) == [ABOUT, "A-10424 in short"], "it was said once"
    assert wait_until(lambda: messages(stack, page) == log(page), PATIENCE_SECONDS)
    page.complaints()


def test_nothing_sticks_out(page: Browser) -> None:
    try:
        page.resize(PHONE)
        say(page, "Refund A-10420")
        page.see(lambda: page.all(".question"))
        say(page, "x" * 200)
        page.see(lambda: page.texts(QUEUE))
        for size in (PHONE, DESK):
            page.resize(size)
            width: Any = page.driver.execute_script("return document.documentElement.scrollWidth")
            assert width == size[0]
            beyond = page.driver.execute_script(
                """return [...document.querySelectorAll("button, input, textarea, p, h2")]
                    .filter((one) => one.checkVisibility() && !one.closest(".hidden"))
                    .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
                    .filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([one]) => one)"""
            )
            assert beyond == []
    finally:
        page.resize(DESK)


def test_a_keyboard_is_enough(page: Browser) -> None:
    def focused() -> str:
        script = "return document.activeElement.name || document.activeElement.className || document.activeElement.id"
        return str(page.driver.execute_script(script))

    def press(key: str, times: int = 1) -> None:
        for _ in range(times):
            page.driver.switch_to.active_element.send_keys(key)

    say(page, "Refund A-10420")
    page.see(lambda: page.all(".question"))
    say(page, "A-10424 in short")
    page.see(lambda: page.texts(QUEUE))
    assert focused() == "text", "who has sent may go on writing"
    press(Keys.SHIFT + Keys.TAB)
    assert focused() == "withdraw"
    press(Keys.ENTER)
    page.see(lambda: not page.texts(QUEUE), "it was not withdrawn")
    page.driver.find_element(By.NAME, "note").send_keys(Keys.TAB)
    assert focused() == "primary" or focused() == "approve"
    press(Keys.TAB)
    assert focused() == "refuse"
    press(Keys.ENTER)
    page.see(lambda: len(page.texts(ITS)) == 2, "it was not refused")


def test_a_conversation_that_is_none_is_told(page: Browser) -> None:
    page.go(f"/chat/{uuid.uuid4()}/")
    page.see(lambda: "not found" in page.text("[role=alert]"), "nobody is told")
    assert page.text(".link") == "not found"
    assert any("404" in line for line in page.complaints())


def test_who_signs_out_may_not_chat(page: Browser) -> None:
    page.press("nav form button")
    page.see(lambda: "/admin/logout" in page.path)
    page.go("/chat/")
    assert page.path.startswith("/admin/login/")
    page.complaints()
