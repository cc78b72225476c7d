"""Writes: what a fence collects arrives as it was given, in one statement, if every row was where it should be."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from mailbox_app.models import NOW, Event, Message, Run, Thread
from mailbox_app.models.writes import Writes
from mailbox_app.operations import settle
from mailbox_app.states import ACK, FINISH, START
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

AWKWARD = {"quote": 'it\'s "so" %s %% \\ \n', "deep": [1, 2.5, None, True, {"ä": "☃"}], "big": 10**30, "empty": ""}


def test_every_kind_of_value_arrives_as_it_was_given() -> None:
    thread = given.thread()
    writes = Writes()
    at = scene.database_now() - timedelta(days=1, microseconds=7)
    message = Message(
        scope="acme", thread=thread, role="user", content="plain 'text' %s", metadata=AWKWARD, position=2**40, held=True
    )
    event = Event(thread=thread, cursor=1, kind="Odd", payload=AWKWARD, created_at=at)
    writes.insert(message)
    writes.insert(event)
    writes.flush()
    stored = Message.objects.get(pk=message.pk)
    assert (stored.content, stored.metadata, stored.position, stored.held) == (
        "plain 'text' %s", AWKWARD, 2**40, True,
    )  # fmt: skip
    assert (stored.run_id, stored.seq, stored.client_id, stored.created_at is not None) == (None, None, None, True)
    assert (Event.objects.get().payload, Event.objects.get().created_at) == (AWKWARD, at)


@pytest.mark.parametrize("content", ["text", ["a", 1], {"type": "text"}, 0, False, 'with "quotes"'])
def test_a_json_value_keeps_its_type(content: object) -> None:
    writes = Writes()
    message = Message(scope="acme", thread=given.thread(), role="user", content=content, position=1)
    writes.insert(message)
    writes.flush()
    assert Message.objects.get(pk=message.pk).content == content


def test_the_database_s_clock_and_defaults_fill_what_is_left_to_them() -> None:
    before = scene.database_now()
    run = given.run()
    dispatch = type(given.dispatch())(
        thread=run.thread, run=run, agent="echo", queue="q", order=1, available_at=NOW, max_attempts=1
    )
    writes = Writes()
    writes.insert(dispatch)
    writes.flush()
    dispatch.refresh_from_db()
    assert before <= dispatch.available_at <= scene.database_now()
    assert dispatch.created_at == dispatch.available_at


def test_a_submission_a_claim_and_a_completion_are_few_statements() -> None:
    scene.posted_and_taken()  # what is composed once has been
    sent: list[str] = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SAVEPOINT" not in sql:
            sent.append(sql)
        return execute(sql, params, many, context)

    counts = []
    with connection.execute_wrapper(look):
        scene.post()
        counts.append(len(sent))
        claim = scene.taken()
        counts.append(len(sent))
        settle.complete(claim, output="done")
        counts.append(len(sent))
    # Agent's latest configuration, write. Lock, head, messages, write. Lock, look, write.
    assert counts == [2, 2 + 4, 2 + 4 + 3], sent


def test_a_row_that_is_not_where_its_edge_begins_rolls_everything_back() -> None:
    claim = scene.posted_and_taken()
    before = scene.tables()
    stale = scene.run(claim)

    def start_again() -> None:
        with Thread.objects.fence(claim.thread_id) as thread:
            thread.last_seq += 1
            thread.move(stale, START, started_at=thread.locked_at)

    with pytest.raises(RuntimeError, match="0 of 1 rows of Run changed under the fence from created"):
        start_again()
    assert scene.tables() == before


def test_one_row_of_several_that_is_elsewhere_is_told() -> None:
    runs = [given.run(status="running"), given.run()]
    writes = Writes()
    for run in runs:
        writes.change(run, {"status": "done", "finished_at": scene.database_now()}, source="running")
    with pytest.raises(RuntimeError, match="1 of 2 rows of Run"), transaction.atomic():
        writes.flush()
    assert [Run.objects.get(pk=run.pk).status for run in runs] == ["running", "created"]


def test_a_status_changes_by_a_move_of_its_own_noun_alone() -> None:
    claim = scene.posted_and_taken()
    with Thread.objects.fence(claim.thread_id) as thread:
        run, dispatch = scene.run(claim), scene.dispatch(claim)
        with pytest.raises(ValueError, match="is no move of a run"):
            thread.move(run, ACK)
        with pytest.raises(ValueError, match="is no move of a dispatch"):
            thread.move(dispatch, FINISH)
        with pytest.raises(ValueError, match="changes by a move"):
            thread.change(run, status="done")
        with pytest.raises(ValueError, match="changes by a move"):
            thread.change(Message(), state="committed")
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("running", "claimed")


def test_what_cannot_be_written_is_refused_before_anything_is() -> None:
    thread = given.thread()
    writes = Writes()
    writes.change(thread, {"title": object()})
    with pytest.raises(TypeError, match="object cannot be written"):
        writes.flush()
    writes = Writes()
    writes.insert(Event(thread=thread, cursor=1, kind="Odd", payload=float("nan")))
    with pytest.raises(ValueError, match="not JSON"):
        writes.flush()
    assert Event.objects.count() == 0


def test_a_refusal_of_the_database_names_its_constraint() -> None:
    event = given.event(cursor=7)
    writes = Writes()
    writes.insert(Event(thread=event.thread, cursor=7, kind="Twice"))
    with pytest.raises(IntegrityError, match="event_cursor_unique_in_thread"), transaction.atomic():
        writes.flush()


def test_events_are_stored_in_the_order_in_which_they_were_recorded() -> None:
    posted = scene.post()
    with Thread.objects.fence(posted.thread_id) as thread:
        for number in range(20):
            thread.record(Event(kind=f"Kind{number}"))
    stored = Event.objects.filter(thread_id=posted.thread_id, kind__startswith="Kind").order_by("id")
    assert [event.kind for event in stored] == [f"Kind{number}" for number in range(20)]
    assert len(scene.kinds(posted)) == 22


def test_nothing_collected_sends_nothing() -> None:
    with CaptureQueriesContext(connection) as statements:
        Writes().flush()
    assert len(statements) == 0
