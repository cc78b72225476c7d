"""Factories: one call makes one thing that a test needs, with everything it does not care about filled in.

What runs and how it came to do so is made by the verbs themselves; only rows nobody has a verb for are written here.
"""

import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db import connection
from django.http import HttpResponse
from django.test import Client

from mailbox_app.models import ApiToken, Run, Thread
from mailbox_app.operations import submit

SCOPE = "default"
AGENT = "echo"

_numbers = itertools.count(1)


def thread(*, scope: str = SCOPE, **given: Any) -> Thread:
    """A thread without a run."""
    return submit.thread(scope=scope, **given)


def run(*, scope: str = SCOPE, agent: str = AGENT, text: str = "hello", **given: Any) -> Run:
    """A queued run; `thread_id`, `messages` and the like as for `submit.run`."""
    receipt = submit.run(scope=scope, agent=agent, messages=given.pop("messages", [text]), **given)
    return Run.objects.get(pk=receipt.run_id)


def token(*, scope: str = SCOPE, name: str = "", **given: Any) -> tuple[ApiToken, str]:
    """A usable token and its secret."""
    return ApiToken.objects.issue(name=name or f"token {next(_numbers)}", scope=scope, **given)


@dataclass
class Api:
    """The API as one caller sees it: requests with its token, JSON both ways."""

    secret: str
    client: Client
    prefix: str = "/v1"

    def get(self, path: str, **parameters: Any) -> HttpResponse:
        """GET `/v1<path>`."""
        return self.client.get(f"{self.prefix}{path}", parameters, headers=self._headers({}))

    def patch(self, path: str, body: Any) -> HttpResponse:
        """PATCH JSON."""
        content_type = "application/json"
        return self.client.patch(f"{self.prefix}{path}", body, content_type=content_type, headers=self._headers({}))

    def put(self, path: str, body: Any) -> HttpResponse:
        """PUT JSON."""
        content_type = "application/json"
        return self.client.put(f"{self.prefix}{path}", body, content_type=content_type, headers=self._headers({}))

    def delete(self, path: str) -> HttpResponse:
        """DELETE `/v1<path>`."""
        return self.client.delete(f"{self.prefix}{path}", headers=self._headers({}))

    def post(self, path: str, body: Any = None, *, raw: bytes | str | None = None, **headers: str) -> HttpResponse:
        """POST JSON, or `raw` bytes as they are; `idempotency_key="k"` becomes the header `Idempotency-Key`."""
        content_type = headers.pop("content_type", "application/json")
        path, headers = f"{self.prefix}{path}", self._headers(headers)
        if raw is not None:
            return self.client.generic("POST", path, raw, content_type=content_type, headers=headers)
        return self.client.post(path, body, content_type=content_type, headers=headers)

    def _headers(self, given: dict[str, str]) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self.secret}",
            **{name.replace("_", "-"): value for name, value in given.items()},
        }


def api(*, scope: str = SCOPE, secret: str | None = None, prefix: str = "/v1", client: Client | None = None) -> Api:
    """A caller with a token of its own in this scope."""
    return Api(secret=secret or token(scope=scope)[1], client=client or Client(), prefix=prefix)


def row_counts() -> dict[str, int]:
    """How many rows each table of the app holds: equal before and after means that nothing was written."""
    return {model.__name__: model._default_manager.count() for model in apps.get_app_config("mailbox").get_models()}


def problem_of(answer: HttpResponse) -> dict[str, Any]:
    """The problem details of a refusal, checked for their form."""
    assert answer["Content-Type"] == "application/problem+json", answer.content
    found: dict[str, Any] = json.loads(answer.content)
    assert list(found)[:5] == ["type", "title", "status", "detail", "code"]
    assert found["status"] == answer.status_code
    assert found["type"] == f"urn:mailbox:problem:{found['code']}"
    assert found["title"]
    assert found["detail"]
    return found


def wait_for_a_blocked_connection(seconds: float = 30) -> None:
    """Return once some connection of this database waits for a lock that another one holds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone():
                return
    raise AssertionError("no connection waits for a lock")
