"""POST /threads/{id}/messages and /runs/{id}/inputs: what is said, and which run the answer names."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailbox_app.models import Dispatch, Message, Run
from mailbox_app.operations import checkpoint, settle
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def api() -> make.Api:
    return make.api(scope=scene.SCOPE)


def said(*texts: str) -> dict[str, Any]:
    return {"messages": [{"content": text} for text in texts or ("late",)]}


@contextmanager
def nothing_but_the_token_changes() -> Iterator[None]:
    before = scene.tables()
    yield
    assert {**scene.tables(), "ApiToken": None} == {**before, "ApiToken": None}


def idle() -> str:
    receipt = scene.post()
    settle.complete(scene.taken())
    return str(receipt.thread_id)


def test_what_is_said_is_answered_with_the_run_that_will_answer_it() -> None:
    thread_id = idle()
    answer = api().post(f"/threads/{thread_id}/messages", said("one", "two"))
    run = Run.objects.latest("order")
    assert answer.status_code == 202
    assert answer.json() == {
        "thread_id": thread_id,
        "run_id": str(run.pk),
        "dispatch_id": str(Dispatch.objects.queued().get().pk),
        "message_ids": [str(pk) for pk in Message.objects.pending().order_by("position").values_list("pk", flat=True)],
        "status": "created",
        "interrupted": None,
    }
    assert answer["Location"] == f"/v1/runs/{run.pk}"
    assert run.activation["origin"] == "rest"


def test_a_message_that_joins_is_answered_with_the_run_it_joins() -> None:
    caller, thread_id = api(), idle()
    first = caller.post(f"/threads/{thread_id}/messages", said("one")).json()
    second = caller.post(f"/threads/{thread_id}/messages", {**said("two"), "agent": "echo"}).json()
    assert second["run_id"] == first["run_id"]
    assert [message.content for message in scene.taken().messages] == ["one", "two"]


def test_cancelling_a_run_that_others_have_joined_takes_back_ones_own_messages_alone() -> None:
    ann, bob, thread_id = api(), api(), idle()
    first = ann.post(f"/threads/{thread_id}/messages", said("ann")).json()
    assert bob.post(f"/threads/{thread_id}/messages", said("bob")).json()["run_id"] == first["run_id"]
    cancelled = ann.post(f"/runs/{first['run_id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["outcome"]) == (200, "cancelled")
    claim = scene.taken()
    assert [message.content for message in claim.messages] == ["bob"]
    assert str(claim.run_id) != first["run_id"]


def test_a_repeat_with_its_key_says_nothing_twice() -> None:
    caller, thread_id = api(), idle()
    first = caller.post(f"/threads/{thread_id}/messages", said(), idempotency_key="k")
    again = caller.post(f"/threads/{thread_id}/messages", said(), idempotency_key="k")
    assert (again.content, again["Idempotency-Replayed"]) == (first.content, "true")
    assert Message.objects.pending().count() == 1


def test_a_durable_message_is_said_once_and_answered_alike() -> None:
    caller, thread_id = api(), idle()
    body = {**said("once"), "message_id": "m-1"}
    first = caller.post(f"/threads/{thread_id}/messages", body)
    again = caller.post(f"/threads/{thread_id}/messages", body)
    assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json())
    assert Message.objects.filter(client_id="m-1").count() == 1
    other = caller.post(f"/threads/{thread_id}/messages", {**body, **said("other")})
    assert (other.status_code, make.problem_of(other)["code"]) == (409, "conflict")
    elsewhere = caller.post(f"/threads/{idle()}/messages", body)
    assert (elsewhere.status_code, make.problem_of(elsewhere)["code"]) == (409, "already_exists")


def runs(of: Claim) -> str:
    return "/runs"


def messages(of: Claim) -> str:
    return f"/threads/{of.thread_id}/messages"


def inputs(of: Claim) -> str:
    return f"/runs/{of.run_id}/inputs"


@pytest.mark.parametrize("path", [runs, messages, inputs])
def test_an_open_run_is_steered_at(path: Any) -> None:
    claim = scene.posted_and_taken()
    steering = {} if path is inputs else {"if_active": "steer", "expected_run_id": str(claim.run_id)}
    named = {"thread_id": str(claim.thread_id)} if path is runs else {}
    answer = api().post(path(claim), {**said("this way"), **steering, **named})
    assert answer.status_code == 202, answer.content
    found = answer.json()
    assert (found["run_id"], found["dispatch_id"], found["status"]) == (
        *(str(claim.run_id), str(claim.dispatch_id)),
        "running",
    )
    assert [message.content for message in checkpoint.reach(claim)] == ["this way"]


@pytest.mark.parametrize("path", [messages, inputs])
def test_a_run_that_waits_for_input_goes_on(path: Any) -> None:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait("user_input", message="which one?"))
    caller = api()
    assert caller.get(f"/runs/{claim.run_id}").json()["waiting"]["reason"] == "user_input"
    answer = caller.post(path(claim), said("that one")).json()
    assert (answer["run_id"], answer["status"]) == (str(claim.run_id), "waiting")
    assert scene.taken().run_id == claim.run_id


def test_a_batch_can_steer_and_names_the_run_it_refuses() -> None:
    claim, caller = scene.posted_and_taken(), api()
    one = {**said("one"), "thread_id": str(claim.thread_id), "if_active": "steer"}
    with nothing_but_the_token_changes():
        refused = caller.post("/runs/batch", {"runs": [one, {**one, "delivery": {"boundary": "new_run"}}]})
    assert make.problem_of(refused)["errors"][0]["field"] == "runs[1].delivery.boundary"
    items = caller.post("/runs/batch", {"runs": [one, one]}).json()["items"]
    assert [item["run_id"] for item in items] == [str(claim.run_id)] * 2


NOBODY = str(uuid.UUID(int=1))
REFUSED: dict[str, tuple[Any, dict[str, Any], int, str, str | None]] = {
    "reject": (messages, {**said(), "if_active": "reject"}, 409, "active_run_conflict", None),
    "another run expected": (messages, {**said(), "expected_run_id": NOBODY}, 409, "active_run_conflict", None),
    "another run expected of a run": (
        runs,
        {**said(), "agent": "echo", "if_active": "steer", "expected_run_id": NOBODY},
        409,
        "active_run_conflict",
        None,
    ),
    "another target": (
        messages,
        {**said(), "delivery": {"boundary": "next_step", "target_run_id": NOBODY}},
        409,
        "active_run_conflict",
        None,
    ),
    "contradiction": (
        messages,
        {**said(), "if_active": "steer", "delivery": {"boundary": "new_run"}},
        422,
        "invalid_input",
        "delivery.boundary",
    ),
    "contradiction of a run": (
        runs,
        {**said(), "if_active": "interrupt", "delivery": {"boundary": "next_step"}},
        422,
        "invalid_input",
        "delivery.boundary",
    ),
    "unknown delivery": (messages, {**said(), "delivery": {"when": 1}}, 422, "invalid_input", "delivery.when"),
    "delivery": (messages, {**said(), "delivery": []}, 422, "invalid_input", "delivery"),
    "nobody's field": (messages, {**said(), "priority": 1}, 422, "invalid_input", "priority"),
    "no messages": (messages, {}, 422, "invalid_input", "messages"),
    "empty messages": (inputs, {"messages": []}, 422, "invalid_input", "messages"),
    "inputs that steer": (inputs, {**said(), "if_active": "steer"}, 422, "invalid_input", "if_active"),
    "nobody": (messages, {**said(), "agent": "nobody"}, 422, "unknown_agent", "agent"),
    "no thread": (lambda of: f"/threads/{NOBODY}/messages", said(), 404, "thread_not_found", None),
    "no run": (lambda of: f"/runs/{NOBODY}/inputs", said(), 404, "run_not_found", None),
    "no id": (lambda of: "/runs/mine/inputs", said(), 400, "malformed_id", "run_id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_and_changes_nothing(name: str) -> None:
    path, body, status, code, field = REFUSED[name]
    claim, caller = scene.posted_and_taken(), api()
    if path is runs:
        body = {**body, "thread_id": str(claim.thread_id)}
    with nothing_but_the_token_changes():
        answer = caller.post(path(claim), body)
    found = make.problem_of(answer)
    assert (found["status"], found["code"]) == (status, code)
    assert field is None or found["errors"][0]["field"] == field
    if code == "active_run_conflict":
        assert found["run_id"] == str(claim.run_id)


def test_a_run_that_is_done_takes_no_inputs() -> None:
    receipt, caller = scene.post(), api()
    settle.complete(scene.taken())
    with nothing_but_the_token_changes():
        answer = caller.post(f"/runs/{receipt.run_id}/inputs", said())
    assert (answer.status_code, make.problem_of(answer)["code"]) == (409, "active_run_conflict")


@pytest.mark.parametrize("path", [messages, inputs])
def test_another_scopes_are_not_there(path: Any) -> None:
    claim, caller = scene.posted_and_taken(), make.api(scope="else")
    with nothing_but_the_token_changes():
        assert caller.post(path(claim), said()).status_code == 404
