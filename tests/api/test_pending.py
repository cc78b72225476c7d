"""What a thread has not read, over HTTP: listed, edited, withdrawn, put in order and released, under guards."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailbox_app.models import Message, Run, Thread
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def path(run: Run, *more: Any) -> str:
    return "/".join([f"/threads/{run.thread_id}/pending", *map(str, more)])


def listed(api: make.Api, run: Run) -> Any:
    answer = api.get(path(run))
    assert answer.status_code == 200, answer.content
    return answer.json()


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem details of this refusal."""
    problem = make.problem_of(answer)
    assert (answer.status_code, problem["code"]) == (status, code)
    return problem


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Assert that the block leaves every row as it was, but for when a token was used."""
    before = {name: rows for name, rows in scene.tables().items() if name != "ApiToken"}
    yield
    assert {name: rows for name, rows in scene.tables().items() if name != "ApiToken"} == before


def contents(page: Any) -> list[str]:
    return [item["content"] for item in page["items"]]


def delete(api: make.Api, run: Run, message_id: Any, **query: Any) -> Any:
    """DELETE with a query."""
    target = f"{api.prefix}{path(run, message_id)}"
    return api.client.delete(target, query_params=query, headers=api._headers({}))


def test_a_pending_message_is_listed_with_all_that_decides_when_it_is_read() -> None:
    api, run = make.api(), make.run(messages=[{"content": "hello", "sender": "ada", "metadata": {"a": 1}}])
    message = Message.objects.get()
    page = listed(api, run)
    assert page == {
        "items": [
            {
                "id": str(message.pk),
                "client_id": None,
                "thread_id": str(run.thread_id),
                "position": message.position,
                "revision": 1,
                "held": False,
                "role": "user",
                "content": "hello",
                "visibility": "public",
                "sender": "ada",
                "metadata": {"a": 1},
                "run_id": str(run.pk),
                "boundary": "new_run",
                "granularity": "batch",
                "barrier": False,
                "target_run_id": None,
                "fallback": "",
                "created_at": message.created_at.isoformat().replace("+00:00", "Z"),
            }
        ],
        "pending_revision": Thread.objects.get().pending_revision,
        "next_cursor": message.position,
        "has_more": False,
    }
    scene.taken()
    assert listed(api, run)["items"] == []


def test_what_an_interrupt_holds_is_listed_and_released() -> None:
    api, run = make.api(), make.run(text="first")
    make.run(text="second", thread_id=run.thread_id)
    assert [item["held"] for item in listed(api, run)["items"]] == [False, False]
    assert api.post(f"/threads/{run.thread_id}/interrupt").status_code == 200
    page = api.get(path(run), limit=1).json()
    assert [(item["content"], item["held"], item["run_id"]) for item in page["items"]] == [("first", True, str(run.pk))]
    assert page["has_more"] is True
    rest = api.get(path(run), after=page["next_cursor"]).json()
    assert (contents(rest), rest["has_more"]) == (["second"], False)
    body = {"message_ids": [page["items"][0]["id"]], "pending_revision": page["pending_revision"]}
    released = api.post(path(run, "release"), body).json()
    assert (released["thread_id"], released["message_ids"]) == (str(run.thread_id), body["message_ids"])
    assert [str(scene.taken().run_id)] == released["run_ids"]
    assert refused(api.post(path(run, "release"), body), 409, "revision_conflict")["pending_revision"] == (
        Thread.objects.get().pending_revision
    )
    assert len(api.post(path(run, "release")).json()["message_ids"]) == 1
    assert api.post(path(run, "release")).json() == {
        "thread_id": str(run.thread_id),
        "message_ids": [],
        "run_ids": [],
        "pending_revision": Thread.objects.get().pending_revision,
    }


def test_a_message_is_edited_under_its_revision() -> None:
    api, run = make.api(), make.run()
    [item] = listed(api, run)["items"]
    answer = api.patch(path(run, item["id"]), {"content": "better", "revision": item["revision"]})
    assert answer.status_code == 200, answer.content
    page = listed(api, run)
    assert answer.json() == {"message": page["items"][0], "pending_revision": page["pending_revision"]}
    assert (page["items"][0]["content"], page["items"][0]["revision"]) == ("better", 2)
    stale = api.patch(path(run, item["id"]), {"content": "mine", "revision": item["revision"]})
    problem = refused(stale, 409, "revision_conflict")
    assert (problem["revision"], problem["pending_revision"]) == (2, page["pending_revision"])
    assert contents(listed(api, run)) == ["better"]
    assert [message.content for message in scene.taken().messages] == ["better"]
    problem = refused(api.patch(path(run, item["id"]), {"content": "late"}), 409, "already_consumed")
    assert (problem["run_id"], problem["seq"]) == (str(run.pk), 1)


def test_a_message_is_withdrawn_and_says_what_became_of_its_run() -> None:
    api, run = make.api(), make.run(messages=["one", "two"])
    one, two = (item["id"] for item in listed(api, run)["items"])
    refused(delete(api, run, one, revision=7), 409, "revision_conflict")
    answer = delete(api, run, one, revision=1, reason="typo")
    assert answer.status_code == 200, answer.content
    assert answer.json() == {
        "thread_id": str(run.thread_id),
        "message_id": one,
        "cancelled_run_id": None,
        "withdrawn_dispatch_id": None,
        "pending_revision": Thread.objects.get().pending_revision,
    }
    assert Message.objects.get(pk=one).retract_reason == "typo"
    refused(delete(api, run, one), 410, "gone")
    assert delete(api, run, two).json()["cancelled_run_id"] == str(run.pk)
    assert api.get(f"/runs/{run.pk}").json()["termination"] == {"type": "cancelled", "detail": "messages_retracted"}
    other = make.run()
    [item] = listed(api, other)["items"]
    settle.complete(scene.taken())
    refused(delete(api, other, item["id"]), 409, "already_consumed")


def test_what_is_pending_is_put_in_order_under_its_revision() -> None:
    api, run = make.api(), make.run(text="first")
    second = make.run(text="second", thread_id=run.thread_id)
    page = listed(api, run)
    ids = [item["id"] for item in page["items"]]
    body = {"message_ids": ids[::-1], "pending_revision": page["pending_revision"]}
    answer = api.put(path(run, "order"), body)
    assert answer.status_code == 200, answer.content
    assert answer.json() == {
        "thread_id": str(run.thread_id),
        "message_ids": ids[::-1],
        "run_ids": [str(second.pk), str(run.pk)],
        "pending_revision": page["pending_revision"] + 1,
    }
    assert contents(listed(api, run)) == ["second", "first"]
    problem = refused(api.put(path(run, "order"), body), 409, "revision_conflict")
    assert problem["pending_revision"] == page["pending_revision"] + 1
    assert scene.taken().run_id == second.pk
    refused(api.put(path(run, "order"), {"message_ids": ids}), 409, "already_consumed")


REFUSALS: dict[str, tuple[str, Any, int, str]] = {
    "edit nothing": ("PATCH", {}, 422, "content"),
    "edit a role": ("PATCH", {"content": "x", "role": "system"}, 422, "role"),
    "edit the id": ("PATCH", {"content": "x", "id": "other"}, 422, "id"),
    "edit to blank": ("PATCH", {"content": " "}, 422, "content"),
    "a revision that is text": ("PATCH", {"content": "x", "revision": "1"}, 422, "revision"),
    "a misspelt order": ("PUT", {"message_id": []}, 422, "message_id"),
    "an order of nothing": ("PUT", {"message_ids": []}, 422, "message_ids"),
    "no order": ("PUT", {}, 422, "message_ids"),
    "a guard in the body of a DELETE": ("DELETE", {"revision": 1}, 422, "revision"),
    "a misspelt release": ("POST", {"message_idz": []}, 422, "message_idz"),
}


@pytest.mark.parametrize(("method", "body", "status", "field"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_of_the_wrong_form_is_refused_by_name(method: str, body: Any, status: int, field: str) -> None:
    api, run = make.api(), make.run()
    ends = {"PUT": "order", "POST": "release"}
    target = path(run, ends.get(method, Message.objects.get().pk))
    with nothing_changes():
        answer = api.client.generic(
            method,
            f"{api.prefix}{target}",
            json.dumps(body),
            content_type="application/json",
            headers=api._headers({}),
        )
    problem = refused(answer, status, "invalid_input")
    assert problem["errors"][0]["field"] == field


def test_a_query_of_the_wrong_form_is_refused() -> None:
    api, run = make.api(), make.run()
    message_id = Message.objects.get().pk
    with nothing_changes():
        for query in ({"revision": "x"}, {"revision": "-1"}):
            refused(delete(api, run, message_id, **query), 400, "malformed_parameter")
        refused(delete(api, run, message_id, revison=1), 422, "invalid_input")
        refused(delete(api, run, message_id, reason="x" * 101), 422, "invalid_input")
        refused(api.get(path(run), after="x"), 400, "malformed_cursor")
        refused(api.patch(path(run, "no-id"), {"content": "x"}), 400, "malformed_id")


def test_another_scope_s_and_unknown_messages_are_not_found() -> None:
    api, other, run = make.api(), make.api(scope="other"), make.run()
    message_id = Message.objects.get().pk
    with nothing_changes():
        for method, target, body in (
            ("patch", path(run, message_id), {"content": "x"}),
            ("put", path(run, "order"), {"message_ids": [str(message_id)]}),
            ("post", path(run, "release"), {}),
        ):
            refused(getattr(other, method)(target, body), 404, "thread_not_found")
        refused(other.get(path(run)), 404, "thread_not_found")
        refused(other.delete(path(run, message_id)), 404, "thread_not_found")
        unknown = str(uuid.uuid4())
        refused(api.patch(path(run, unknown), {"content": "x"}), 404, "message_not_found")
        refused(api.delete(path(run, unknown)), 404, "message_not_found")
        refused(api.put(path(run, "order"), {"message_ids": [unknown]}), 404, "message_not_found")
        refused(api.post(path(run, "release"), {"message_ids": [unknown]}), 404, "message_not_found")


def test_a_deleted_thread_s_are_gone() -> None:
    api, run = make.api(), make.run()
    message_id = Message.objects.get().pk
    settle.complete(scene.taken())
    assert api.delete(f"/threads/{run.thread_id}").status_code == 204
    refused(api.patch(path(run, message_id), {"content": "x"}), 410, "gone")
    refused(api.get(path(run)), 410, "gone")
