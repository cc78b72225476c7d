"""POST /runs/{id}/decision and GET /waits: what runs ask of humans, and the answers."""

import uuid
from typing import Any

import pytest

from mailbox_app.models import Dispatch, JournalEntry, Run
from mailbox_app.operations import cancel, settle
from tests import make
from tests.api.test_resume import nothing_but_the_token_changes
from tests.operations import scene
from tests.operations.asking import asked, overdue, ticket, waiting

pytestmark = pytest.mark.django_db

SCHEMA = {"type": "object", "properties": {"approved": {"type": "boolean"}}, "required": ["approved"]}


def api(scope: str = scene.SCOPE) -> make.Api:
    return make.api(scope=scope)


def test_an_answer_over_http_lets_the_run_go_on() -> None:
    claim, [ticket_id] = waiting(schema=SCHEMA)
    body = {"ticket_id": ticket_id, "action": "resume", "payload": {"approved": True}, "decision_id": "d-1"}
    caller = api()
    answer = caller.post(f"/runs/{claim.run_id}/decision", body)
    assert answer.status_code == 202
    assert answer.json() == {
        "run_id": str(claim.run_id),
        "thread_id": str(claim.thread_id),
        "ticket_id": ticket_id,
        "decision_id": "d-1",
        "action": "resume",
        "status": "resumed",
        "dispatch_id": str(Dispatch.objects.queued().get().pk),
    }
    assert JournalEntry.objects.get().result["payload"] == {"approved": True}
    assert ticket(ticket_id).answered_by.startswith("token ")
    with nothing_but_the_token_changes():
        again = caller.post(f"/runs/{claim.run_id}/decision", body)
    assert (again.status_code, again.json()) == (202, answer.json())


def test_an_answer_may_go_without_payload_and_id() -> None:
    claim, [one, two] = waiting("one", "two")
    caller = api()
    first = caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": one, "action": "cancel"}).json()
    assert (first["status"], first["dispatch_id"]) == ("stored", None)
    assert uuid.UUID(first["decision_id"])
    last = caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": two, "action": "resume", "payload": None}).json()
    assert last["status"] == "resumed"


REFUSALS: dict[str, tuple[Any, int, str]] = {
    "unknown field": ({"answer": 1}, 422, "invalid_input"),
    "unknown action": ({"action": "approve"}, 422, "invalid_input"),
    "ticket no text": ({"ticket_id": 7}, 422, "invalid_input"),
    "unknown ticket": ({"ticket_id": "t"}, 404, "ticket_not_found"),
    "against the schema": ({"payload": {"approved": "yes"}}, 422, "invalid_input"),
    "no payload": ({"payload": None}, 422, "invalid_input"),
    "nul": ({"payload": "a\x00b"}, 422, "invalid_input"),
}


@pytest.mark.parametrize(("changed", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_an_answer_that_is_refused_changes_nothing(changed: dict[str, Any], status: int, code: str) -> None:
    claim, [ticket_id] = waiting(schema=SCHEMA)
    caller = api()
    body = {"ticket_id": ticket_id, "action": "resume", "payload": {"approved": True}, **changed}
    with nothing_but_the_token_changes():
        problem = make.problem_of(caller.post(f"/runs/{claim.run_id}/decision", body))
    assert (problem["status"], problem["code"]) == (status, code)


def test_what_is_wrong_with_a_payload_is_named() -> None:
    claim, [ticket_id] = waiting(schema=SCHEMA)
    body = {"ticket_id": ticket_id, "action": "resume", "payload": {"approved": "yes"}}
    problem = make.problem_of(api().post(f"/runs/{claim.run_id}/decision", body))
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [
        ("payload.approved", "schema_violation"),
    ]


def test_an_action_that_is_none_is_refused_before_anything_is_looked_for() -> None:
    body = {"ticket_id": "t", "action": "approve"}
    problem = make.problem_of(api().post(f"/runs/{uuid.uuid4()}/decision", body))
    assert (problem["status"], problem["errors"][0]["field"]) == (422, "action")


@pytest.mark.parametrize("missing", ["ticket_id", "action"])
def test_what_an_answer_must_say_is_required(missing: str) -> None:
    claim, [ticket_id] = waiting()
    body = {"ticket_id": ticket_id, "action": "resume"}
    problem = make.problem_of(
        api().post(f"/runs/{claim.run_id}/decision", {name: body[name] for name in body if name != missing})
    )
    assert (problem["status"], problem["errors"][0]["field"]) == (422, missing)


def test_a_second_answer_and_a_late_one_are_conflicts() -> None:
    claim, [one, two] = waiting("one", "two", expires_in=60.0)
    caller = api()
    assert caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": one, "action": "resume"}).status_code == 202
    overdue(two)
    with nothing_but_the_token_changes():
        second = make.problem_of(caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": one, "action": "cancel"}))
        late = make.problem_of(caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": two, "action": "resume"}))
    assert [(found["status"], found["code"]) for found in (second, late)] == [
        (409, "already_decided"),
        (409, "ticket_expired"),
    ]


def test_a_run_that_is_done_or_another_tenants_has_no_such_question() -> None:
    claim, [ticket_id] = waiting()
    body = {"ticket_id": ticket_id, "action": "resume"}
    caller, stranger = api(), api("other")
    cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    with nothing_but_the_token_changes():
        done = make.problem_of(caller.post(f"/runs/{claim.run_id}/decision", body))
        strange = make.problem_of(stranger.post(f"/runs/{claim.run_id}/decision", body))
        malformed = make.problem_of(caller.post("/runs/x/decision", body))
    assert [(found["status"], found["code"]) for found in (done, strange, malformed)] == [
        (404, "ticket_not_found"),
        (404, "run_not_found"),
        (400, "malformed_id"),
    ]


def test_waiting_runs_are_listed_with_what_they_ask() -> None:
    claim, [one, two] = waiting("one", "two", arguments={"cents": 5}, schema=SCHEMA, expires_in=60.0)
    caller = api()
    caller.post(f"/runs/{claim.run_id}/decision", {"ticket_id": one, "action": "cancel"})
    run, row = scene.run(claim), ticket(two)
    assert run.wait_until is not None
    assert row.expires_at is not None
    page = caller.get("/waits").json()
    assert (page["next_cursor"], page["has_more"]) == (None, False)
    [item] = page["items"]
    asks = item.pop("tickets")
    since = item.pop("since")
    assert run.waiting is not None
    assert since.replace("Z", "+00:00") == run.waiting["since"]
    assert item == {
        "run_id": str(run.pk),
        "thread_id": str(run.thread_id),
        "agent": "echo",
        "reason": "tool_permission",
        "name": "approve",
        "message": "",
        "until": run.wait_until.isoformat().replace("+00:00", "Z"),
        "resume_at": None,
    }
    assert asks == [
        {
            "ticket_id": two,
            "name": "two",
            "question": "May I?",
            "arguments": {"cents": 5},
            "schema": SCHEMA,
            "resume_mode": "replay_tool_call",
            "created_at": row.created_at.isoformat().replace("+00:00", "Z"),
            "expires_at": row.expires_at.isoformat().replace("+00:00", "Z"),
        }
    ]
    shown = caller.get(f"/runs/{run.pk}").json()
    assert shown["tickets"] == asks
    assert shown["waiting"]["ticket_ids"] == [one, two]
    assert "entry" not in shown["waiting"]
    assert caller.get(f"/threads/{run.thread_id}/runs/active").json()["tickets"] == asks


def test_waits_are_paged_newest_first_filtered_by_reason_and_of_one_scope() -> None:
    claims = [waiting()[0] for _ in range(3)]
    other = scene.posted_and_taken()
    settle.suspend(other, scene.wait("rate_limit", seconds=60.0))
    asked()
    scene.post()
    caller = api()
    found, cursor = [], None
    while True:
        page = caller.get("/waits", limit=1, **({"cursor": cursor} if cursor else {})).json()
        found += [item["run_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert found == [str(claim.run_id) for claim in (other, *reversed(claims))]
    [limited] = caller.get("/waits", reason="rate_limit").json()["items"]
    assert (limited["run_id"], limited["tickets"]) == (str(other.run_id), [])
    assert limited["resume_at"] is not None
    assert api("other").get("/waits").json()["items"] == []
    assert make.problem_of(caller.get("/waits", reason="boredom"))["status"] == 422
    assert make.problem_of(caller.get("/waits", cursor="x"))["code"] == "malformed_cursor"


def test_a_run_that_asks_while_it_executes_is_no_wait_but_shows_its_question() -> None:
    claim, [ticket_id] = asked()
    caller = api()
    assert caller.get("/waits").json()["items"] == []
    assert [one["ticket_id"] for one in caller.get(f"/runs/{claim.run_id}").json()["tickets"]] == [ticket_id]
    assert Run.objects.get(pk=claim.run_id).status == "running"
