"""How much one caller may ask for in a minute: off unless set, counted for each caller apart."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client

from mailbox_app.api.v1 import throttling
from mailbox_app.models import Run
from tests import make

pytestmark = pytest.mark.django_db

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}


@pytest.fixture(autouse=True)
def _counts_nothing_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and a minute that does not end within the test."""
    cache.clear()
    monkeypatch.setattr(throttling, "_WINDOW_SECONDS", 86_400)
    yield
    cache.clear()


def limit(settings: Any, **limits: int) -> None:
    settings.MAILBOX = {**settings.MAILBOX, **limits}


def assert_throttled(answer: Any) -> None:
    assert (answer.status_code, make.problem_of(answer)["code"]) == (429, "throttled")
    assert 1 <= int(answer["Retry-After"]) <= throttling._WINDOW_SECONDS


def test_nothing_is_limited_unless_set() -> None:
    api = make.api()
    assert {api.get("/threads").status_code for _ in range(30)} == {200}
    assert {api.post("/runs", HELLO).status_code for _ in range(5)} == {202}


def test_requests_over_the_limit_are_429_with_the_time_to_wait(settings: Any) -> None:
    limit(settings, throttle_requests_per_minute=3)
    api = make.api()
    assert [api.get("/threads").status_code for _ in range(3)] == [200] * 3
    assert_throttled(api.get("/threads"))
    assert_throttled(api.post("/runs", HELLO))
    assert not Run.objects.exists()


def test_a_minute_later_the_count_begins_anew(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(settings, throttle_requests_per_minute=1)
    api, now = make.api(), [1_000_000.0]
    monkeypatch.setattr(throttling, "_WINDOW_SECONDS", 60)
    monkeypatch.setattr(throttling.time, "time", lambda: now[0])
    assert api.get("/threads").status_code == 200
    refused = api.get("/threads")
    assert (refused.status_code, refused["Retry-After"]) == (429, "20")
    now[0] += 20
    assert api.get("/threads").status_code == 200


def test_each_token_and_each_user_is_counted_apart(settings: Any, client: Client) -> None:
    limit(settings, throttle_requests_per_minute=1)
    callers = [make.api(), make.api()]
    assert [api.get("/threads").status_code for api in callers] == [200, 200]
    client.force_login(User.objects.create_user("ann"))
    assert client.get("/v1/threads").status_code == 200
    assert_throttled(callers[0].get("/threads"))
    assert_throttled(client.get("/v1/threads"))


def test_submissions_are_limited_apart_from_other_requests_and_a_batch_counts_each_run(settings: Any) -> None:
    limit(settings, throttle_submissions_per_minute=4)
    api = make.api()
    assert api.post("/runs", HELLO).status_code == 202
    assert api.post("/runs/batch", {"runs": [HELLO] * 3}).status_code == 202
    for refused in (api.post("/runs", HELLO), api.post("/runs/batch", {"runs": [HELLO]})):
        assert_throttled(refused)
    assert api.get("/runs").status_code == 200
    assert Run.objects.count() == 4


def test_a_cache_that_does_not_answer_limits_nobody(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}
    }
    limit(settings, throttle_requests_per_minute=1)
    api = make.api()
    assert [api.get("/threads").status_code for _ in range(3)] == [200] * 3
    assert "throttle.failed" in caplog.text


def test_who_is_not_known_is_refused_before_anything_is_counted(settings: Any) -> None:
    limit(settings, throttle_requests_per_minute=1)
    assert [Client().get("/v1/threads").status_code for _ in range(3)] == [401] * 3
