"""Pauses over HTTP: staff pause and resume in their session; everybody sees why their work does not start."""

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from mailbox_app.models import Pause, Thread
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db

PATH = "/v1/pauses"


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("ada", is_staff=True))
    return client


def put(client: Client, kind: str, name: Any, **more: Any) -> Any:
    return client.put(PATH, {"kind": kind, "name": str(name), **more}, content_type="application/json")


def delete(client: Client, kind: str, name: Any) -> Any:
    return client.delete(PATH, query_params={"kind": kind, "name": str(name)})


@pytest.mark.parametrize("kind", ["agent", "queue", "thread"])
def test_staff_pause_see_and_resume(staff: Client, kind: str) -> None:
    run = make.run()
    name = {"agent": "echo", "queue": scene.QUEUE, "thread": str(run.thread_id)}[kind]
    made = put(staff, kind, name, note="provider is down")
    assert made.status_code == 201, made.content
    row = Pause.objects.get()
    shown = {
        "kind": kind,
        "name": name,
        "note": "provider is down",
        "paused_by": "user ada",
        "paused_at": row.paused_at.isoformat().replace("+00:00", "Z"),
    }
    assert made.json() == shown
    again = put(staff, kind, name, note="me too")
    assert (again.status_code, again.json()) == (200, shown)
    assert staff.get(PATH).json() == {"items": [shown], "next_cursor": None, "has_more": False}
    assert scene.take() is None
    assert make.api().get(f"/runs/{run.pk}").json()["pauses"] == [shown]
    assert make.api().get(f"/threads/{run.thread_id}").json()["pauses"] == [shown]
    assert delete(staff, kind, name).status_code == 204
    assert scene.taken().run_id == run.pk
    gone = delete(staff, kind, name)
    assert (gone.status_code, make.problem_of(gone)["code"]) == (404, "not_paused")


def test_a_run_says_what_keeps_it_from_starting_only_while_something_does(staff: Client) -> None:
    run, api = make.run(), make.api()

    def shown() -> tuple[list[str], str]:
        thread = api.get(f"/threads/{run.thread_id}").json()
        return [one["kind"] for one in api.get(f"/runs/{run.pk}").json()["pauses"]], thread["blocked_reason"]

    assert shown() == ([], "")
    put(staff, "queue", scene.QUEUE)
    put(staff, "thread", run.thread_id)
    put(staff, "agent", "another")
    assert shown() == (["queue", "thread"], "paused")
    delete(staff, "thread", run.thread_id)
    assert shown() == (["queue"], "")
    delete(staff, "queue", scene.QUEUE)
    taken = scene.taken()
    put(staff, "agent", "echo")
    assert shown() == ([], ""), "it has started"
    settle.complete(taken)
    assert shown() == ([], ""), "it is done"


def test_pauses_are_read_page_by_page_the_latest_first_without_those_of_other_scopes_threads(staff: Client) -> None:
    mine, theirs = make.thread(), make.thread(scope="other")
    for kind, name in (("agent", "a"), ("queue", "q"), ("thread", mine.pk)):
        assert put(staff, kind, name).status_code == 201
    Pause.objects.create(kind="thread", name=str(theirs.pk), scope="other")
    seen, cursor = [], {}
    while True:
        page = staff.get(PATH, {"limit": 2, **cursor}).json()
        seen.append([item["kind"] for item in page["items"]])
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [["thread", "queue"], ["agent"]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"kind": "agent"}, 422, "invalid_input"),
        ({"kind": "agent", "name": ""}, 422, "invalid_input"),
        ({"kind": "agent", "name": None}, 422, "invalid_input"),
        ({"kind": "run", "name": "x"}, 422, "invalid_input"),
        ({"kind": "thread", "name": "x"}, 422, "invalid_input"),
        ({"kind": "agent", "name": "x", "until": 1}, 422, "invalid_input"),
        ({"kind": "thread", "name": str(uuid.uuid4())}, 404, "thread_not_found"),
    ],
)
def test_a_wrong_body_is_refused_and_pauses_nothing(staff: Client, body: Any, status: int, code: str) -> None:
    answer = staff.put(PATH, body, content_type="application/json")
    assert (answer.status_code, make.problem_of(answer)["code"]) == (status, code)
    assert not Pause.objects.exists()


def test_another_scope_s_thread_is_404_for_both(staff: Client) -> None:
    thread = make.thread(scope="other")
    for answer in (put(staff, "thread", thread.pk), delete(staff, "thread", thread.pk)):
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "thread_not_found")
    assert not Thread.objects.get(pk=thread.pk).is_paused


def test_a_resume_that_names_nothing_is_422(staff: Client) -> None:
    for query in ({}, {"kind": "agent"}, {"name": "echo"}, {"kind": "run", "name": "x"}):
        answer = staff.delete(PATH, query_params=query)
        assert (answer.status_code, make.problem_of(answer)["code"]) == (422, "invalid_input")


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_nobody_else_may(method: str) -> None:
    anyone = Client()
    anyone.force_login(User.objects.create_user("eve"))
    admin = User.objects.create_user("root", is_staff=True)
    token = make.token(user=admin)[1]
    for client, headers, status in (
        (Client(), {}, 401),
        (anyone, {}, 403),
        (Client(), {"authorization": f"Bearer {token}"}, 403),
    ):
        assert getattr(client, method)(PATH, headers=headers).status_code == status
    assert not Pause.objects.exists()
