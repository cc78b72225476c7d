"""What a page asks that follows a run: one cheap statement while nothing happens, and whatever happens is noticed."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mailbox_app import channel
from mailbox_app.admin import live
from mailbox_app.devtools.processes import wait_until
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import cancel, checkpoint, claim, post, settle, submit
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.admin.pages import operator, shown, text
from tests.operations import scene

pytestmark = pytest.mark.django_db(transaction=True)

# Session, user, two of permissions, and the mark; the first page of a session adds none.
MOST_QUERIES = 5


@pytest.fixture(autouse=True)
def _only_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown anew because of its age alone."""
    monkeypatch.setattr(live, "_STALE_SECONDS", 10**12)
    channel.forget_failures()


@pytest.fixture
def client() -> Client:
    return operator("view_run")


def url(run_id: Any) -> str:
    return reverse("admin:mailbox_run_live", args=[run_id])


def asked(client: Client, run_id: Any, mark: str = "") -> dict[str, Any] | None:
    """What is new, or None."""
    answer = client.get(url(run_id), {"mark": mark})
    if answer.status_code == 204:
        assert answer.content == b""
        return None
    assert answer.status_code == 200
    assert "no-cache" in answer.headers["Cache-Control"]
    found: dict[str, Any] = answer.json()
    return found


def known(client: Client, run_id: Any) -> str:
    """The mark of now, of which nothing is new."""
    found = asked(client, run_id)
    assert found is not None
    assert asked(client, run_id, found["mark"]) is None
    return str(found["mark"])


def happenings(taken: Claim) -> Iterator[str]:
    """What can happen to a run and its thread; each happens before it is named."""
    checkpoint.record(taken, scene.entry("look-up"), {"found": 1})
    yield "a step is recorded, which no event tells"
    scene.emit(taken, "Ticked", {}, visibility="internal")
    yield "an internal event"
    checkpoint.usage(taken, scene.entry("u", verb="usage"), input_tokens=1, output_tokens=1, steps=1)
    yield "usage"
    post.to_thread(scope=scene.SCOPE, thread_id=taken.thread_id, messages=["and this"])
    yield "a message that waits"
    claim.renew(tokens=[taken.token])
    yield "its lease is renewed"
    cancel.run(run_id=taken.run_id, scope=scene.SCOPE)
    yield "it is asked to stop"
    settle.stopped(taken)
    yield "it stops"


def test_whatever_happens_is_new_once(client: Client) -> None:
    taken = scene.posted_and_taken()
    mark = known(client, taken.run_id)
    for what in happenings(taken):
        found = asked(client, taken.run_id, mark)
        assert found is not None, f"not noticed: {what}"
        assert not mark.startswith(f"{found['rows']} "), what
        mark = found["mark"]
        assert asked(client, taken.run_id, mark) is None, f"noticed twice: {what}"


def test_what_happens_elsewhere_is_not_new(client: Client) -> None:
    taken = scene.posted_and_taken()
    mark = known(client, taken.run_id)
    scene.posted_and_taken()
    assert asked(client, taken.run_id, mark) is None


def test_what_grows_old_is_shown_anew(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = scene.posted_and_taken()
    mark = known(client, taken.run_id)
    monkeypatch.setattr(live, "_STALE_SECONDS", 1e-6)
    assert asked(client, taken.run_id, mark) is not None


def test_live_text_is_new_without_the_page_being_so_and_ends_with_its_message(client: Client) -> None:
    taken = scene.posted_and_taken()
    mark = known(client, taken.run_id)
    speaking = LiveText(taken)
    speaking.delta("<b>I think")
    wait_until(lambda: asked(client, taken.run_id, mark), 20)
    found = asked(client, taken.run_id, mark)
    assert found is not None
    assert found["text"] == "<b>I think"
    assert mark.startswith(f"{found['rows']} "), "no page is rendered for it"
    speaking.delta("x" * live.MOST_CHARACTERS)
    wait_until(lambda: (asked(client, taken.run_id) or {})["text"] == "x" * live.MOST_CHARACTERS, 20)
    checkpoint.say(taken, scene.entry("say", verb="say"), "I think")
    speaking.close()
    wait_until(lambda: (asked(client, taken.run_id) or {})["text"] == "", 20)
    assert asked(client, taken.run_id) == {**(asked(client, taken.run_id) or {}), "text": ""}


def test_the_text_of_another_turn_is_new_however_much_the_turn_before_has_said(client: Client) -> None:
    first = scene.posted_and_taken()
    LiveText(first).delta("one")
    wait_until(lambda: (asked(client, first.run_id) or {})["text"] == "one", 20)
    submit.messages(scope=scene.SCOPE, thread_id=first.thread_id, messages=["and"], boundary="on_natural_end")
    second = settle.complete(first)
    assert second is not None
    mark = known(client, first.run_id)
    LiveText(second).delta("two")
    wait_until(lambda: asked(client, first.run_id, mark), 20)
    found = asked(client, first.run_id, mark)
    assert found is not None
    assert found["text"] == "two"


def test_without_redis_there_is_no_text_and_everything_else(client: Client, settings: Any) -> None:
    taken = scene.posted_and_taken()
    LiveText(taken).delta("I think")
    wait_until(lambda: (asked(client, taken.run_id) or {})["text"] == "I think", 20)
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": ""}
    mark = known(client, taken.run_id)
    for what in happenings(taken):
        found = asked(client, taken.run_id, mark)
        assert found is not None, what
        assert found["text"] == ""
        mark = found["mark"]


def test_it_costs_the_same_however_much_there_is_and_one_statement_of_ours(client: Client) -> None:
    counts = []
    for rows in (1, 30):
        run = given.run(status="running")
        for n in range(1, rows + 1):
            given.dispatch(run=run, status="acked")
            given.journal_entry(run=run, n=n)
            given.event(thread=run.thread, run_id=run.pk, cursor=n)
        with CaptureQueriesContext(connection) as queries:
            asked(client, run.pk)
        # A statement of ours has no text here (see `models.ask`).
        theirs = [one for one in queries if one["sql"] and ("auth_" in one["sql"] or "django_" in one["sql"])]
        assert len(queries) - len(theirs) == 1
        counts.append(len(queries))
    assert counts[0] == counts[1] <= MOST_QUERIES


def test_only_who_may_view_runs_is_answered(client: Client) -> None:
    run = scene.run(scene.post())
    for other in (Client(), signed_in("stranger", is_staff=False)):
        answer = other.get(url(run.pk))
        assert answer.status_code == 302
        assert "/login/" in answer.headers["Location"]
    staff = signed_in("clerk", is_staff=True)
    assert staff.get(url(run.pk)).status_code == 403
    assert client.get(url(uuid.uuid4())).status_code == 404


def signed_in(name: str, **given: Any) -> Client:
    client = Client()
    client.force_login(User.objects.create_user(name, **given))
    return client


def is_followed(page: str) -> bool:
    assert ('id="live"' in page) == ("live.js" in page) == ("live.css" in page)
    return 'id="live"' in page


def test_a_page_follows_its_run_until_that_is_done_and_has_no_script_of_its_own(admin_client: Client) -> None:
    receipt = scene.post()
    thread, run, dispatch = Thread.objects.get(), Run.objects.get(), Dispatch.objects.get()
    for row in (thread, run, dispatch):
        page = text(admin_client, shown(row))
        assert is_followed(page)
        assert f'data-url="{url(receipt.run_id)}"' in page
        assert "<script>" not in page
        assert " onclick=" not in page
    settle.complete(scene.taken(), output="done")
    for row in (thread, run, dispatch):
        assert not is_followed(text(admin_client, shown(row)))


def test_the_buttons_stand_in_what_is_replaced_whatever_django_s_page_looks_like(admin_client: Client) -> None:
    script = Path(str(finders.find("mailbox/admin/live.js"))).read_text()
    [place] = set(re.findall(r'getElementById\("(content[\w-]*)"\)', script))
    scene.post()
    page = text(admin_client, shown(Run.objects.get()))
    assert page.index(f'id="{place}"') < page.index('id="acts"') < page.index('id="live"')


def test_a_thread_is_followed_while_one_of_its_runs_is_open_or_queued(admin_client: Client) -> None:
    first = scene.post()
    second = submit.run(scope=scene.SCOPE, agent="echo", messages=["too"], thread_id=first.thread_id)
    taken = scene.taken()
    page = shown(scene.thread(first))
    assert url(first.run_id) in text(admin_client, page)
    settle.complete(taken, output="done")
    assert url(second.run_id) in text(admin_client, page)
    settle.complete(scene.taken(), output="done")
    assert not is_followed(text(admin_client, page))


def test_a_page_is_not_followed_by_who_may_not_view_runs() -> None:
    scene.post()
    client = operator("view_thread", "view_dispatch")
    for row in (Thread.objects.get(), Dispatch.objects.get()):
        assert not is_followed(text(client, shown(row)))


def test_internal_events_are_shown_and_marked(admin_client: Client) -> None:
    taken = scene.posted_and_taken()
    scene.emit(taken, "Debugged", {}, visibility="internal")
    page = text(admin_client, shown(scene.run(taken)))
    assert "<td>Debugged (internal)</td>" in page
    assert "<td>RunStarted</td>" in page
