"""Requests drawn from the OpenAPI document, good and bad: no answer is a 500 or another than the document says.

The examples are the same in every run. Ids in addresses are, by turns, of rows there are and made up.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mailbox_app.api.v1 import schema
from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.operations import limits, pauses, settle, threads
from mailbox_project.wsgi import application
from tests import make
from tests.operations import asking, scene

pytestmark = [pytest.mark.slow, pytest.mark.django_db]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 25
OPERATIONS = [
    (path, method.upper()) for path, methods in schema.document()["paths"].items() for method in sorted(methods)
]


@pytest.fixture
def api() -> Iterator[Any]:
    """The document as the server shows it, and the server; it keeps the connection, as with Django's own client."""
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_old_connections)
    yield schemathesis.openapi.from_wsgi("/v1/schema", application)
    request_finished.connect(close_old_connections)
    request_started.connect(close_old_connections)


@pytest.fixture
def ids(path: str, settings: Any, api: Any) -> dict[str, list[str]]:
    """Rows in every state that verbs lead to, by the parameter of an address that may name them."""
    settings.MAILBOX = {**settings.MAILBOX, "wait_seconds": 0.01, "cancel_wait_seconds": 0.01, "max_body_bytes": 50_000}
    settings.ALLOWED_HOSTS = ["*"]
    for text in ("done", *["dead"] * 6):
        taken = scene.posted_and_taken(text, metadata={"n": 1})
        if text == "done":
            settle.complete(taken, output={"words": [1, 2]}, state={"n": 1})
        else:
            settle.dead_letter(taken, code="permanent", message="no")
    deleted = scene.posted_and_taken(thread_key="deleted")
    settle.complete(deleted)
    threads.delete(scope=scene.SCOPE, thread_id=deleted.thread_id)
    backing_off = scene.posted_and_taken(thread_key="backing off")
    settle.nack(backing_off, code="transient", message="no", retry_after=3600)
    scene.posted_and_taken(thread_key="running")
    scene.post(thread_key="queued")
    scene.post(available_at=scene.database_now() + scene.timedelta(hours=1))
    other = scene.post(scope="other")
    if path.endswith("/pauses"):
        pauses.pause(kind="agent", name="echo")
    if path.endswith("/limits"):
        limits.put(kind="agent", name="echo", most=2, starts=5, seconds=60)
    asking_run, tickets = asking.waiting("one", "two") if path.endswith(("/decision", "/waits")) else (other, [])
    living = Run.objects.open() if path.endswith("/inputs") else Run.objects.not_done()
    return {
        "ticket_id": tickets,
        "thread_id": [str(pk) for pk in Thread.objects.order_by("pk").values_list("pk", flat=True)],
        # Those that can still be changed come up more often.
        "run_id": [
            str(pk)
            for rows in (Run.objects.all(), *[living.in_scope(scene.SCOPE)] * 3)
            for pk in rows.order_by("pk").values_list("pk", flat=True)
        ]
        + [str(asking_run.run_id)] * (20 * len(tickets)),
        "dispatch_id": [str(pk) for pk in Dispatch.objects.dead_letters().order_by("pk").values_list("pk", flat=True)]
        + [str(other.dispatch_id)],
        # Those that nobody has read come up more often.
        "message_id": [
            str(pk)
            for rows in (Message.objects.all(), *[Message.objects.pending().filter(scope=scene.SCOPE)] * 3)
            for pk in rows.order_by("pk").values_list("pk", flat=True)
        ],
        "name": ["echo"],
    }


@pytest.fixture
def credentials(path: str, settings: Any) -> dict[str, dict[str, str]]:
    """A token; a session of somebody on the staff where none would do."""
    if not path.endswith(("/run-now", "/versions", "/pauses", "/limits")):
        return {"headers": {"Authorization": f"Bearer {make.token(scope=scene.SCOPE)[1]}"}}
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": "tests.api.test_dead_letters.scope_of_user"}
    client, csrf = Client(), "a" * 32
    client.force_login(User.objects.create_user("ann", is_staff=True))
    cookies = {"sessionid": client.cookies["sessionid"].value, "csrftoken": csrf}
    return {"headers": {"X-CSRFToken": csrf}, "cookies": cookies}


def name_what_there_is(path: str, body: Any, ids: dict[str, list[str]]) -> None:
    """Have a drawn submission, or each of a batch, ask an agent there is on a thread there is; an answer a question."""
    if not isinstance(body, dict):
        return
    if ids["ticket_id"] and "ticket_id" in body:
        body["ticket_id"] = ids["ticket_id"][0]
    for one in [body, *(body["runs"] if isinstance(body.get("runs"), list) else [])]:
        if isinstance(one, dict) and "messages" in one:
            if path.endswith(("/inputs", "/messages")):
                one.clear()
                one["messages"] = [{"content": "hello"}]
                continue
            one.update(agent="echo", thread_id=ids["thread_id"][0])
            for name in ("thread_key", "config_version", "expected_run_id", "delivery"):
                one.pop(name, None)


def name_what_is_pending(case: Any) -> None:
    """Have a drawn change of what nobody has read name a message there is, on its own thread, without a guard."""
    message = Message.objects.pending().filter(scope=scene.SCOPE, thread__deleted_at=None).order_by("pk").first()
    if message is None:
        return
    named = {"thread_id": str(message.thread_id), "message_id": str(message.pk)}
    case.path_parameters.update({name: named[name] for name in case.path_parameters})
    for given_fields in (case.body, case.query):
        if isinstance(given_fields, dict):
            given_fields.pop("revision", None)
            given_fields.pop("pending_revision", None)
            if "message_ids" in given_fields:
                given_fields["message_ids"] = [str(message.pk)]
    if isinstance(case.body, dict) and "content" in case.body:
        # What is drawn for it is mostly none that a message may have.
        case.body.update(content="hello", metadata={})


def explore(
    operation: Any, ids: dict[str, list[str]], credentials: dict[str, dict[str, str]], mode: GenerationMode
) -> list[int]:
    """Send what is drawn and check each answer; returns the statuses."""
    statuses = []

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        for name in case.path_parameters or {}:
            if data.draw(st.integers(0, 4)):
                case.path_parameters[name] = data.draw(st.sampled_from(ids[name]))
        if data.draw(st.booleans()):
            name_what_there_is(operation.path, case.body, ids)
        if "/pending/" in case.path and data.draw(st.booleans()):
            name_what_is_pending(case)
        if "name" in (case.query or {}) and data.draw(st.booleans()):
            case.query.update(kind="agent", name="echo")
        response = case.call(**credentials)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    send()
    return statuses


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: str(value))
def test_every_answer_is_one_the_document_describes(
    path: str, method: str, api: Any, ids: dict[str, list[str]], credentials: dict[str, dict[str, str]]
) -> None:
    statuses = []
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        statuses += explore(api[path][method], ids, credentials, mode)
    assert len(statuses) >= EXAMPLES
    assert any(status < 300 for status in statuses), sorted(set(statuses))
