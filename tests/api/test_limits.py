"""Limits over HTTP: staff set and remove them in their session; everybody sees which one keeps their work."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from mailbox_app.models import Limit, Permit
from mailbox_app.operations import permits, settle
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db

PATH = "/v1/limits"
NAMES = {"agent": "echo", "scope": scene.SCOPE}
KINDS = pytest.mark.parametrize("kind", ["agent", "scope"])


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": "tests.api.test_dead_letters.scope_of_user"}
    client = Client()
    client.force_login(User.objects.create_user("ada", is_staff=True))
    return client


def put(client: Client, kind: str, name: str, **more: Any) -> Any:
    return client.put(PATH, {"kind": kind, "name": name, **more}, content_type="application/json")


def delete(client: Client, kind: str, name: str) -> Any:
    return client.delete(PATH, query_params={"kind": kind, "name": name})


@KINDS
def test_staff_set_see_replace_and_remove(staff: Client, kind: str) -> None:
    name = NAMES[kind]
    made = put(staff, kind, name, most=1, note="their plan")
    assert made.status_code == 201, made.content
    shown = {
        "kind": kind,
        "name": name,
        "most": 1,
        "held": 0,
        "starts": None,
        "seconds": None,
        "note": "their plan",
        "is_settling": False,
        "set_by": "user ada",
        "set_at": Limit.objects.get().set_at.isoformat().replace("+00:00", "Z"),
    }
    assert made.json() == shown
    first, second = scene.post(), scene.post()
    assert scene.taken().run_id == first.run_id
    assert scene.take() is None
    assert staff.get(PATH).json() == {"items": [{**shown, "held": 1}], "next_cursor": None, "has_more": False}
    again = put(staff, kind, name, most=2)
    assert (again.status_code, again.json()["most"], again.json()["held"], again.json()["note"]) == (200, 2, 1, "")
    permits.unblock_some()
    assert scene.taken().run_id == second.run_id
    assert delete(staff, kind, name).status_code == 204
    assert staff.get(PATH).json()["items"] == []
    gone = delete(staff, kind, name)
    assert (gone.status_code, make.problem_of(gone)["code"]) == (404, "not_limited")


def test_a_rate_is_set_and_shown(staff: Client) -> None:
    made = put(staff, "agent", "echo", starts=600, seconds=60)
    assert made.status_code == 201
    assert [made.json()[name] for name in ("most", "held", "starts", "seconds")] == [None, 0, 600, 60.0]


@KINDS
def test_a_run_and_its_thread_name_the_limit_that_keeps_them_and_only_while_it_does(staff: Client, kind: str) -> None:
    put(staff, kind, NAMES[kind], most=1, note="their plan")
    running, waiting = scene.posted_and_taken(), scene.post()
    assert scene.take() is None

    def keeps(of: Any, **headers: str) -> list[Any]:
        client = Client() if headers else staff
        run = client.get(f"/v1/runs/{of.run_id}", headers=headers).json()
        thread = client.get(f"/v1/threads/{of.thread_id}", headers=headers).json()
        assert run["limits"] == thread["limits"]
        return list(run["limits"])

    told = {"kind": kind, "name": NAMES[kind], "most": 1, "starts": None, "seconds": None, "note": "their plan"}
    assert keeps(waiting) == [{**told, "held": 1}]
    assert keeps(waiting, authorization=f"Bearer {make.token(scope=scene.SCOPE)[1]}") == [{**told, "held": None}], (
        "how busy others are is not theirs to know"
    )
    reason = staff.get(f"/v1/threads/{waiting.thread_id}").json()["blocked_reason"]
    assert reason == {"agent": "", "scope": "scope_limit"}[kind]
    assert keeps(running) == [], "it runs"
    settle.complete(running)
    permits.unblock_some()
    assert keeps(waiting) == []
    assert scene.taken().run_id == waiting.run_id


def test_a_run_that_waits_for_a_start_names_the_rate(staff: Client) -> None:
    put(staff, "agent", "echo", starts=1, seconds=3600)
    scene.posted_and_taken()
    waiting = scene.post()
    [found] = staff.get(f"/v1/runs/{waiting.run_id}").json()["limits"]
    assert (found["name"], found["starts"], found["seconds"]) == ("echo", 1, 3600.0)


def test_limits_are_read_page_by_page_the_latest_set_first_and_none_that_is_over(staff: Client) -> None:
    for kind, name in (("agent", "echo"), ("agent", "b"), ("scope", "another"), ("scope", scene.SCOPE)):
        assert put(staff, kind, name, most=1).status_code == 201
    scene.posted_and_taken()
    delete(staff, "agent", "echo")
    assert Limit.objects.count() == 4, "the removed one stays until its permit is back"
    put(staff, "agent", "b", most=2)
    seen, cursor = [], {}
    while True:
        page = staff.get(PATH, {"limit": 2, **cursor}).json()
        seen.append([item["name"] for item in page["items"]])
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [["b", scene.SCOPE], ["another"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "agent", "most": 1}, "name"),
        ({"kind": "agent", "name": None, "most": 1}, "name"),
        ({"kind": "queue", "name": "x", "most": 1}, "kind"),
        ({"kind": "agent", "name": "x"}, "most"),
        ({"kind": "agent", "name": "x", "most": None}, "most"),
        ({"kind": "agent", "name": "x", "most": "3"}, "most"),
        ({"kind": "agent", "name": "x", "most": 1001}, "most"),
        ({"kind": "agent", "name": "x", "starts": 3}, "seconds"),
        ({"kind": "scope", "name": "x", "starts": 3, "seconds": 3}, "starts"),
        ({"kind": "agent", "name": "x", "most": 1, "until": 1}, "until"),
    ],
)
def test_a_wrong_body_is_refused_and_limits_nothing(staff: Client, body: Any, field: str) -> None:
    answer = staff.put(PATH, body, content_type="application/json")
    assert (answer.status_code, make.problem_of(answer)["errors"][0]["field"]) == (422, field)
    assert not Limit.objects.exists()


def test_a_removal_that_names_nothing_is_422(staff: Client) -> None:
    for query in ({}, {"kind": "agent"}, {"name": "echo"}, {"kind": "queue", "name": "x"}):
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
    assert not Limit.objects.exists()
    assert not Permit.objects.exists()
