"""A browser's own EventSource, by the recipe of docs/streaming.md: what it hears is what the table has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from mailbox_app.operations import settle
from tests.operations import scene
from tests.races.actors import until
from tests.streams import table
from tests.streams.conftest import going
from tests.streams.proxies import nginx
from tests.streams.recipes import recipe
from tests.streams.web import Web, web_process
from tests.walkthrough.browser import Browser, chromium

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

KINDS = ["RunQueued", "RunStarted", "MessageCommitted", "RunFinished", "Told", "delta"]
# What it hears, its sources (one that the browser reconnects stays the same), what its own looks were answered, and how
# long it waited to open another source.
_SCRIPT = """
Object.assign(window, { heard: [], sources: [], answers: [], waits: [], ask: fetch, wait: setTimeout });
window.EventSource = class extends EventSource {
  constructor(url) { super(url); sources.push(this); }
};
window.fetch = async (...given) => {
  const answer = await ask(...given);
  answers.push(answer.status);
  return answer;
};
window.setTimeout = (what, ms) => { waits.push(ms); return wait(what, ms); };
"""
_FOLLOW = "follow(arguments[0], arguments[1], (type, data, id) => window.heard.push([type, data.cursor ?? null, id]));"


@pytest.fixture
def web(transactional_db: None, tmp_path: Path) -> Iterator[Web]:
    """A web process that takes who is logged in for a caller."""
    with web_process(tmp_path, settings='{"scope_for_user": "tests.api.test_dead_letters.scope_of_user"}') as web:
        yield web


class Page:
    """A page of a site, with nothing on it, that follows a run."""

    def __init__(self, browser: Browser, site: str, session: str) -> None:
        self._driver, self._site = browser.driver, site
        browser.go(f"{site}/counted")
        self._driver.add_cookie({"name": "sessionid", "value": session})

    def follow(self, run_id: Any, *, last: int = 0) -> None:
        self._driver.get(f"{self._site}/counted")
        follow = recipe("js").replace("let last = 0", f"let last = {last}")
        self._driver.execute_script(f"{_SCRIPT}\n{follow}\n{_FOLLOW}", f"/v1/runs/{run_id}/events/stream", KINDS)

    def of(self, name: str) -> Any:
        """What it keeps by this name."""
        return self._driver.execute_script(f"return {name}")

    def heard(self) -> list[tuple[str, int | None, str]]:
        """Type, cursor in the data and last id of each event so far."""
        return [tuple(one) for one in self.of("heard")]

    def cursors(self) -> list[int]:
        """Those of the durable events, which are their ids as well."""
        durable = [(cursor, last) for _, cursor, last in self.heard() if cursor is not None]
        assert [last for _, last in durable] == [str(cursor) for cursor, _ in durable]
        return [cursor for cursor, _ in durable]

    def sources(self) -> int:
        """How many EventSources there have been."""
        return int(self.of("sources.length"))

    def is_closed(self) -> bool:
        return bool(self.of("sources.at(-1).readyState === EventSource.CLOSED"))

    def until_more(self, count: int = 20) -> None:
        """Wait until it has heard so many more events."""
        wanted = len(self.cursors()) + count
        until(lambda: len(self.cursors()) >= wanted, f"{count} more events are heard", seconds=30)

    def until_end(self) -> None:
        until(lambda: self.heard() and self.heard()[-1][0] == "end", "the end is heard", seconds=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("") as browser:
        yield browser


@pytest.fixture
def session(transactional_db: None) -> str:
    visitor = Client()
    visitor.force_login(User.objects.create_user("ann"))
    return visitor.cookies["sessionid"].value


def test_it_comes_back_by_itself_with_the_last_id_when_the_server_was_killed(
    browser: Browser, web: Web, session: str
) -> None:
    taken, page = scene.posted_and_taken(), Page(browser, web.url, session)
    page.follow(taken.run_id)
    with going(taken):
        page.until_more()
        web.kill()
        web.start()
        page.until_more()
        web.replace()
        page.until_more()
    settle.complete(taken, output="done")
    page.until_end()
    assert page.cursors() == table.of_run(taken.run_id)
    assert page.sources() == 1, "the browser's own doing"
    assert page.is_closed()


def test_one_that_was_told_that_the_server_is_away_is_opened_again_and_misses_nothing(
    browser: Browser, web: Web, session: str, tmp_path: Path
) -> None:
    taken = scene.posted_and_taken()
    with nginx(tmp_path / "nginx", web.url) as proxy:
        page = Page(browser, proxy.url, session)
        page.follow(taken.run_id)
        with going(taken):
            page.until_more()
            web.kill()
            until(lambda: page.of("answers"), "the browser gave up, and it asked why", seconds=30)
            web.start()
            page.until_more()
        settle.complete(taken, output="done")
        page.until_end()
    assert page.cursors() == table.of_run(taken.run_id)
    assert set(page.of("answers")) <= {502, 200}
    assert set(page.of("waits")) == {2000}
    assert page.sources() >= 2


def test_a_run_that_was_all_sent_is_not_asked_for_again_and_again(browser: Browser, web: Web, session: str) -> None:
    taken, page = scene.posted_and_taken(), Page(browser, web.url, session)
    settle.complete(taken, output="done")
    page.follow(taken.run_id)
    page.until_end()
    page.follow(taken.run_id, last=page.cursors()[-1])
    until(lambda: page.of("answers"), "it asks why", seconds=30)
    browser.driver.execute_async_script("ask('/counted').then(() => arguments[0]())")
    assert (page.of("answers"), page.of("waits")) == ([204], [])
    assert page.is_closed()
    assert page.heard() == []
    assert page.sources() == 1
