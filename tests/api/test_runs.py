"""Reading a run and its events: what is shown, piece by piece, and what it costs."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from pytest_django import DjangoAssertNumQueries

from mailbox_app.execution import runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Event, Run, Thread
from mailbox_app.operations import claim
from tests import given, make

pytestmark = pytest.mark.django_db


def execute(run: Run) -> None:
    """Run the agent of a queued run, as a worker would."""
    [one] = claim.due(queue="mailbox.default", agents=["echo"], worker="worker@here", tokens=[uuid.uuid4()]).claims
    assert one.run_id == run.pk
    runner.run(one, keeper=LeaseKeeper(lambda tokens: claim.renew(tokens=tokens)), own_process=False)


def events(thread: Thread, count: int, **fields: Any) -> Run:
    """A run of the thread with that many events, one cursor each."""
    owner = given.run(thread=thread)
    for number in range(1, count + 1):
        given.event(thread=thread, run_id=owner.pk, cursor=number, kind=f"Kind{number}", **fields)
    Thread.objects.filter(pk=thread.pk).update(last_cursor=count)
    return owner


def test_a_queued_run_shows_its_dispatch_and_no_outcome() -> None:
    run = make.run(options={"depth": 1}, metadata={"ticket": "T-1"}, priority=7)
    shown = make.api().get(f"/runs/{run.pk}").json()
    dispatch = Dispatch.objects.get()
    assert {name: shown[name] for name in ("id", "thread_id", "agent", "status", "turn")} == {
        "id": str(run.pk),
        "thread_id": str(run.thread_id),
        "agent": "echo",
        "status": "created",
        "turn": 1,
    }
    assert (shown["options"], shown["metadata"]) == ({"depth": 1}, {"ticket": "T-1"})
    for name in ("termination", "final_output", "error", "waiting", "started_at", "finished_at"):
        assert shown[name] is None
    assert shown["dispatch"] == {
        "id": str(dispatch.pk),
        "status": "queued",
        "queue": "mailbox.default",
        "priority": 7,
        "attempt_count": 0,
        "lost_count": 0,
        "max_attempts": 5,
        "available_at": dispatch.available_at.isoformat().replace("+00:00", "Z"),
        "lease_until": None,
        "completed_at": None,
    }


@pytest.mark.django_db(transaction=True)
def test_an_executed_run_shows_its_outcome_its_log_and_its_events() -> None:
    run = make.run(text="hello big world")
    execute(run)
    api = make.api()
    shown = api.get(f"/runs/{run.pk}").json()
    assert (shown["status"], shown["final_output"], shown["error"]) == ("done", "hello big world", None)
    assert shown["termination"]["type"] == "natural_end"
    assert shown["dispatch"]["status"] == "acked"
    assert shown["started_at"] <= shown["finished_at"]
    log = api.get(f"/threads/{run.thread_id}/messages").json()
    assert [(item["seq"], item["role"], item["content"]) for item in log["items"]] == [
        (1, "user", "hello big world"),
        (2, "assistant", "hello big world"),
    ]
    assert (log["items"][0]["run_id"], log["items"][1]["producer_run_id"]) == (str(run.pk), str(run.pk))
    told = api.get(f"/runs/{run.pk}/events").json()
    assert [item["kind"] for item in told["items"]] == list(
        Event.objects.filter(run_id=run.pk).order_by("cursor").values_list("kind", flat=True)
    )
    assert told["items"][-1]["kind"] == "RunFinished"
    assert set(told["items"][0]) == {
        "cursor", "kind", "payload", "run_id", "dispatch_id", "schema_version", "correlation_id", "created_at",
    }  # fmt: skip


def test_a_failed_run_shows_its_error_but_not_the_text_kept_for_operators() -> None:
    run = given.run(scope="acme", status="done", error={"code": "boom", "message": "it broke"})
    given.dispatch(run=run, status="acked", created_at=Now() - timedelta(hours=1))
    given.dispatch(run=run, status="dead_letter", attempt_count=5, last_error="Traceback: it broke")
    shown = make.api(scope="acme").get(f"/runs/{run.pk}").json()
    assert shown["error"] == {"code": "boom", "message": "it broke"}
    assert shown["dispatch"]["status"] == "dead_letter"
    assert "Traceback" not in str(shown)
    assert (shown["dispatch"]["attempt_count"], shown["dispatch"]["max_attempts"]) == (5, 5)


def test_a_run_whose_dispatches_were_pruned_has_none() -> None:
    run = given.run(scope="acme", status="done")
    assert make.api(scope="acme").get(f"/runs/{run.pk}").json()["dispatch"] is None


def test_a_run_of_a_deleted_thread_is_410() -> None:
    run = make.run()
    Thread.objects.update(deleted_at=Now())
    api = make.api()
    for path in (f"/runs/{run.pk}", f"/runs/{run.pk}/events"):
        answer = api.get(path)
        assert (answer.status_code, make.problem_of(answer)["code"]) == (410, "gone")


def test_events_are_read_piece_by_piece_and_the_last_cursor_goes_on_being_good() -> None:
    run = events(given.thread(), 5)
    api = make.api(scope="acme")
    seen: list[int] = []
    cursor = 0
    for _ in range(3):
        told = api.get(f"/runs/{run.pk}/events", cursor=cursor, limit=2).json()
        seen += [item["cursor"] for item in told["items"]]
        cursor = told["next_cursor"]
    assert (seen, cursor, told["has_more"]) == ([1, 2, 3, 4, 5], 5, False)
    assert api.get(f"/runs/{run.pk}/events", cursor=5).json() == {"items": [], "next_cursor": 5, "has_more": False}
    given.event(thread=run.thread, run_id=run.pk, cursor=6)
    assert [item["cursor"] for item in api.get(f"/runs/{run.pk}/events", cursor=5).json()["items"]] == [6]


def test_has_more_is_false_when_a_full_page_was_the_last() -> None:
    run = events(given.thread(), 2)
    told = make.api(scope="acme").get(f"/runs/{run.pk}/events", limit=2).json()
    assert (len(told["items"]), told["has_more"]) == (2, False)


def test_internal_events_and_those_of_other_runs_are_not_shown() -> None:
    run = events(given.thread(), 2)
    given.event(thread=run.thread, run_id=run.pk, cursor=3, visibility="internal")
    given.event(thread=run.thread, run_id=uuid.uuid4(), cursor=4)
    told = make.api(scope="acme").get(f"/runs/{run.pk}/events").json()
    assert [item["cursor"] for item in told["items"]] == [1, 2]


def test_a_cursor_before_what_was_pruned_is_410_and_none_starts_with_the_oldest_kept() -> None:
    run = events(given.thread(), 5)
    Event.objects.filter(cursor__lte=3).delete()
    Thread.objects.update(pruned_cursor=3)
    api = make.api(scope="acme")
    answer = api.get(f"/runs/{run.pk}/events", cursor=2)
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["oldest_cursor"]) == (410, "cursor_pruned", 3)
    for parameters in ({}, {"cursor": 0}, {"cursor": 3}):
        told = api.get(f"/runs/{run.pk}/events", **parameters)
        assert [item["cursor"] for item in told.json()["items"]] == [4, 5]


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "", " 1", "9223372036854775808", "\u0661", "1e3"])
def test_a_bad_cursor_is_400(cursor: str) -> None:
    run = make.run()
    answer = make.api().get(f"/runs/{run.pk}/events", cursor=cursor)
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["errors"][0]["field"]) == (400, "malformed_cursor", "cursor")


@pytest.mark.parametrize("limit", ["x", "", "1.5", "1e3", "\u0661"])
def test_a_limit_that_is_no_number_is_400(limit: str) -> None:
    api = make.api()
    for path in ("/threads", f"/runs/{make.run().pk}/events", f"/threads/{make.thread().pk}/messages"):
        answer = api.get(path, limit=limit)
        found = make.problem_of(answer)
        assert (answer.status_code, found["code"], found["errors"][0]["field"]) == (
            400,
            "malformed_parameter",
            "limit",
        )


@pytest.mark.parametrize(("limit", "shown"), [(None, 50), ("0", 1), ("-7", 1), ("3", 3), ("999", 200), ("9" * 30, 200)])
def test_a_limit_is_brought_into_1_to_200_and_is_50_unless_given(limit: str | None, shown: int) -> None:
    run = events(given.thread(), 201)
    parameters = {} if limit is None else {"limit": limit}
    told = make.api(scope="acme").get(f"/runs/{run.pk}/events", **parameters).json()
    assert (len(told["items"]), told["has_more"]) == (shown, True)


def test_a_parameter_given_twice_is_400() -> None:
    answer = make.api().get("/threads?limit=1&limit=2")
    assert (answer.status_code, make.problem_of(answer)["code"]) == (400, "malformed_parameter")


def test_no_route_costs_more_queries_for_more_rows(django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    run = events(given.thread(), 60)
    for number in range(1, 61):
        given.thread()
        given.message(thread=run.thread, status="committed", seq=number)
    api = make.api(scope="acme")
    api.get("/threads")
    routes = {
        "/threads": 2,
        f"/threads/{run.thread_id}": 2,
        f"/threads/{run.thread_id}/messages": 3,
        f"/runs/{run.pk}": 3,
        f"/runs/{run.pk}/events": 3,
        f"/runs/{run.pk}/events?cursor=1": 4,
    }
    for path, most in routes.items():
        with django_assert_max_num_queries(most):
            assert api.get(path).status_code == 200
