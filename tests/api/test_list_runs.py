"""Runs and activations, found and listed: filters, pages, what a thread's open and latest run is."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from pytest_django import DjangoAssertNumQueries

from mailbox_app.models import Run, Thread
from mailbox_app.operations import settle
from tests import given, make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def walk(api: make.Api, path: str, **parameters: Any) -> list[str]:
    """The ids of a listing, read in pages of two."""
    seen: list[str] = []
    while True:
        shown = api.get(path, limit=2, **parameters).json()
        assert len(shown["items"]) == 2 or not shown["has_more"]
        seen += [item["id"] for item in shown["items"]]
        if not shown["has_more"]:
            assert shown["next_cursor"] is None
            return seen
        parameters["cursor"] = shown["next_cursor"]


def test_runs_are_listed_newest_first_each_once_also_where_times_are_equal() -> None:
    made = [given.run() for _ in range(7)]
    Run.objects.update(created_at=Now())
    Run.objects.filter(pk=made[3].pk).update(created_at=Now() - timedelta(days=1))
    expected = Run.objects.order_by("-created_at", "-id").values_list("pk", flat=True)
    seen = walk(make.api(scope="acme"), "/runs")
    assert seen == [str(pk) for pk in expected]
    assert seen[-1] == str(made[3].pk)


def test_runs_are_found_by_thread_agent_status_and_time() -> None:
    now = scene.database_now()
    kept = given.run(agent="analyst", status="done", created_at=now)
    others = [given.run(agent="echo", status="done"), given.run(agent="analyst", created_at=now - timedelta(hours=2))]
    api = make.api(scope="acme")

    def found(**parameters: Any) -> list[str]:
        return [item["id"] for item in api.get("/runs", **parameters).json()["items"]]

    assert found(agent="analyst", status="done") == [str(kept.pk)]
    assert found(thread_id=str(kept.thread_id)) == [str(kept.pk)]
    assert found(agent="analyst", created_after=now.isoformat()) == [str(kept.pk)]
    assert found(agent="analyst", created_before=now.isoformat()) == [str(others[1].pk)]
    assert found(status="waiting") == []
    assert len(found()) == 3


def test_the_runs_of_one_thread_are_read_in_their_order_piece_by_piece() -> None:
    thread = given.thread()
    runs = [given.run(thread=thread, order=number) for number in range(1, 6)]
    given.run()
    newest_first = [str(run.pk) for run in reversed(runs)]
    api = make.api(scope="acme")
    assert walk(api, "/runs", thread_id=str(thread.pk)) == newest_first
    assert walk(api, f"/threads/{thread.pk}/runs") == newest_first


def test_a_listed_run_leaves_out_what_may_be_large() -> None:
    given.run(status="done", final_output="x" * 100_000)
    [item] = make.api(scope="acme").get("/runs").json()["items"]
    assert not {"final_output", "input", "output", "options", "dispatch", "state"} & set(item)
    assert {"id", "thread_id", "status", "agent", "error", "termination", "metadata", "replay_of_id"} <= set(item)


def test_runs_of_other_scopes_and_of_deleted_threads_are_not_listed() -> None:
    given.run(thread=given.thread(scope="other"))
    given.run(thread=given.thread(deleted_at=Now()))
    assert make.api(scope="acme").get("/runs").json() == {"items": [], "next_cursor": None, "has_more": False}


@pytest.mark.parametrize(
    ("parameters", "status", "field"),
    [
        ({"status": "finished"}, 422, "status"),
        ({"thread_id": "42"}, 422, "thread_id"),
        ({"agent": ""}, 422, "agent"),
        ({"created_after": "yesterday"}, 422, "created_after"),
        ({"created_before": "2031-05-01"}, 422, "created_before"),
        ({"cursor": "x"}, 400, "cursor"),
        ({"limit": "x"}, 400, "limit"),
        ({"stauts": "done"}, 422, "stauts"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(parameters: dict[str, str], status: int, field: str) -> None:
    answer = make.api().get("/runs", **parameters)
    assert (answer.status_code, make.problem_of(answer)["errors"][0]["field"]) == (status, field)


def test_a_cursor_is_good_for_its_own_filters_only() -> None:
    for _ in range(3):
        given.run(agent="echo")
    api = make.api(scope="acme")
    cursor = api.get("/runs", limit=1, agent="echo").json()["next_cursor"]
    assert api.get("/runs", cursor=cursor, agent="echo").status_code == 200
    for wrong in ({}, {"agent": "analyst"}, {"agent": "echo", "status": "done"}):
        assert api.get("/runs", cursor=cursor, **wrong).status_code == 400
    assert api.get("/threads", cursor=cursor).status_code == 400


def test_the_open_and_the_latest_run_of_a_thread() -> None:
    api = make.api(scope=scene.SCOPE)
    thread = make.thread(scope=scene.SCOPE)
    for name in ("active", "latest"):
        answer = api.get(f"/threads/{thread.pk}/runs/{name}")
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "run_not_found")
    first = scene.post(thread_id=thread.pk)
    assert api.get(f"/threads/{thread.pk}/runs/active").status_code == 404
    second = scene.post(thread_id=thread.pk)
    taken = scene.taken()
    active = api.get(f"/threads/{thread.pk}/runs/active").json()
    assert (active["id"], active["status"], active["dispatch"]["status"]) == (str(first.run_id), "running", "claimed")
    settle.nack(taken, code="transient", message="no", retry_after=60)
    assert api.get(f"/threads/{thread.pk}/runs/active").json()["id"] == str(first.run_id), "open between two attempts"
    assert api.get(f"/threads/{thread.pk}/runs/latest").json()["id"] == str(second.run_id)
    assert api.get(f"/threads/{thread.pk}").json()["latest_run_id"] == str(second.run_id)


def test_the_activations_of_a_run_and_of_a_thread_are_listed_newest_first() -> None:
    run = given.run(scope="acme", status="waiting")
    made = [given.dispatch(run=run, status="acked", created_at=Now() - timedelta(hours=n)) for n in (3, 2, 1)]
    other = given.dispatch(run=given.run(thread=run.thread, status="done"), status="cancelled")
    api = make.api(scope="acme")
    ids = [str(dispatch.pk) for dispatch in reversed(made)]
    assert walk(api, f"/runs/{run.pk}/dispatches") == ids
    assert walk(api, f"/threads/{run.thread_id}/dispatches") == [str(other.pk), *ids]
    [shown] = api.get(f"/runs/{other.run_id}/dispatches").json()["items"]
    assert (shown["thread_id"], shown["run_id"], shown["agent"]) == (str(run.thread_id), str(other.run_id), "echo")
    assert "last_error" not in shown


def test_the_events_of_a_thread_are_those_of_all_its_runs() -> None:
    first = scene.posted_and_taken()
    settle.complete(first)
    scene.post(thread_id=first.thread_id)
    told = make.api(scope=scene.SCOPE).get(f"/threads/{first.thread_id}/events").json()
    assert [item["kind"] for item in told["items"]] == scene.kinds(first)
    assert len({item["run_id"] for item in told["items"]}) == 3
    assert told["next_cursor"] == len(told["items"])


def test_internal_events_of_a_thread_are_not_shown() -> None:
    run = given.run(scope="acme")
    given.event(thread=run.thread, cursor=1, visibility="internal")
    given.event(thread=run.thread, cursor=2)
    told = make.api(scope="acme").get(f"/threads/{run.thread_id}/events").json()
    assert [item["cursor"] for item in told["items"]] == [2]


def test_no_listing_costs_more_queries_for_more_rows(django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    thread = given.thread()
    for _ in range(20):
        given.dispatch(run=given.run(thread=thread, status="done"), status="dead_letter")
    Thread.objects.update(latest_run_id=Run.objects.latest("order").pk)
    api = make.api(scope="acme")
    api.get("/threads")
    routes = {
        "/runs": 2,
        f"/runs?thread_id={thread.pk}": 2,
        f"/threads/{thread.pk}/runs": 3,
        f"/threads/{thread.pk}/dispatches": 3,
        f"/threads/{thread.pk}/events": 3,
        f"/threads/{thread.pk}/runs/latest": 4,
        f"/runs/{Run.objects.all()[0].pk}/dispatches": 3,
        "/dead-letters": 2,
    }
    for path, most in routes.items():
        with django_assert_max_num_queries(most):
            assert api.get(path).status_code == 200
