"""Interrupting and cancelling a thread over HTTP."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import claim, settle
from tests import make

pytestmark = pytest.mark.django_db


def taken() -> Any:
    [one] = claim.due(queue="mailbox.default", agents=["echo"], worker="worker@here", tokens=[uuid.uuid4()]).claims
    return one


def test_an_interrupt_answers_with_what_it_met_and_asks_once() -> None:
    api, open_run = make.api(), make.run(text="first")
    held = taken()
    queued = make.run(text="second", thread_id=open_run.thread_id)
    answer = api.post(f"/threads/{open_run.thread_id}/interrupt", {"reason": "enough"})
    assert answer.status_code == 202
    message = queued.messages.get()  # type: ignore[attr-defined]
    assert answer.json() == {
        "thread_id": str(open_run.thread_id),
        "epoch": 1,
        "run_id": str(open_run.pk),
        "outcome": "requested",
        "superseded_run_ids": [str(queued.pk)],
        "held_message_ids": [str(message.pk)],
        "waits_for": None,
    }
    again = api.post(f"/threads/{open_run.thread_id}/interrupt")
    assert (again.status_code, again.json()["epoch"], again.json()["superseded_run_ids"]) == (202, 1, [])
    settle.stopped(held)
    idle = api.post(f"/threads/{open_run.thread_id}/interrupt")
    assert (idle.status_code, idle.json()["run_id"], idle.json()["epoch"]) == (200, None, 1)


def test_a_run_that_interrupts_says_so_in_its_receipt() -> None:
    api, first = make.api(), make.run(text="first")
    body = {"messages": [{"content": "rather this"}], "thread_id": str(first.thread_id), "if_active": "interrupt"}
    receipt = api.post("/runs", body).json()
    assert receipt["interrupted"]["superseded_run_ids"] == [str(first.pk)]
    assert [message.content for message in taken().messages] == ["first", "rather this"]
    plain = api.post("/runs", {"messages": [{"content": "new"}], "agent": "echo"})
    assert plain.json()["interrupted"] is None


def test_cancelling_a_thread_answers_with_what_ended_and_what_was_asked() -> None:
    api, open_run = make.api(), make.run()
    held = taken()
    queued = make.run(thread_id=open_run.thread_id)
    answer = api.post(f"/threads/{open_run.thread_id}/cancel", {"reason": "enough"})
    assert answer.status_code == 202
    assert answer.json() == {
        "thread_id": str(open_run.thread_id),
        "cancelled_run_ids": [str(queued.pk)],
        "requested_run_id": str(open_run.pk),
    }
    settle.stopped(held)
    answer = api.post(f"/threads/{open_run.thread_id}/cancel")
    assert (answer.status_code, answer.json()["cancelled_run_ids"]) == (200, [])


@pytest.mark.parametrize("act", ["interrupt", "cancel"])
def test_refusals_change_nothing(act: str) -> None:
    api, run = make.api(), make.run()
    before = make.row_counts()
    other = make.api(scope="other").post(f"/threads/{run.thread_id}/{act}")
    assert (other.status_code, make.problem_of(other)["code"]) == (404, "thread_not_found")
    wrong = api.post(f"/threads/{run.thread_id}/{act}", {"resaon": "typo"})
    assert (wrong.status_code, make.problem_of(wrong)["code"]) == (422, "invalid_input")
    assert api.post(f"/threads/not-an-id/{act}").status_code == 400
    run.refresh_from_db()
    assert (run.status, Dispatch.objects.get().status, Thread.objects.get().epoch) == ("created", "queued", 0)
    # The tokens of the two callers aside.
    assert {name: count for name, count in make.row_counts().items() if name != "ApiToken"} == {
        name: count for name, count in before.items() if name != "ApiToken"
    }
    assert Run.objects.count() == 1


def test_what_a_scheduled_barrier_blocks_is_409_and_names_it() -> None:
    api = make.api()
    body = {"agent": "echo", "messages": [{"content": "hello"}]}
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    later = api.post("/runs", {**body, "available_at": tomorrow, "delivery": {"barrier": True}}).json()
    wanted = {**body, "thread_id": later["thread_id"], "if_active": "interrupt"}
    for path, sent in (
        ("/runs", wanted),
        (f"/threads/{later['thread_id']}/messages", {**body, "if_active": "interrupt"}),
    ):
        refused = api.post(path, sent)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (409, "delivery_blocked_by_barrier")
        assert (problem["message_id"], problem["run_id"]) == (later["message_ids"][0], later["run_id"])
    assert Run.objects.count() == 1
