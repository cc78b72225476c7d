"""POST /v1/runs: what is accepted, and what it leaves behind."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.urls import include, path
from pytest_django import DjangoAssertNumQueries

from mailbox_app.models import Dispatch, Message, Run, Thread
from tests import make

pytestmark = pytest.mark.django_db

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}

# The app under a prefix and a namespace of the team's own, among the team's own routes.
urlpatterns = [path("team/queue/", include(("mailbox_app.api.v1.urls", "mailbox"), namespace="their-queue"))]


def test_an_accepted_run_is_answered_with_all_its_ids() -> None:
    answer = make.api().post("/runs", HELLO)
    assert answer.status_code == 202
    run, dispatch, message = Run.objects.get(), Dispatch.objects.get(), Message.objects.get()
    assert answer.json() == {
        "thread_id": str(Thread.objects.get().pk),
        "run_id": str(run.pk),
        "dispatch_id": str(dispatch.pk),
        "message_ids": [str(message.pk)],
        "status": "created",
        "interrupted": None,
    }
    assert answer["Location"] == f"/v1/runs/{run.pk}"
    assert run.activation["origin"] == "rest"


def test_every_field_arrives() -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    content = [{"type": "text", "text": "Grüße 😀"}, {"type": "image", "url": "https://example.org/a.png"}]
    answer = make.api().post(
        "/runs",
        {
            "agent": "echo",
            "thread_key": "customer-42",
            "messages": [
                {
                    "content": content,
                    "role": "system",
                    "client_id": "m-1",
                    "metadata": {"a": [1, None]},
                    "sender": "ann",
                    "visibility": "internal",
                }
            ],
            "if_active": "reject",
            "priority": 0,
            "available_at": later.astimezone().isoformat(),
            "dedupe_key": "once",
            "client_id": "mine-1",
            "max_attempts": 1000,
            "options": {"depth": 2},
            "metadata": {"ticket": "T-1"},
        },
    )
    assert answer.status_code == 202
    run, dispatch, message = Run.objects.get(), Dispatch.objects.get(), Message.objects.get()
    assert Thread.objects.get().key == "customer-42"
    assert (run.agent, run.dedupe_key, run.options, run.metadata) == ("echo", "once", {"depth": 2}, {"ticket": "T-1"})
    assert (dispatch.priority, dispatch.max_attempts, dispatch.available_at) == (0, 1000, later)
    assert (message.content, message.role, message.client_id) == (content, "system", "m-1")
    assert (message.metadata, message.sender, message.visibility) == ({"a": [1, None]}, "ann", "internal")
    shown = make.api().get(f"/runs/{run.pk}").json()
    assert (shown["origin"], shown["adapter"], shown["sender"]) == ("rest", "rest", "ann")
    (listed,) = make.api().get("/runs").json()["items"]
    assert (listed["origin"], listed["adapter"], listed["sender"]) == ("rest", "rest", "ann")


def test_a_run_whose_snapshot_cannot_be_read_is_shown_all_the_same() -> None:
    api = make.api()
    run_id = api.post("/runs", HELLO).json()["run_id"]
    Run.objects.update(activation=[1])
    shown = api.get(f"/runs/{run_id}").json()
    assert (shown["id"], shown["origin"], shown["options"]) == (run_id, "", {})
    assert [one["id"] for one in api.get("/runs").json()["items"]] == [run_id]


def test_a_thread_key_names_the_same_thread_each_time() -> None:
    api = make.api()
    first = api.post("/runs", {**HELLO, "thread_key": "k"}).json()
    second = api.post("/runs", {**HELLO, "thread_key": "k"}).json()
    assert first["thread_id"] == second["thread_id"]
    assert first["run_id"] != second["run_id"]


def test_the_run_is_made_in_the_scope_of_the_token() -> None:
    make.api(scope="acme").post("/runs", HELLO)
    assert Run.objects.get().scope == Thread.objects.get().scope == Message.objects.get().scope == "acme"


def test_reject_while_a_run_is_open_is_409_with_the_run() -> None:
    run = make.run()
    Run.objects.filter(pk=run.pk).update(status="running", started_at=run.created_at)
    Thread.objects.filter(pk=run.thread_id).update(open_run_id=run.pk)
    before = make.row_counts()
    api = make.api()
    answer = api.post("/runs", {**HELLO, "thread_id": str(run.thread_id), "if_active": "reject"})
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["run_id"]) == (409, "active_run_conflict", str(run.pk))
    assert make.row_counts() == {**before, "ApiToken": 1}


def test_a_run_is_found_by_the_id_its_caller_has_given_it() -> None:
    api = make.api(scope="acme")
    posted = api.post("/runs", {**HELLO, "client_id": "mine-1"}).json()["run_id"]
    api.post("/runs", HELLO)
    [found] = api.get("/runs", client_id="mine-1").json()["items"]
    assert (found["id"], found["client_id"]) == (posted, "mine-1")
    assert make.api(scope="other").get("/runs", client_id="mine-1").json()["items"] == []
    answer = api.post("/runs", {**HELLO, "client_id": "mine-1"})
    assert (answer.status_code, answer.json()["code"], answer.json()["run_id"]) == (409, "already_exists", posted)


def test_a_dedupe_key_in_use_is_409_with_the_holder() -> None:
    api = make.api()
    holder = api.post("/runs", {**HELLO, "dedupe_key": "once"}).json()["run_id"]
    before = make.row_counts()
    answer = api.post("/runs", {**HELLO, "dedupe_key": "once"})
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["run_id"]) == (409, "duplicate_key", holder)
    assert make.row_counts() == before


def test_a_client_id_in_use_is_409_and_names_the_field() -> None:
    api = make.api()
    body = {"agent": "echo", "messages": [{"content": "Hello", "client_id": "m-1"}]}
    assert api.post("/runs", body).status_code == 202
    before = make.row_counts()
    answer = api.post("/runs", body)
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"]) == (409, "already_exists")
    assert found["errors"][0]["field"] == "messages.client_id"
    assert make.row_counts() == before


def test_a_deleted_thread_is_410() -> None:
    thread = make.thread()
    Thread.objects.filter(pk=thread.pk).update(deleted_at=thread.created_at)
    answer = make.api().post("/runs", {**HELLO, "thread_id": str(thread.pk)})
    assert (answer.status_code, make.problem_of(answer)["code"]) == (410, "gone")


def test_an_unknown_thread_is_404() -> None:
    unknown = str(uuid.uuid4())
    found = make.problem_of(make.api().post("/runs", {**HELLO, "thread_id": unknown}))
    assert (found["status"], found["thread_id"]) == (404, unknown)


def test_the_addresses_follow_the_prefix_and_namespace_the_app_is_mounted_at(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    api = make.api(prefix="/team/queue")
    answer = api.post("/runs", HELLO)
    assert answer["Location"] == f"/team/queue/runs/{answer.json()['run_id']}"
    assert Client().get(answer["Location"], headers={"authorization": f"Bearer {api.secret}"}).status_code == 200


def test_a_project_of_other_framework_defaults_changes_nothing(settings: Any) -> None:
    settings.REST_FRAMEWORK = {
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.BrowsableAPIRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.FormParser"],
        "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.AnonRateThrottle"],
        "DEFAULT_THROTTLE_RATES": {"anon": "1/day"},
        "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.AcceptHeaderVersioning",
        "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination",
        "EXCEPTION_HANDLER": "nowhere.at.all",
        "DATETIME_FORMAT": "%d.%m.%Y",
        "UNAUTHENTICATED_USER": None,
        "NON_FIELD_ERRORS_KEY": "x",
        "COMPACT_JSON": False,
    }
    settings.TIME_ZONE = "Asia/Tokyo"
    api = make.api()
    first = api.post("/runs", HELLO)
    assert first.status_code == 202
    shown = api.get(f"/runs/{first.json()['run_id']}").json()
    assert datetime.fromisoformat(shown["created_at"]).tzinfo == UTC
    assert shown["created_at"].endswith("Z")
    assert api.post("/runs", {}).status_code == 422
    assert Client().get("/v1/threads").status_code == 401


def test_a_project_with_atomic_requests_still_has_each_verb_in_a_transaction_of_its_own(
    monkeypatch: pytest.MonkeyPatch, transactional_db: None
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    looked_for_token_in_a_transaction = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "FROM mailbox_apitoken" in sql:
            looked_for_token_in_a_transaction.append(connection.in_atomic_block)
        return execute(sql, params, many, context)

    api = make.api()
    with connection.execute_wrapper(look):
        assert api.post("/runs", HELLO).status_code == 202
        assert api.post("/runs", {}).status_code == 422
    assert looked_for_token_in_a_transaction == [False, False]
    assert Run.objects.count() == 1


def test_a_submission_costs_a_bounded_number_of_queries(
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    api = make.api()
    api.post("/runs", {**HELLO, "thread_key": "k"})
    for messages in (1, 50):
        with django_assert_max_num_queries(20):
            api.post("/runs", {**HELLO, "thread_key": "k", "messages": [{"content": "Hello"}] * messages})
