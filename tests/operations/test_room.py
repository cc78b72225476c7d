"""A bounded mailbox: as many queued runs as are allowed, and not one more."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailbox_app.errors import MailboxFull, Retryable
from mailbox_app.models import Run
from mailbox_app.operations import cancel, settle, submit
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _bounded(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_queued_per_thread": 2}


def full() -> Any:
    first = scene.post()
    scene.post(thread_id=first.thread_id)
    return first


def test_one_more_than_is_allowed_is_refused_and_changes_nothing() -> None:
    first = full()
    with scene.nothing_changes():
        with pytest.raises(MailboxFull) as refused:
            scene.post(thread_id=first.thread_id)
        with pytest.raises(MailboxFull):
            submit.messages(scope=scene.SCOPE, thread_id=first.thread_id, messages=["more"], boundary="on_natural_end")
    assert refused.value.facts == {"thread_id": first.thread_id, "max_queued": 2}
    assert isinstance(refused.value, Retryable), "the same call may succeed later"
    scene.post()  # another thread has room


def test_a_run_that_starts_or_is_cancelled_makes_room() -> None:
    first = full()
    claim = scene.taken()
    third = scene.post(thread_id=first.thread_id)
    with pytest.raises(MailboxFull):
        scene.post(thread_id=first.thread_id)
    settle.nack(claim, code="transient", message="again")
    with pytest.raises(MailboxFull):
        scene.post(thread_id=first.thread_id)
    cancel.run(scope=scene.SCOPE, run_id=third.run_id)
    scene.post(thread_id=first.thread_id)


def test_the_open_run_s_next_attempt_takes_no_room() -> None:
    claim = scene.posted_and_taken()
    settle.nack(claim, code="transient", message="again")
    scene.post(thread_id=claim.thread_id)
    scene.post(thread_id=claim.thread_id)
    with pytest.raises(MailboxFull):
        scene.post(thread_id=claim.thread_id)


def test_a_scheduled_run_takes_room() -> None:
    first = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    scene.post(thread_id=first.thread_id)
    with scene.nothing_changes(), pytest.raises(MailboxFull):
        scene.post(thread_id=first.thread_id)


def test_what_is_said_to_an_open_run_takes_no_room() -> None:
    claim = scene.posted_and_taken()
    scene.post(thread_id=claim.thread_id)
    scene.post(thread_id=claim.thread_id)
    posted = submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["more"], boundary="next_step")
    assert posted.run_id == claim.run_id


@pytest.mark.parametrize("new", [True, False])
def test_a_batch_that_does_not_fit_is_refused_whole(new: bool) -> None:
    thread = {"thread_key": "new"} if new else {"thread_id": scene.post().thread_id}
    one = {"messages": ["hello"], "agent": "echo"}
    room = 2 if new else 1
    with scene.nothing_changes(), pytest.raises(MailboxFull):
        submit.many(scope=scene.SCOPE, submissions=[one, *[{**one, **thread}] * (room + 1)])
    assert len(submit.many(scope=scene.SCOPE, submissions=[one, *[{**one, **thread}] * room])) == room + 1


def test_without_a_bound_nothing_is_counted(settings: Any) -> None:
    first = make.run(scope=scene.SCOPE)

    def statements() -> int:
        with CaptureQueriesContext(connection) as sent:
            scene.post(thread_id=first.thread_id)
        return len(sent)

    bounded = statements()
    cancel.run(scope=scene.SCOPE, run_id=first.pk)
    settings.MAILBOX = {**settings.MAILBOX, "max_queued_per_thread": 0}
    assert statements() == bounded - 1


def test_over_http_it_is_429_with_a_time_to_come_back_and_the_key_stays_unused() -> None:
    api = make.api()
    body = {"agent": "echo", "thread_key": "k", "messages": [{"content": "hello"}]}
    assert [api.post("/runs", body).status_code for _ in range(2)] == [202, 202]
    before = make.row_counts()
    refused = api.post("/runs", body, idempotency_key="mine")
    assert (refused.status_code, make.problem_of(refused)["code"]) == (429, "mailbox_full")
    assert refused["Retry-After"] == "5"
    assert make.problem_of(refused)["max_queued"] == 2
    batch = api.post("/runs/batch", {"runs": [{**body, "thread_key": "other"}, body]})
    assert (batch.status_code, make.problem_of(batch)["code"]) == (429, "mailbox_full")
    assert make.row_counts() == before
    cancel.run(scope=make.SCOPE, run_id=Run.objects.order_by("order")[0].pk)
    assert api.post("/runs", body, idempotency_key="mine").status_code == 202
