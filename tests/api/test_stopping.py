"""Interrupting and cancelling a thread over HTTP, and what is pending on it."""

import uuid
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


def test_what_an_interrupt_holds_is_listed_and_released() -> None:
    api, run = make.api(), make.run(text="first")
    make.run(text="second", thread_id=run.thread_id)
    path = f"/threads/{run.thread_id}/pending"
    assert [item["held"] for item in api.get(path).json()["items"]] == [False, False]
    assert api.post(f"/threads/{run.thread_id}/interrupt").status_code == 200
    page = api.get(path, limit=1).json()
    assert [(item["content"], item["held"], item["run_id"]) for item in page["items"]] == [("first", True, str(run.pk))]
    assert page["has_more"] is True
    rest = api.get(path, after=page["next_cursor"]).json()
    assert ([item["content"] for item in rest["items"]], rest["has_more"]) == (["second"], False)
    released = api.post(f"{path}/release", {"message_ids": [page["items"][0]["id"]]}).json()
    assert (released["thread_id"], released["message_ids"]) == (str(run.thread_id), [page["items"][0]["id"]])
    assert [str(taken().run_id)] == released["run_ids"]
    assert len(api.post(f"{path}/release").json()["message_ids"]) == 1
    assert api.post(f"{path}/release").json() == {"thread_id": str(run.thread_id), "message_ids": [], "run_ids": []}


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


@pytest.mark.parametrize("act", ["interrupt", "cancel", "pending/release"])
def test_refusals_change_nothing(act: str) -> None:
    api, run = make.api(), make.run()
    before = make.row_counts()
    other = make.api(scope="other").post(f"/threads/{run.thread_id}/{act}")
    assert (other.status_code, make.problem_of(other)["code"]) == (404, "thread_not_found")
    wrong = api.post(f"/threads/{run.thread_id}/{act}", {"resaon": "typo"})
    assert (wrong.status_code, make.problem_of(wrong)["code"]) == (422, "invalid_input")
    assert api.post(f"/threads/not-an-id/{act}").status_code == 400
    unknown = api.post(f"/threads/{run.thread_id}/pending/release", {"message_ids": [str(uuid.uuid4())]})
    assert (unknown.status_code, make.problem_of(unknown)["code"]) == (404, "message_not_found")
    assert api.get(f"/threads/{run.thread_id}/pending", after="x").status_code == 400
    run.refresh_from_db()
    assert (run.status, Dispatch.objects.get().status, Thread.objects.get().epoch) == ("created", "queued", 0)
    # The tokens of the two callers aside.
    assert {name: count for name, count in make.row_counts().items() if name != "ApiToken"} == {
        name: count for name, count in before.items() if name != "ApiToken"
    }
    assert Run.objects.count() == 1
