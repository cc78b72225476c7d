"""Every route against another tenant's things: not there, whatever is asked of them, and nothing changes by asking."""

import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern

from mailbox_app.api.v1 import urls
from mailbox_app.models import Message, Thread
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene
from tests.operations.asking import waiting

pytestmark = pytest.mark.django_db

HELLO: dict[str, Any] = {"messages": [{"content": "hello"}]}
# What each method of a route with an id is sent, and would be answered for if the thing were the caller's own.
OF_ONE: dict[tuple[str, str], dict[str, Any] | None] = {
    ("run", "get"): None,
    ("run-events", "get"): None,
    ("run-dispatches", "get"): None,
    ("run-wait", "get"): {"timeout": "0"},
    ("run-cancel", "post"): {"reason": "mine"},
    ("run-now", "post"): {},
    ("run-resume", "post"): {"payload": 1},
    ("run-decision", "post"): {"ticket_id": "{ticket}", "action": "resume", "payload": {}},
    ("run-inputs", "post"): HELLO,
    ("thread", "get"): None,
    ("thread", "patch"): {"title": "mine"},
    ("thread", "delete"): None,
    ("thread-messages", "get"): None,
    ("thread-messages", "post"): HELLO,
    ("thread-interrupt", "post"): {},
    ("thread-cancel", "post"): {},
    ("thread-pending", "get"): None,
    ("thread-pending-order", "put"): {"message_ids": ["{message}"]},
    ("thread-pending-release", "post"): {},
    ("pending-message", "patch"): {"content": "mine"},
    ("pending-message", "delete"): None,
    ("thread-runs", "get"): None,
    ("thread-run-active", "get"): None,
    ("thread-run-latest", "get"): None,
    ("thread-dispatches", "get"): None,
    ("thread-events", "get"): None,
    ("dead-letter-replay", "post"): {},
    ("dead-letter-discard", "post"): {},
}
# What names another tenant's thing in the body.
IN_THE_BODY: dict[str, tuple[str, dict[str, Any]]] = {
    "a run": ("/runs", {**HELLO, "thread_id": "{thread}"}),
    "a run of a batch": ("/runs/batch", {"runs": [HELLO, {**HELLO, "thread_id": "{thread}"}]}),
    "a run that interrupts": ("/runs", {**HELLO, "thread_id": "{thread}", "if_active": "interrupt"}),
    "a run that steers": ("/runs", {**HELLO, "thread_id": "{thread}", "if_active": "steer"}),
}
# What shows many, and nothing of another tenant's.
LISTINGS = ("/runs", "/threads", "/waits", "/dead-letters")
# What has nothing to do with scopes, and what is tried elsewhere here: `IN_THE_BODY`, `LISTINGS`, the bulk replay.
NOT_OF_ONE = {
    *("runs", "runs-batch", "threads", "waits", "dead-letters", "dead-letters-replay"),
    *("agent-versions", "limits", "pauses", "schema", "docs"),
}
METHODS = ("get", "post", "put", "patch", "delete")
JSON = "application/json"


class Theirs:
    """A tenant with one of everything, and the ids of it."""

    def __init__(self) -> None:
        self.queued = scene.post("waits for its turn", available_at=scene.database_now() + timedelta(hours=1))
        dead = scene.posted_and_taken()
        settle.dead_letter(dead, code="permanent", message="no")
        asked, [ticket_id] = waiting()
        self.ids = {
            "thread": str(self.queued.thread_id),
            "run": str(self.queued.run_id),
            "message": str(Message.objects.get(run=self.queued.run_id).pk),
            "dispatch": str(dead.dispatch_id),
            "asking": str(asked.run_id),
            "home": str(asked.thread_id),
            "ticket": ticket_id,
        }

    def path(self, name: str) -> str:
        """The address of their thing."""
        [pattern] = [one for one in urls.urlpatterns if isinstance(one, URLPattern) and one.name == name]
        of_asking = {"thread": self.ids["home"], "run": self.ids["asking"]}
        ids = {**self.ids, **(of_asking if name in ("run-decision", "thread-run-active") else {})}
        return "/" + re.sub(r"<str:(\w+)_id>", lambda found: ids[found[1]], str(pattern.pattern))

    def filled(self, body: Any) -> Any:
        """The body with their ids."""
        match body:
            case dict():
                return {name: self.filled(value) for name, value in body.items()}
            case list():
                return [self.filled(value) for value in body]
            case str():
                return body.format(**self.ids)
        return body


@pytest.fixture
def theirs() -> Theirs:
    return Theirs()


Ask = Callable[..., HttpResponse]


def staff_of(scope: str, settings: Any) -> Ask:
    """Requests of somebody of the staff who lives in the scope: what staff alone may do is refused to others before
    anything is looked for."""
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": f"{__name__}.first_name_of"}
    client = Client()
    client.force_login(User.objects.create_user(f"staff of {scope}", is_staff=True, first_name=scope))

    def ask(method: str, path: str, body: Any = None) -> HttpResponse:
        if method == "get":
            return client.get(f"/v1{path}", body or {})
        return client.generic(method.upper(), f"/v1{path}", "" if body is None else json.dumps(body), JSON)

    return ask


def first_name_of(user: User) -> str:
    return user.first_name


def test_every_route_is_tried_here() -> None:
    named = {one.name: one for one in urls.urlpatterns if isinstance(one, URLPattern) and one.name is not None}
    with_id = {name: one for name, one in named.items() if "_id>" in str(one.pattern)}
    answered = {
        (name, method)
        for name, one in with_id.items()
        for method in METHODS
        if hasattr(one.callback.view_class, method)  # type: ignore[attr-defined]
    }
    assert answered == set(OF_ONE)
    assert set(named) - set(with_id) == NOT_OF_ONE


@pytest.mark.parametrize(("name", "method"), OF_ONE)
def test_what_is_another_tenant_s_is_answered_like_what_is_nobody_s(
    name: str, method: str, theirs: Theirs, settings: Any
) -> None:
    ask, body = staff_of("other", settings), theirs.filled(OF_ONE[name, method])
    with scene.nothing_changes():
        answer = ask(method, theirs.path(name), body)
        nobodys = {one: str(uuid.uuid4()) for one in theirs.ids.values()}
        unknown = re.sub("|".join(nobodys), lambda found: nobodys[found[0]], theirs.path(name))
        there_is_none = ask(method, unknown, body)
    assert make.problem_of(answer)["status"] == 404
    said = re.sub("|".join(nobodys), lambda found: nobodys[found[0]], answer.content.decode())
    assert said == there_is_none.content.decode()
    own = staff_of(scene.SCOPE, settings)(method, theirs.path(name), body)
    assert own.status_code in (200, 202, 204, 409), own.content
    assert own.status_code != 409 or make.problem_of(own)["code"] in ("thread_busy", "active_run_conflict")


@pytest.mark.parametrize("name", IN_THE_BODY)
def test_what_is_another_tenant_s_cannot_be_named_in_a_body(name: str, theirs: Theirs, settings: Any) -> None:
    path, body = IN_THE_BODY[name]
    ask = staff_of("other", settings)
    with scene.nothing_changes():
        answer = ask("post", path, theirs.filled(body))
    assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "thread_not_found")


@pytest.mark.parametrize("path", LISTINGS)
def test_no_listing_shows_what_is_another_tenant_s(path: str, theirs: Theirs, settings: Any) -> None:
    assert staff_of(scene.SCOPE, settings)("get", path).json()["items"]
    ask = staff_of("other", settings)
    assert ask("get", path).json() == {"items": [], "next_cursor": None, "has_more": False}


def test_no_filter_finds_and_no_replay_takes_what_is_another_tenant_s(theirs: Theirs, settings: Any) -> None:
    ask = staff_of("other", settings)
    with scene.nothing_changes():
        assert ask("get", "/runs", {"thread": theirs.ids["thread"]}).json().get("items", []) == []
        replayed = ask("post", "/dead-letters/replay", {"filter": {}}).json()
    assert replayed == {"replayed": [], "refused": [], "has_more": False}


def test_a_key_of_another_tenant_s_thread_names_a_thread_of_one_s_own(settings: Any) -> None:
    there = scene.post(thread_key="k", dedupe_key="d", messages=[{"content": "hello", "client_id": "m"}])
    body = {"messages": [{"content": "hello", "client_id": "m"}], "agent": "echo", "thread_key": "k", "dedupe_key": "d"}
    answer = staff_of("other", settings)("post", "/runs", body)
    assert answer.status_code == 202, answer.content
    assert answer.json()["thread_id"] != str(there.thread_id)
    assert Thread.objects.get(pk=answer.json()["thread_id"]).scope == "other"


def test_what_was_answered_to_another_tenant_is_not_answered_again(settings: Any) -> None:
    acme, other = make.api(scope="acme"), make.api(scope="other")
    one, two = (api.post("/runs", {**HELLO, "agent": "echo"}, idempotency_key="same") for api in (acme, other))
    assert one.json()["run_id"] != two.json()["run_id"]
    assert "Idempotency-Replayed" not in two
