"""Idempotency-Key: a creating POST made once, however often it is sent."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from mailbox_app.models import IdempotencyKey, Run, Thread
from tests import make

TITLED = {"title": "T", "metadata": {"z": 1, "a": 2}}
HELLO = {"agent": "echo", "messages": [{"content": "Hello"}], "metadata": {"zebra": 1, "a": 2}}


@pytest.mark.django_db
@pytest.mark.parametrize(("path", "body"), [("/runs", HELLO), ("/threads", TITLED)])
def test_a_repeat_gets_the_first_answer_and_writes_nothing(path: str, body: dict[str, Any]) -> None:
    api = make.api()
    first = api.post(path, body, idempotency_key="once")
    before = make.row_counts()
    repeat = api.post(path, dict(reversed(body.items())), idempotency_key="once")
    assert first.status_code in (201, 202)
    assert "Idempotency-Replayed" not in first
    assert repeat["Idempotency-Replayed"] == "true"
    assert (repeat.status_code, repeat.content, repeat["Location"], repeat["Content-Type"]) == (
        first.status_code,
        first.content,
        first["Location"],
        first["Content-Type"],
    )
    assert make.row_counts() == before
    assert before["IdempotencyKey"] == 1


@pytest.mark.django_db
def test_requests_without_a_key_are_not_remembered() -> None:
    api = make.api()
    assert api.post("/runs", HELLO).json() != api.post("/runs", HELLO).json()
    assert not IdempotencyKey.objects.exists()


@pytest.mark.django_db
def test_another_request_under_the_same_key_is_409_and_writes_nothing() -> None:
    api = make.api()
    api.post("/runs", HELLO, idempotency_key="once")
    before = make.row_counts()
    for path, body in (("/runs", {**HELLO, "priority": 1}), ("/threads", {})):
        answer = api.post(path, body, idempotency_key="once")
        found = make.problem_of(answer)
        assert (answer.status_code, found["code"]) == (409, "idempotency_key_reused")
        assert found["errors"][0]["field"] == "Idempotency-Key"
    assert make.row_counts() == before


@pytest.mark.django_db
def test_a_refusal_is_not_stored_so_the_mended_request_may_use_the_key() -> None:
    api = make.api()
    refused = [
        api.post("/runs", {**HELLO, "priority": 256}, idempotency_key="once"),
        api.post("/runs", {**HELLO, "agent": "nobody"}, idempotency_key="once"),
        api.post("/runs", {**HELLO, "thread_id": "0190a0a0-0000-7000-8000-000000000000"}, idempotency_key="once"),
        api.post("/runs", raw="{", idempotency_key="once"),
    ]
    assert [answer.status_code for answer in refused] == [422, 422, 404, 400]
    assert not IdempotencyKey.objects.exists()
    accepted = api.post("/runs", HELLO, idempotency_key="once")
    assert accepted.status_code == 202
    assert "Idempotency-Replayed" not in accepted


@pytest.mark.django_db
def test_an_expired_key_is_as_good_as_absent() -> None:
    api = make.api()
    first = api.post("/runs", HELLO, idempotency_key="once").json()
    IdempotencyKey.objects.update(created_at=Now() - timedelta(hours=24, seconds=1))
    second = api.post("/runs", {**HELLO, "priority": 1}, idempotency_key="once")
    assert second.status_code == 202
    assert second.json() != first
    repeat = api.post("/runs", {**HELLO, "priority": 1}, idempotency_key="once")
    assert (repeat.content, repeat["Idempotency-Replayed"]) == (second.content, "true")
    assert IdempotencyKey.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("key", ["", " ", "two words", "k" * 201, "caf\u00e9", "tab\tbed"])
def test_a_malformed_key_is_400_and_writes_nothing(key: str) -> None:
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", HELLO, idempotency_key=key)
    assert (answer.status_code, make.problem_of(answer)["code"]) == (400, "malformed_idempotency_key")
    assert make.row_counts() == before


@pytest.mark.django_db
def test_a_key_of_200_visible_characters_is_taken() -> None:
    assert make.api().post("/runs", HELLO, idempotency_key="~" * 200).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_concurrent_repeats_make_one_run_and_all_get_its_answer() -> None:
    _, secret = make.token()
    callers = 8
    together = threading.Barrier(callers)

    def post() -> Any:
        together.wait(30)
        try:
            return make.api(secret=secret).post("/runs", HELLO, idempotency_key="once")
        finally:
            connection.close()

    with ThreadPoolExecutor(callers) as pool:
        answers = [future.result() for future in [pool.submit(post) for _ in range(callers)]]
    assert [answer.status_code for answer in answers] == [202] * callers
    assert len({answer.content for answer in answers}) == 1
    assert sorted("Idempotency-Replayed" in answer for answer in answers) == [False] + [True] * (callers - 1)
    assert (Run.objects.count(), Thread.objects.count(), IdempotencyKey.objects.count()) == (1, 1, 1)


def _held(scope: str, key: str, *, begun: threading.Event, end: threading.Event, commits: bool) -> None:
    """A first request that is still running: its key is written, its transaction open."""
    try:
        with transaction.atomic():
            IdempotencyKey.objects.create(scope=scope, key=key, request_hash="x")
            begun.set()
            assert end.wait(30)
            transaction.set_rollback(not commits)
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_a_repeat_of_a_request_in_flight_is_409_after_the_wait(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "idempotency_wait_seconds": 0.05}
    api = make.api()
    begun, end = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_held, make.SCOPE, "once", begun=begun, end=end, commits=False)
        assert begun.wait(30)
        answer = api.post("/runs", HELLO, idempotency_key="once")
        end.set()
        first.result()
    assert (answer.status_code, make.problem_of(answer)["code"]) == (409, "request_in_flight")
    assert answer["Retry-After"] == "1"
    assert not Run.objects.exists()
    assert api.post("/runs", HELLO, idempotency_key="once").status_code == 202


@pytest.mark.django_db(transaction=True)
def test_a_repeat_goes_on_itself_when_the_request_it_waits_for_is_rolled_back(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "idempotency_wait_seconds": 30}
    _, secret = make.token()
    begun, end = threading.Event(), threading.Event()

    def repeat() -> Any:
        try:
            return make.api(secret=secret).post("/runs", HELLO, idempotency_key="once")
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(_held, make.SCOPE, "once", begun=begun, end=end, commits=False)
        assert begun.wait(30)
        second = pool.submit(repeat)
        make.wait_for_a_blocked_connection()
        end.set()
        first.result()
        answer = second.result()
    assert answer.status_code == 202
    assert "Idempotency-Replayed" not in answer
    assert Run.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_lock_timeout_of_the_wait_ends_with_it() -> None:
    def timeout() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            return str(cursor.fetchone()[0])

    before = timeout()
    seen = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if "INSERT INTO mailbox_run" in sql:
            seen.append(timeout())
        return result

    api = make.api()
    with connection.execute_wrapper(look):
        api.post("/runs", HELLO, idempotency_key="once")
    assert seen == [before]
    assert timeout() == before
