"""Waiting for a run, and for a cancelled one: until it is done or waits, no longer than told, holding nothing."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from django.db import connection
from django.db.models.functions import Now

from mailbox_app.api.v1 import waiting
from mailbox_app.models import Thread
from mailbox_app.operations import settle, threads
from mailbox_project.asgi import application
from tests import given, make
from tests.operations import scene
from tests.races.actors import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def _patient(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "wait_poll_seconds": 0.02}


def meanwhile(ask: Callable[[], Any], act: Callable[[], Any]) -> Any:
    """The answer of a request that waits in another thread while `act` is done here."""

    def asked() -> Any:
        try:
            return ask()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked)
        act()
        return answer.result(60)


def test_a_run_that_is_done_is_answered_at_once() -> None:
    taken = scene.posted_and_taken()
    settle.complete(taken, output="done")
    begun = time.monotonic()
    answer = make.api(scope=scene.SCOPE).get(f"/runs/{taken.run_id}/wait", timeout=30)
    assert (answer.status_code, answer.json()["final_output"]) == (200, "done")
    assert answer.json() == make.api(scope=scene.SCOPE).get(f"/runs/{taken.run_id}").json()
    assert time.monotonic() - begun < 10


def test_a_run_that_waits_for_somebody_is_answered_at_once() -> None:
    run = given.run(status="waiting")
    answer = make.api(scope="acme").get(f"/runs/{run.pk}/wait", timeout=30)
    assert answer.json()["status"] == "waiting"


@pytest.mark.usefixtures("_patient")
def test_a_wait_ends_when_the_run_does() -> None:
    taken = scene.posted_and_taken()
    api = make.api(scope=scene.SCOPE)
    answer = meanwhile(
        lambda: api.get(f"/runs/{taken.run_id}/wait", timeout=60), lambda: settle.complete(taken, output="done")
    )
    assert (answer.json()["status"], answer.json()["final_output"]) == ("done", "done")


def test_a_wait_whose_time_is_over_shows_the_run_as_it_stands() -> None:
    posted = scene.post()
    for timeout in ("0", "0.05", "5e-2", "-1", "-1e9999"):
        answer = make.api(scope=scene.SCOPE).get(f"/runs/{posted.run_id}/wait", timeout=timeout)
        assert (answer.status_code, answer.json()["status"]) == (200, "created")


def test_no_wait_is_longer_than_the_setting(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "wait_seconds": 0.05}
    posted = scene.post()
    begun = time.monotonic()
    for parameters in ({}, {"timeout": "999999999"}, {"timeout": "1e9999"}):
        assert make.api(scope=scene.SCOPE).get(f"/runs/{posted.run_id}/wait", **parameters).status_code == 200
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("timeout", ["x", "", "nan", "inf", "1.", ".5", "1e", "0x1", "\u0661", "1_0"])
def test_a_timeout_that_is_no_number_is_400(timeout: str) -> None:
    answer = make.api().get(f"/runs/{make.run().pk}/wait", timeout=timeout)
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"]) == (400, "malformed_parameter")
    assert found["errors"][0]["field"] == "timeout"


def test_a_run_there_is_none_of_is_404_and_one_of_a_deleted_thread_410() -> None:
    api = make.api(scope=scene.SCOPE)
    assert api.get("/runs/0190a0a0-0000-7000-8000-000000000000/wait").status_code == 404
    taken = scene.posted_and_taken()
    settle.complete(taken)
    threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
    assert api.get(f"/runs/{taken.run_id}/wait").status_code == 410


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[waiting.Later]:
    """The answers that have begun to wait."""
    begun: list[waiting.Later] = []
    ripen = waiting.Later.ripen

    async def noted(answer: waiting.Later) -> None:
        begun.append(answer)
        await ripen(answer)

    monkeypatch.setattr(waiting.Later, "ripen", noted)
    return begun


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[waiting.Later]:
    """The answer that waits, once for each time it has looked."""
    looked: list[waiting.Later] = []
    look = waiting.Later._look

    def noted(answer: waiting.Later) -> bool:
        found = look(answer)
        looked.append(answer)
        return found

    monkeypatch.setattr(waiting.Later, "_look", noted)
    return looked


@pytest.mark.usefixtures("_patient")
def test_a_thread_deleted_during_a_wait_is_410(paused: list[waiting.Later]) -> None:
    posted = scene.post()
    api = make.api(scope=scene.SCOPE)

    def delete() -> None:
        until(lambda: paused, "the request waits")
        Thread.objects.update(deleted_at=Now())

    answer = meanwhile(lambda: api.get(f"/runs/{posted.run_id}/wait", timeout=60), delete)
    assert (answer.status_code, make.problem_of(answer)["code"]) == (410, "gone")


def others() -> int:
    """Connections to this database beside the one that asks."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])


def test_many_waits_at_a_time_hold_neither_connections_nor_each_other_up(paused: list[waiting.Later]) -> None:
    taken = scene.posted_and_taken()
    headers = {"Authorization": f"Bearer {make.token(scope=scene.SCOPE)[1]}"}
    address, many = f"http://localhost/v1/runs/{taken.run_id}/wait", 30

    def look_on() -> None:
        try:
            until(lambda: len(paused) == many, "all wait")
            until(lambda: others() == 1, "no connection is held but the test's own")
        finally:
            connection.close()

    async def wait_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, headers=headers, timeout=60) as client:
            asked = [asyncio.ensure_future(client.get(address, params={"timeout": "55"})) for _ in range(many)]
            await asyncio.to_thread(look_on)
            assert not any(one.done() for one in asked)
            await asyncio.to_thread(end)
            return await asyncio.gather(*asked)

    def end() -> None:
        settle.complete(taken, output="done")
        connection.close()

    answers = asyncio.run(wait_all())
    assert {(answer.status_code, answer.json()["final_output"]) for answer in answers} == {(200, "done")}


def test_cancel_answers_200_for_a_run_that_ends_here_and_202_while_a_worker_is_asked() -> None:
    api = make.api(scope=scene.SCOPE)
    posted = scene.post()
    answer = api.post(f"/runs/{posted.run_id}/cancel", {"reason": "not needed"})
    assert answer.status_code == 200
    assert answer.json() == {
        "thread_id": str(posted.thread_id),
        "run_id": str(posted.run_id),
        "outcome": "cancelled",
        "status": "done",
        "termination": {"type": "cancelled", "detail": "not needed"},
    }
    again = api.post(f"/runs/{posted.run_id}/cancel")
    assert (again.status_code, again.json()["outcome"]) == (200, "already_done")
    taken = scene.posted_and_taken()
    asked = api.post(f"/runs/{taken.run_id}/cancel", raw=b"")
    assert (asked.status_code, asked.json()["outcome"], asked.json()["status"]) == (202, "requested", "running")


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize(
    ("end", "outcome"), [(settle.stopped, "cancelled"), (settle.complete, "already_done")], ids=["stopped", "completed"]
)
def test_cancel_waits_for_the_worker_and_tells_how_the_run_ended(
    end: Callable[[Any], None], outcome: str, looks: list[waiting.Later]
) -> None:
    taken = scene.posted_and_taken()
    api = make.api(scope=scene.SCOPE)

    def act() -> None:
        until(lambda: len(looks) > 1, "the request waits")
        assert scene.dispatch(taken).cancel_requested_at
        end(taken)

    answer = meanwhile(lambda: api.post(f"/runs/{taken.run_id}/cancel?wait=5"), act)
    assert (answer.status_code, answer.json()["outcome"], answer.json()["status"]) == (200, outcome, "done")


def test_cancel_waits_no_longer_than_told_or_set(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "cancel_wait_seconds": 0.05}
    taken = scene.posted_and_taken()
    answer = make.api(scope=scene.SCOPE).post(f"/runs/{taken.run_id}/cancel?wait=60")
    assert (answer.status_code, answer.json()["outcome"]) == (202, "requested")


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize(
    ("end", "outcome"), [(settle.stopped, "cancelled"), (settle.complete, "already_done")], ids=["stopped", "completed"]
)
@pytest.mark.parametrize("act", ["interrupt", "cancel"])
def test_stopping_a_thread_waits_for_the_worker_and_tells_how_its_run_ended(
    act: str, end: Callable[[Any], None], outcome: str, looks: list[waiting.Later]
) -> None:
    taken = scene.posted_and_taken()
    queued = scene.post(thread_id=taken.thread_id)
    api = make.api(scope=scene.SCOPE)

    def stop() -> None:
        until(lambda: len(looks) > 1, "the request waits")
        assert scene.dispatch(taken).cancel_requested_at
        end(taken)

    answer = meanwhile(lambda: api.post(f"/threads/{taken.thread_id}/{act}?wait=5"), stop)
    told = answer.json()
    assert answer.status_code == 200
    if act == "interrupt":
        assert (told["run_id"], told["outcome"]) == (str(taken.run_id), outcome)
        assert told["superseded_run_ids"] == [str(queued.run_id)]
    else:
        stopped = [str(taken.run_id)] if outcome == "cancelled" else []
        assert told["cancelled_run_ids"] == [*stopped, str(queued.run_id)]
        assert told["requested_run_id"] is None


@pytest.mark.parametrize("act", ["interrupt", "cancel"])
def test_stopping_a_thread_waits_no_longer_than_told_or_set_and_for_nobody_if_nothing_runs(
    act: str, settings: Any
) -> None:
    taken, posted = scene.posted_and_taken(), scene.post()
    api = make.api(scope=scene.SCOPE)
    begun = time.monotonic()
    assert api.post(f"/threads/{posted.thread_id}/{act}?wait=5").status_code == 200
    assert scene.run(posted).status == "done"
    assert time.monotonic() - begun < 4
    settings.MAILBOX = {**settings.MAILBOX, "cancel_wait_seconds": 0.05}
    answer = api.post(f"/threads/{taken.thread_id}/{act}?wait=60")
    assert (answer.status_code, scene.run(taken).status) == (202, "running")


def test_a_cancel_that_is_refused_changes_nothing() -> None:
    posted = scene.post()
    api = make.api(scope=scene.SCOPE)
    other = make.api(scope="other")
    api.get("/threads")
    with scene.nothing_changes():
        for path, body, status in (
            (f"/runs/{posted.run_id}/cancel?wait=x", {}, 400),
            (f"/runs/{posted.run_id}/cancel?wiat=1", {}, 422),
            (f"/threads/{posted.thread_id}/cancel?wait=x", {}, 400),
            (f"/threads/{posted.thread_id}/interrupt?wait=x", {}, 400),
            (f"/threads/{posted.thread_id}/interrupt?wiat=1", {}, 422),
            (f"/runs/{posted.run_id}/cancel", {"reason": "x" * 201}, 422),
            (f"/runs/{posted.run_id}/cancel", {"why": "x"}, 422),
            (f"/runs/{posted.run_id}/cancel", [], 422),
            ("/runs/42/cancel", {}, 400),
        ):
            answer = api.post(path, body)
            assert answer.status_code == status
            make.problem_of(answer)
    assert other.post(f"/runs/{posted.run_id}/cancel").status_code == 404
    assert scene.run(posted).status == "created"
