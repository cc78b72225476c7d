"""Dead letters: listed, run again, discarded; and a scheduled run started now, by the staff alone."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from mailbox_app.models import Dispatch, Event, Run
from mailbox_app.operations import settle
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def bury(*, code: str = "permanent", detail: str = "", **given: Any) -> Claim:
    claim = scene.posted_and_taken(**given)
    settle.dead_letter(claim, code=code, message="no", detail=detail)
    return claim


@pytest.fixture
def api() -> make.Api:
    """A caller whose token's first use has been written."""
    return used(make.api(scope=scene.SCOPE))


def used(caller: make.Api) -> make.Api:
    assert caller.get("/threads").status_code == 200
    return caller


@pytest.fixture
def staff(settings: Any, client: Client) -> Client:
    """Somebody of the staff, logged in, in the scope of the scene."""
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": f"{__name__}.scope_of_user"}
    client.force_login(User.objects.create_user("ann", is_staff=True))
    return client


def scope_of_user(user: User) -> str:
    return scene.SCOPE


def test_dead_letters_are_listed_latest_failure_first_and_found_by_what_failed(api: make.Api) -> None:
    letters = [bury() for _ in range(2)]
    other = bury(code="timed_out")
    scene.posted_and_taken()
    shown = api.get("/dead-letters").json()
    assert [item["id"] for item in shown["items"]] == [str(one.dispatch_id) for one in (other, *reversed(letters))]
    item = shown["items"][0]
    assert (item["run_id"], item["error"], item["resolution"]) == (
        str(other.run_id), {"code": "timed_out", "message": "no"}, "",
    )  # fmt: skip
    found = api.get("/dead-letters", code="timed_out", agent="echo", queue=scene.QUEUE).json()["items"]
    assert [one["id"] for one in found] == [str(other.dispatch_id)]
    for nothing in ({"agent": "analyst"}, {"queue": "slow"}, {"created_before": "2001-01-01T00:00:00Z"}):
        assert api.get("/dead-letters", **nothing).json()["items"] == []
    first = api.get("/dead-letters", limit=2).json()
    rest = api.get("/dead-letters", limit=2, cursor=first["next_cursor"]).json()
    assert [one["id"] for one in rest["items"]] == [str(letters[0].dispatch_id)]
    assert make.api(scope="other").get("/dead-letters").json()["items"] == []


def test_the_whole_error_is_for_the_staff_alone(api: make.Api, staff: Client) -> None:
    bury(detail="Traceback: key=hunter2")
    assert api.get("/dead-letters").json()["items"][0]["last_error"] is None
    assert "hunter2" not in api.get("/dead-letters").content.decode()
    assert staff.get("/v1/dead-letters").json()["items"][0]["last_error"] == "permanent: Traceback: key=hunter2"


def test_a_dead_letter_is_run_again_once(api: make.Api) -> None:
    dead = bury()
    answer = api.post(f"/dead-letters/{dead.dispatch_id}/replay", raw=b"")
    told = answer.json()
    assert (answer.status_code, answer["Location"]) == (202, f"/v1/runs/{told['run_id']}")
    assert (told["replay_of"], told["status"], told["thread_id"]) == (str(dead.run_id), "created", str(dead.thread_id))
    run = api.get(f"/runs/{told['run_id']}").json()
    assert (run["replay_of_id"], run["dispatch"]["id"]) == (str(dead.run_id), told["dispatch_id"])
    assert Event.objects.get(kind="DeadLetterReplayed").payload["by"].startswith("token ")
    with scene.nothing_changes():
        for path in ("replay", "discard"):
            refused = api.post(f"/dead-letters/{dead.dispatch_id}/{path}", {})
            found = make.problem_of(refused)
            assert (refused.status_code, found["code"]) == (409, "already_resolved")
            assert (found["resolution"], found["run_id"]) == ("replayed", told["run_id"])
    assert api.get("/dead-letters").json()["items"] == []
    assert str(scene.taken().run_id) == told["run_id"]


def test_a_repeated_replay_gets_the_first_answer(api: make.Api) -> None:
    dead = bury()
    first = api.post(f"/dead-letters/{dead.dispatch_id}/replay", {"fresh": True}, idempotency_key="once")
    repeat = api.post(f"/dead-letters/{dead.dispatch_id}/replay", {"fresh": True}, idempotency_key="once")
    assert (repeat.status_code, repeat.content) == (202, first.content)
    assert (repeat["Idempotency-Replayed"], repeat["Location"]) == ("true", first["Location"])
    assert Run.objects.filter(replay_of=dead.run_id).count() == 1


def test_a_discarded_dead_letter_is_shown_as_such_and_listed_no_more(api: make.Api) -> None:
    dead = bury()
    answer = api.post(f"/dead-letters/{dead.dispatch_id}/discard", {"reason": "known"})
    assert (answer.status_code, answer.json()["resolution"]) == (200, "discarded")
    assert api.get("/dead-letters").json()["items"] == []
    assert api.get(f"/runs/{dead.run_id}/dispatches").json()["items"][0]["resolution"] == "discarded"
    told = Event.objects.get(kind="DeadLetterDiscarded")
    assert (told.payload["reason"], told.visibility) == ("known", "internal")


def test_many_are_run_again_by_filter_and_the_answer_says_what_is_left(api: make.Api) -> None:
    stuck = bury(dedupe_key="held", code="timed_out")
    scene.post(dedupe_key="held", agent="analyst")
    letters = [bury(code="timed_out") for _ in range(3)]
    other = bury()
    answer = api.post("/dead-letters/replay", {"filter": {"code": "timed_out"}, "limit": 2})
    told = answer.json()
    assert answer.status_code == 200
    assert [one["replay_of"] for one in told["replayed"]] == [str(one.run_id) for one in letters[:2]]
    assert told["refused"] == [{"dispatch_id": str(stuck.dispatch_id), "code": "duplicate_key"}]
    assert told["has_more"] is True
    rest = api.post("/dead-letters/replay", {"filter": {"code": "timed_out", "created_after": None}}).json()
    assert ([one["replay_of"] for one in rest["replayed"]], rest["has_more"]) == ([str(letters[2].run_id)], False)
    left = Dispatch.objects.dead_letters().values_list("pk", flat=True)
    assert set(left) == {stuck.dispatch_id, other.dispatch_id}


def test_another_scope_s_dead_letters_are_not_there() -> None:
    dead = bury()
    other = used(make.api(scope="other"))
    with scene.nothing_changes():
        assert other.post("/dead-letters/replay", {"filter": {}}).json()["replayed"] == []
    for path in ("replay", "discard"):
        answer = other.post(f"/dead-letters/{dead.dispatch_id}/{path}", {})
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "dead_letter_not_found")
    assert scene.dispatch(dead).resolution == ""


REFUSED: dict[str, tuple[str, Any, str, str]] = {
    "no filter": ("/dead-letters/replay", {}, "filter", "required"),
    "filter null": ("/dead-letters/replay", {"filter": None}, "filter", "not_an_object"),
    "filter a list": ("/dead-letters/replay", {"filter": []}, "filter", "not_an_object"),
    "unknown filter": ("/dead-letters/replay", {"filter": {"agnet": "x"}}, "filter.agnet", "unknown_field"),
    "blank filter": ("/dead-letters/replay", {"filter": {"agent": " "}}, "filter.agent", "blank"),
    "filter a number": ("/dead-letters/replay", {"filter": {"code": 5}}, "filter.code", "not_a_string"),
    "filter no time": (
        "/dead-letters/replay", {"filter": {"created_after": "x"}}, "filter.created_after", "not_a_time",
    ),
    "limit 0": ("/dead-letters/replay", {"filter": {}, "limit": 0}, "limit", "out_of_range"),
    "limit 201": ("/dead-letters/replay", {"filter": {}, "limit": 201}, "limit", "out_of_range"),
    "fresh a string": ("/dead-letters/replay", {"filter": {}, "fresh": "yes"}, "fresh", "not_a_boolean"),
    "fresh 1": (f"/dead-letters/{uuid.uuid4()}/replay", {"fresh": 1}, "fresh", "not_a_boolean"),
    "reason a list": (f"/dead-letters/{uuid.uuid4()}/replay", {"reason": []}, "reason", "unknown_field"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_422_names_the_field_and_changes_nothing(name: str, api: make.Api) -> None:
    path, body, field, code = REFUSED[name]
    bury()
    with scene.nothing_changes():
        answer = api.post(path, body)
    [error] = make.problem_of(answer)["errors"]
    assert (answer.status_code, error["field"], error["code"]) == (422, field, code)


def test_the_staff_starts_a_scheduled_run_now(staff: Client) -> None:
    posted = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    answer = staff.post(f"/v1/runs/{posted.run_id}/run-now", content_type="application/json")
    assert (answer.status_code, answer.json()["changed"]) == (200, True)
    assert staff.post(f"/v1/runs/{posted.run_id}/run-now", content_type="application/json").json()["changed"] is False
    assert scene.taken().run_id == posted.run_id
    refused = staff.post(f"/v1/runs/{posted.run_id}/run-now", content_type="application/json")
    assert (refused.status_code, make.problem_of(refused)["code"]) == (409, "not_scheduled")


def test_run_now_is_for_the_staff_alone_and_no_token_does_it(api: make.Api, client: Client) -> None:
    posted = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    boss = User.objects.create_user("boss", is_staff=True)
    of_staff = make.api(secret=make.token(scope=scene.SCOPE, user=boss)[1])
    client.force_login(User.objects.create_user("ann"))
    answers = [api.post(f"/runs/{posted.run_id}/run-now"), of_staff.post(f"/runs/{posted.run_id}/run-now")]
    answers.append(client.post(f"/v1/runs/{posted.run_id}/run-now", content_type="application/json"))
    for answer in answers:
        assert (answer.status_code, make.problem_of(answer)["code"]) == (403, "permission_denied")
    assert scene.flag(posted) == scene.WAKING
