"""POST /runs/{id}/resume: a waiting run goes on, or finds it when it waits."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailbox_app.models import Dispatch, JournalEntry, Run
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def waiting(**given: Any) -> Run:
    run = make.run(scope=scene.SCOPE)
    settle.suspend(scene.taken(), scene.wait(**given))
    return run


@contextmanager
def nothing_but_the_token_changes() -> Iterator[None]:
    before = scene.tables()
    yield
    assert {**scene.tables(), "ApiToken": None} == {**before, "ApiToken": None}


def api() -> make.Api:
    return make.api(scope=scene.SCOPE)


def test_a_waiting_run_goes_on_with_the_payload() -> None:
    run = waiting(name="payment")
    answer = api().post(f"/runs/{run.pk}/resume", {"name": "payment", "payload": {"cents": 5}, "resume_id": "r-1"})
    assert answer.status_code == 202
    dispatch = Dispatch.objects.queued().get()
    assert answer.json() == {
        "run_id": str(run.pk),
        "thread_id": str(run.thread_id),
        "status": "resumed",
        "dispatch_id": str(dispatch.pk),
    }
    assert JournalEntry.objects.get().result == {"cents": 5}
    again = api().post(f"/runs/{run.pk}/resume", {"name": "payment", "payload": {"cents": 5}, "resume_id": "r-1"})
    assert (again.status_code, again.json()) == (202, answer.json())
    assert Dispatch.objects.count() == 2


def test_without_a_name_or_a_payload_it_ends_a_wait_without_a_name() -> None:
    run = waiting()
    assert api().post(f"/runs/{run.pk}/resume", {}).json()["status"] == "resumed"
    assert JournalEntry.objects.get().result is None


def test_a_run_that_does_not_wait_yet_stores_it() -> None:
    run = make.run(scope=scene.SCOPE)
    answer = api().post(f"/runs/{run.pk}/resume", {"payload": 1})
    assert (answer.json()["status"], answer.json()["dispatch_id"]) == ("stored", None)


REFUSALS: dict[str, tuple[Any, int, str]] = {
    "unknown field": ({"tickets": []}, 422, "invalid_input"),
    "name": ({"name": 7}, 422, "invalid_input"),
    "payload": ({"payload": "a\x00b"}, 422, "invalid_input"),
    "list": ([], 422, "invalid_input"),
}


@pytest.mark.parametrize(("body", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_refused_and_changes_nothing(body: Any, status: int, code: str) -> None:
    run, caller = waiting(), api()
    with nothing_but_the_token_changes():
        problem = make.problem_of(caller.post(f"/runs/{run.pk}/resume", body))
    assert (problem["status"], problem["code"]) == (status, code)


def test_a_run_that_is_done_or_not_there_says_so() -> None:
    run, caller = waiting(), api()
    stranger = make.api(scope="other")
    with nothing_but_the_token_changes():
        assert make.problem_of(caller.post(f"/runs/{uuid.uuid4()}/resume", {}))["code"] == "run_not_found"
        assert make.problem_of(stranger.post(f"/runs/{run.pk}/resume", {}))["status"] == 404
        assert make.problem_of(caller.post("/runs/x/resume", {}))["code"] == "malformed_id"
    caller.post(f"/runs/{run.pk}/resume", {})
    settle.complete(scene.taken())
    assert make.problem_of(caller.post(f"/runs/{run.pk}/resume", {}))["code"] == "conflict"
