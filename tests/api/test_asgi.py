"""The API as it is served: uvicorn, real sockets, several requests at a time."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from django.db import connection

from mailbox_app.models import Run
from mailbox_app.operations import claim, settle
from mailbox_project.asgi import application
from tests import make

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}


class _Server(uvicorn.Server):
    def __init__(self) -> None:
        super().__init__(uvicorn.Config(application, port=0, lifespan="off", log_level="warning"))
        self.is_up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def caller(transactional_db: None) -> Iterator[httpx.Client]:
    """A client of a server of this test, with a token."""
    server = _Server()
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.is_up.wait(30)
    headers = {"Authorization": f"Bearer {make.token()[1]}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def chunks(body: dict[str, Any]) -> Iterator[bytes]:
    """The body in pieces, which are sent without saying how long it is."""
    sent = json.dumps(body).encode()
    yield sent[:5]
    yield sent[5:]


def test_a_submission_by_real_http_is_answered_and_readable(caller: httpx.Client) -> None:
    answer = caller.post("/v1/runs", json=HELLO)
    assert answer.status_code == 202
    assert caller.get(answer.headers["Location"]).json()["id"] == str(Run.objects.get().pk)
    assert caller.get("/health/ready").json()["status"] == "ok"


def test_a_body_of_unknown_length_is_read(caller: httpx.Client) -> None:
    answer = caller.post("/v1/runs", content=chunks(HELLO), headers={"Content-Type": "application/json"})
    assert "Content-Length" not in answer.request.headers
    assert answer.status_code == 202


def test_a_body_of_unknown_length_is_limited(caller: httpx.Client, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_body_bytes": 1_000}
    body = {**HELLO, "metadata": {"a": "x" * 1_000}}
    answer = caller.post("/v1/runs", content=chunks(body), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert not Run.objects.exists()


def test_a_body_over_the_limit_is_413_on_the_wire_too(caller: httpx.Client) -> None:
    answer = caller.post("/v1/runs", json={**HELLO, "metadata": {"a": "x" * 11 * 1024 * 1024}})
    assert (answer.status_code, answer.headers["Content-Type"]) == (413, "application/problem+json")


def test_many_at_a_time_are_all_accepted_and_leave_no_connection_behind(caller: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: caller.post("/v1/runs", json={**HELLO, "thread_key": "k"}), range(64)))
    assert [answer.status_code for answer in answers] == [202] * 64
    assert len({answer.json()["thread_id"] for answer in answers}) == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert cursor.fetchone()[0] < 25


def test_a_wait_over_real_http_ends_when_its_run_does_and_other_requests_are_answered_meanwhile(
    caller: httpx.Client,
) -> None:
    accepted = caller.post("/v1/runs", json=HELLO).json()
    [one] = claim.due(queue="mailbox.default", agents=["echo"], worker="w@here:1", tokens=[uuid.uuid4()]).claims
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(caller.get, f"/v1/runs/{accepted['run_id']}/wait?timeout=25") for _ in range(8)]
        assert caller.get("/v1/threads").status_code == 200
        assert not any(wait.done() for wait in waits)
        settle.complete(one, output="done")
        answers = [wait.result() for wait in waits]
    assert {(answer.status_code, answer.json()["final_output"]) for answer in answers} == {(200, "done")}


def test_a_client_that_leaves_during_a_wait_ends_it(caller: httpx.Client) -> None:
    """Else the server, which waits for its requests when it is stopped, would be there a minute later."""
    accepted = caller.post("/v1/runs", json=HELLO).json()
    with pytest.raises(httpx.ReadTimeout):
        caller.get(f"/v1/runs/{accepted['run_id']}/wait?timeout=60", timeout=0.5)
    assert caller.get(f"/v1/runs/{accepted['run_id']}").json()["status"] == "created"
