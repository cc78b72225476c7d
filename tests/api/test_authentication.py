"""Who may call, and in which scope they find themselves."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from mailbox_app.models import ApiToken, Run
from tests import make

pytestmark = pytest.mark.django_db

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}
UNKNOWN = "0190a0a0-0000-7000-8000-000000000000"
ROUTES = [
    ("GET", "/v1/threads"),
    ("POST", "/v1/threads"),
    ("GET", f"/v1/threads/{UNKNOWN}"),
    ("GET", f"/v1/threads/{UNKNOWN}/messages"),
    ("GET", "/v1/runs"),
    ("POST", "/v1/runs"),
    ("POST", "/v1/runs/batch"),
    ("GET", f"/v1/runs/{UNKNOWN}/dispatches"),
    ("GET", f"/v1/runs/{UNKNOWN}/wait"),
    ("POST", f"/v1/runs/{UNKNOWN}/cancel"),
    ("POST", f"/v1/runs/{UNKNOWN}/run-now"),
    ("PATCH", f"/v1/threads/{UNKNOWN}"),
    ("DELETE", f"/v1/threads/{UNKNOWN}"),
    ("GET", f"/v1/threads/{UNKNOWN}/runs"),
    ("GET", f"/v1/threads/{UNKNOWN}/runs/active"),
    ("GET", f"/v1/threads/{UNKNOWN}/runs/latest"),
    ("GET", f"/v1/threads/{UNKNOWN}/dispatches"),
    ("GET", f"/v1/threads/{UNKNOWN}/events"),
    ("GET", "/v1/dead-letters"),
    ("POST", "/v1/dead-letters/replay"),
    ("POST", f"/v1/dead-letters/{UNKNOWN}/replay"),
    ("POST", f"/v1/dead-letters/{UNKNOWN}/discard"),
    ("GET", f"/v1/runs/{UNKNOWN}"),
    ("GET", f"/v1/runs/{UNKNOWN}/events"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_request_without_credentials_is_401_with_a_challenge(method: str, path: str) -> None:
    answer = Client().generic(method, path)
    assert (answer.status_code, make.problem_of(answer)["code"]) == (401, "not_authenticated")
    assert answer["WWW-Authenticate"] == 'Bearer realm="mailbox"'
    assert answer["Cache-Control"] == "no-store"


def _expired(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(expires_at=Now() - timedelta(seconds=1))


def _revoked(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).revoke()


def _of_an_inactive_user(token: ApiToken) -> None:
    user = User.objects.create_user("gone", is_active=False)
    ApiToken.objects.filter(pk=token.pk).update(user=user)


@pytest.mark.parametrize("spoil", [_expired, _revoked, _of_an_inactive_user])
def test_a_token_that_is_not_usable_is_401(spoil: Any) -> None:
    token, secret = make.token()
    api = make.api(secret=secret)
    assert api.get("/threads").status_code == 200
    spoil(token)
    answer = api.get("/threads")
    assert (answer.status_code, make.problem_of(answer)["code"]) == (401, "authentication_failed")
    assert answer["WWW-Authenticate"] == 'Bearer realm="mailbox"'


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer wrong", "Bearer a b", "bearer \u00e9"])
def test_a_malformed_or_wrong_bearer_is_401_also_for_somebody_logged_in(header: str, client: Client) -> None:
    client.force_login(User.objects.create_user("ann"))
    answer = client.get("/v1/threads", headers={"authorization": header})
    assert (answer.status_code, make.problem_of(answer)["code"]) == (401, "authentication_failed")


def test_neither_the_digest_nor_the_hint_of_a_token_opens_anything() -> None:
    token, _ = make.token()
    for wrong in (token.digest, token.hint, str(token.pk)):
        assert make.api(secret=wrong).get("/threads").status_code == 401


def test_the_scheme_may_be_written_in_any_case() -> None:
    _, secret = make.token()
    assert Client().get("/v1/threads", headers={"authorization": f"bEARER {secret}"}).status_code == 200


def test_last_used_at_is_written_at_most_once_a_minute(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    token, secret = make.token()
    api = make.api(secret=secret)
    with django_assert_num_queries(3):
        api.get("/threads")
    token.refresh_from_db()
    first = token.last_used_at
    assert first is not None
    with django_assert_num_queries(2):
        api.get("/threads")
    token.refresh_from_db()
    assert token.last_used_at == first
    ApiToken.objects.update(last_used_at=Now() - timedelta(seconds=61))
    api.get("/threads")
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert token.last_used_at >= first


def test_somebody_logged_in_reads_and_writes_in_the_default_scope() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_user("ann"))
    client.get("/v1/docs")
    refused = client.post("/v1/runs", HELLO, content_type="application/json")
    assert (refused.status_code, make.problem_of(refused)["code"]) == (403, "permission_denied")
    assert not Run.objects.exists()
    client.cookies["csrftoken"] = csrf = "a" * 32
    accepted = client.post("/v1/runs", HELLO, content_type="application/json", headers={"x-csrftoken": csrf})
    assert accepted.status_code == 202
    assert Run.objects.get().scope == "default"
    assert client.get(accepted["Location"]).status_code == 200


def scope_of_user(user: User) -> str:
    return {"ann": "acme", "bob": " ", "eve": "ac\nme", "zoe": "z" * 201}[user.username]


def test_the_project_says_which_scope_a_user_lives_in(settings: Any, client: Client) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": f"{__name__}.scope_of_user"}
    make.thread(scope="acme", key="theirs")
    make.thread(key="ours")
    client.force_login(User.objects.create_user("ann"))
    assert [item["key"] for item in client.get("/v1/threads").json()["items"]] == ["theirs"]


@pytest.mark.parametrize("name", ["bob", "eve", "zoe"])
def test_a_user_of_no_scope_is_401(name: str, settings: Any, client: Client) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": f"{__name__}.scope_of_user"}
    client.force_login(User.objects.create_user(name))
    answer = client.get("/v1/threads")
    assert (answer.status_code, make.problem_of(answer)["code"]) == (401, "authentication_failed")


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/{run}", "/runs/{run}/events", "/runs/{run}/dispatches", "/runs/{run}/wait?timeout=0"),
        *("/threads/{thread}", "/threads/{thread}/messages", "/threads/{thread}/runs", "/threads/{thread}/events"),
        *("/threads/{thread}/runs/latest", "/threads/{thread}/dispatches"),
    ],
)
def test_another_scopes_id_is_404_and_its_answer_that_of_an_unknown_id(path: str) -> None:
    run = make.run(scope="acme")
    mine, theirs = make.api(scope="other"), make.api(scope="acme")
    real = path.format(run=run.pk, thread=run.thread_id)
    made_up = uuid.uuid4()
    foreign, unknown = mine.get(real), mine.get(path.format(run=made_up, thread=made_up))
    assert (foreign.status_code, unknown.status_code, theirs.get(real).status_code) == (404, 404, 200)
    mentioned = (run.pk if path.startswith("/runs") else run.thread_id, made_up)
    assert foreign.content.replace(str(mentioned[0]).encode(), str(mentioned[1]).encode()) == unknown.content
    assert dict(foreign.headers) == dict(unknown.headers)
    Run.objects.all().delete()
    if path.startswith("/runs"):
        assert mine.get(real).content == foreign.content


def test_two_scopes_share_keys_without_meeting() -> None:
    acme, other = make.api(scope="acme"), make.api(scope="other")
    body = {**HELLO, "thread_key": "k", "dedupe_key": "d", "messages": [{"content": "Hello", "client_id": "m"}]}
    first = acme.post("/runs", body, idempotency_key="same")
    second = other.post("/runs", body, idempotency_key="same")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["thread_id"] != second.json()["thread_id"]
    for api, own in ((acme, first), (other, second)):
        assert [item["id"] for item in api.get("/threads").json()["items"]] == [own.json()["thread_id"]]
        assert [item["id"] for item in api.get("/threads", key="k").json()["items"]] == [own.json()["thread_id"]]


@pytest.mark.django_db
@pytest.mark.parametrize("body", ["", "{", "[1]"])
def test_a_session_s_malformed_body_is_refused_and_its_csrf_token_is_asked_for(body: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_user("ann"))
    without = client.generic("POST", "/v1/runs", body, content_type="application/json")
    assert (without.status_code, make.problem_of(without)["code"]) == (403, "permission_denied")
    client.cookies["csrftoken"] = "a" * 32
    answer = client.generic(
        "POST", "/v1/runs", body, content_type="application/json", headers={"X-CSRFToken": "a" * 32}
    )
    assert answer.status_code in (400, 422)
    assert make.problem_of(answer)["code"] in ("malformed_json", "invalid_input")
