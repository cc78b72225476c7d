"""Threads: made, listed by activity, and their logs read piece by piece."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from mailbox_app.models import Thread
from tests import given, make

pytestmark = pytest.mark.django_db


def test_a_created_thread_is_shown_as_it_is_read_later() -> None:
    api = make.api()
    made = api.post("/threads", {"key": "k", "title": "T", "metadata": {"a": [1]}})
    assert made.status_code == 201
    thread = Thread.objects.get()
    assert made["Location"] == f"/v1/threads/{thread.pk}"
    assert made.json() == api.get(f"/threads/{thread.pk}").json()
    assert made.json() == {
        "id": str(thread.pk),
        "key": "k",
        "title": "T",
        "metadata": {"a": [1]},
        "parent_id": None,
        "last_seq": 0,
        "last_cursor": 1,
        "open_run_id": None,
        "latest_run_id": None,
        "blocked_reason": "",
        "pauses": [],
        "limits": [],
        "created_at": thread.created_at.isoformat().replace("+00:00", "Z"),
        "updated_at": thread.updated_at.isoformat().replace("+00:00", "Z"),
    }


def test_a_thread_needs_nothing_to_be_created() -> None:
    assert make.api().post("/threads", {}).status_code == 201


def test_a_key_in_use_is_409_and_names_the_field() -> None:
    api = make.api()
    api.post("/threads", {"key": "k"})
    before = make.row_counts()
    answer = api.post("/threads", {"key": "k"})
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["errors"][0]["field"]) == (409, "already_exists", "key")
    assert make.row_counts() == before


def test_the_key_of_a_deleted_thread_is_free_again() -> None:
    api = make.api()
    api.post("/threads", {"key": "k"})
    Thread.objects.update(deleted_at=Now())
    assert api.post("/threads", {"key": "k"}).status_code == 201


def test_threads_are_listed_by_latest_activity_each_once_also_where_times_are_equal() -> None:
    made = [given.thread(key=f"k{number}") for number in range(7)]
    Thread.objects.update(updated_at=Now())
    Thread.objects.filter(pk__in=[made[0].pk, made[6].pk]).update(updated_at=F("updated_at") - timedelta(days=1))
    api = make.api(scope="acme")
    seen: list[str] = []
    parameters: dict[str, Any] = {"limit": 2}
    while True:
        shown = api.get("/threads", **parameters).json()
        seen += [item["id"] for item in shown["items"]]
        if not shown["has_more"]:
            break
        parameters["cursor"] = shown["next_cursor"]
    assert shown["next_cursor"] is None
    ordered = Thread.objects.order_by("-updated_at", "-id").values_list("pk", flat=True)
    assert seen == [str(pk) for pk in ordered]
    assert {seen[-1], seen[-2]} == {str(made[0].pk), str(made[6].pk)}


def test_a_run_brings_its_thread_to_the_front() -> None:
    first = make.thread()
    Thread.objects.update(updated_at=Now() - timedelta(days=1))
    make.thread()
    make.run(thread_id=first.pk)
    assert make.api().get("/threads").json()["items"][0]["id"] == str(first.pk)


def test_deleted_threads_are_not_listed() -> None:
    make.thread()
    Thread.objects.update(deleted_at=Now())
    assert make.api().get("/threads").json() == {"items": [], "next_cursor": None, "has_more": False}


def test_a_cursor_that_was_tampered_with_or_belongs_to_another_listing_is_400() -> None:
    for number in range(3):
        make.thread(key=f"k{number}")
    api, other = make.api(), make.api(scope="other")
    cursor = api.get("/threads", limit=1).json()["next_cursor"]
    assert api.get("/threads", cursor=cursor).status_code == 200
    tampered = [cursor[:-1] + ("A" if cursor[-1] != "A" else "B"), cursor[1:], cursor.split(":")[0], "x", "", "a:b"]
    refused = [api.get("/threads", cursor=wrong) for wrong in tampered]
    refused += [api.get("/threads", cursor=cursor, key="k1"), other.get("/threads", cursor=cursor)]
    for answer in refused:
        found = make.problem_of(answer)
        assert (answer.status_code, found["code"], found["errors"][0]["field"]) == (400, "malformed_cursor", "cursor")


def test_a_key_that_cannot_be_stored_is_422_also_as_a_filter() -> None:
    for key in ("%00", "", "k" * 201):
        answer = make.api().get(f"/threads?key={key}")
        assert answer.status_code == 422
        assert make.problem_of(answer)["errors"][0]["field"] == "key"


def log(count: int, **fields: Any) -> Thread:
    thread = given.thread()
    for number in range(1, count + 1):
        given.message(thread=thread, status="committed", seq=number, content=f"message {number}", **fields)
    return thread


def test_the_log_is_read_forwards_and_backwards() -> None:
    thread = log(5)
    api = make.api(scope="acme")

    def walk(name: str, **parameters: Any) -> list[int]:
        seen: list[int] = []
        while True:
            shown = api.get(f"/threads/{thread.pk}/messages", limit=2, **parameters).json()
            seen += [item["seq"] for item in shown["items"]]
            if not shown["has_more"]:
                return seen
            parameters[name] = shown["next_cursor"]

    assert walk("after") == [1, 2, 3, 4, 5]
    assert walk("before", order="desc") == [5, 4, 3, 2, 1]
    assert walk("after", after=1, before=5) == [2, 3, 4]


def test_what_no_agent_has_read_yet_or_ever_will_is_not_in_the_log() -> None:
    thread = log(1)
    given.message(thread=thread, status="pending")
    given.message(thread=thread, status="retracted")
    shown = make.api(scope="acme").get(f"/threads/{thread.pk}/messages").json()
    assert [item["seq"] for item in shown["items"]] == [1]


@pytest.mark.parametrize(("visibility", "seqs"), [(None, [1]), ("public", [1]), ("internal", [2]), ("all", [1, 2])])
def test_internal_messages_are_shown_only_when_asked_for(visibility: str | None, seqs: list[int]) -> None:
    thread = log(1)
    given.message(thread=thread, status="committed", seq=2, visibility="internal")
    parameters = {} if visibility is None else {"visibility": visibility}
    shown = make.api(scope="acme").get(f"/threads/{thread.pk}/messages", **parameters).json()
    assert [item["seq"] for item in shown["items"]] == seqs


@pytest.mark.parametrize(("name", "value"), [("visibility", "secret"), ("order", "sideways"), ("order", "")])
def test_a_word_that_is_no_choice_is_422(name: str, value: str) -> None:
    thread = make.thread()
    answer = make.api().get(f"/threads/{thread.pk}/messages", **{name: value})
    assert answer.status_code == 422
    assert make.problem_of(answer)["errors"][0]["field"] == name


@pytest.mark.parametrize("name", ["after", "before"])
def test_a_bad_seq_is_400(name: str) -> None:
    thread = make.thread()
    answer = make.api().get(f"/threads/{thread.pk}/messages", **{name: "x"})
    assert (answer.status_code, make.problem_of(answer)["errors"][0]["field"]) == (400, name)


def test_the_log_of_a_thread_is_empty_404_or_410() -> None:
    thread = make.thread()
    api = make.api()
    assert api.get(f"/threads/{thread.pk}/messages").json() == {"items": [], "next_cursor": 0, "has_more": False}
    assert make.problem_of(api.get(f"/threads/{uuid.uuid4()}/messages"))["status"] == 404
    Thread.objects.update(deleted_at=Now())
    for path in (f"/threads/{thread.pk}/messages", f"/threads/{thread.pk}"):
        assert make.problem_of(api.get(path))["status"] == 410


def test_title_and_metadata_of_a_thread_are_changed_apart() -> None:
    thread = make.thread(key="k", title="T", metadata={"a": 1})
    api = make.api()
    for body, title, metadata in (
        ({"title": "New"}, "New", {"a": 1}),
        ({"metadata": {"b": [2]}}, "New", {"b": [2]}),
        ({"title": "", "metadata": {}}, "", {}),
        ({}, "", {}),
        ({"title": None}, "", {}),
    ):
        answer = api.patch(f"/threads/{thread.pk}", body)
        assert (answer.status_code, answer.json()["title"], answer.json()["metadata"]) == (200, title, metadata)
        assert answer.json() == api.get(f"/threads/{thread.pk}").json()
    assert answer.json()["key"] == "k"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"key": "other"}, 422, "key"),
        ({"title": "x" * 501}, 422, "title"),
        ({"title": 5}, 422, "title"),
        ({"metadata": []}, 422, "metadata"),
        ([], 422, "body"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(body: Any, status: int, field: str) -> None:
    thread = make.thread(title="T")
    thread.refresh_from_db()
    answer = make.api().patch(f"/threads/{thread.pk}", body)
    assert (answer.status_code, make.problem_of(answer)["errors"][0]["field"]) == (status, field)
    assert (Thread.objects.get().title, Thread.objects.get().updated_at) == ("T", thread.updated_at)


def test_a_thread_s_parent_is_the_one_whose_run_has_spawned_it_and_is_never_given() -> None:
    parent, thread, api = make.thread(), make.thread(), make.api()
    for answer in (
        api.post("/threads", {"parent_id": str(parent.pk)}),
        *(api.patch(f"/threads/{thread.pk}", {"parent_id": pk}) for pk in (str(parent.pk), str(thread.pk), None)),
    ):
        assert (answer.status_code, make.problem_of(answer)["errors"][0]["field"]) == (422, "parent_id")
    assert set(Thread.objects.values_list("parent_id", flat=True)) == {None}


def test_a_deleted_thread_is_410_for_every_route_and_its_key_free_again() -> None:
    api = make.api()
    thread = make.thread(key="k")
    answer = api.delete(f"/threads/{thread.pk}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/messages", "/runs", "/runs/active", "/runs/latest", "/dispatches", "/events"):
        gone = api.get(f"/threads/{thread.pk}{path}")
        assert (gone.status_code, make.problem_of(gone)["code"]) == (410, "gone")
    for gone in (
        api.delete(f"/threads/{thread.pk}"),
        api.patch(f"/threads/{thread.pk}", {"title": "T"}),
        api.post("/runs", {"agent": "echo", "thread_id": str(thread.pk), "messages": [{"content": "x"}]}),
    ):
        assert (gone.status_code, make.problem_of(gone)["code"]) == (410, "gone")
    assert api.get("/threads").json()["items"] == []
    assert api.post("/threads", {"key": "k"}).status_code == 201


def test_a_thread_with_work_to_do_is_not_deleted() -> None:
    run = make.run()
    answer = make.api().delete(f"/threads/{run.thread_id}")
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["run_id"]) == (409, "thread_busy", str(run.pk))
    assert Thread.objects.get().deleted_at is None


def test_another_scope_s_thread_is_neither_changed_nor_deleted() -> None:
    thread = make.thread(scope="other", title="T")
    api = make.api()
    for answer in (api.delete(f"/threads/{thread.pk}"), api.patch(f"/threads/{thread.pk}", {"title": "mine"})):
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "thread_not_found")
    assert (Thread.objects.get().title, Thread.objects.get().deleted_at) == ("T", None)
