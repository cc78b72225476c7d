"""Streams over real HTTP: what is sent, in which order, and when it ends."""

from collections.abc import Iterator
from typing import Any

import pytest

from mailbox_app import channel
from mailbox_app.execution.live import LiveText
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene
from tests.streams.served import Server, listening, serving

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _closed_breaker() -> None:
    channel.forget_failures()


@pytest.fixture
def server(transactional_db: None) -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def headers(transactional_db: None) -> dict[str, str]:
    return {"Authorization": f"Bearer {make.token(scope=scene.SCOPE)[1]}"}


def test_a_runs_stream_begins_with_metadata_replays_goes_on_and_ends(server: Server, headers: Any) -> None:
    posted = scene.post()
    with listening(f"{server.url}/v1/runs/{posted.run_id}/events/stream", headers=headers) as client:
        client.until_named("RunQueued")
        taken = scene.taken()
        client.until_named("RunStarted")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.names()[0] == "metadata"
    assert client.heard[0].data == {"run_id": str(posted.run_id), "attempt": 1}
    assert client.names()[-1] == "end"
    assert client.heard[-1].data == {"run_id": str(posted.run_id), "status": "done"}
    page = make.api(scope=scene.SCOPE).get(f"/runs/{posted.run_id}/events").json()["items"]
    assert [(one.id, one.name, one.data) for one in client.events()] == [
        (str(item["cursor"]), item["kind"], item) for item in page
    ]


def test_a_thread_stream_has_every_public_event_and_the_open_runs_live_text(server: Server, headers: Any) -> None:
    thread = scene.post().thread_id
    with listening(f"{server.url}/v1/threads/{thread}/events/stream", headers=headers) as client:
        taken = scene.taken()
        client.until_named("RunStarted")
        live = LiveText(taken)
        live.delta("Grüß")
        client.until_named("delta")
        live.delta(" Gott")
        client.until(lambda one: client.text() == "Grüß Gott")
        with listening(f"{server.url}/v1/threads/{thread}/events/stream", headers=headers) as late:
            late.until_named("delta", offset=0, text="Grüß Gott", attempt=1, run_id=str(taken.run_id))
        settle.complete(taken, output="Grüß Gott")
        client.until_named("RunFinished")
    page = make.api(scope=scene.SCOPE).get(f"/threads/{thread}/events").json()["items"]
    assert [(one.id, one.name, one.data) for one in client.events()] == [
        (str(item["cursor"]), item["kind"], item) for item in page
    ]
    assert {one.id for one in client.heard if one.name == "delta"} == {None}


def test_a_submission_that_asks_for_a_stream_gets_its_runs(server: Server, headers: Any) -> None:
    body = {"agent": "echo", "messages": [{"content": "Hello"}]}
    with listening(
        f"{server.url}/v1/runs", method="POST", body=body, headers={**headers, "Accept": "text/event-stream"}
    ) as client:
        assert client.status == 200
        client.until_named("RunQueued")
        taken = scene.taken()
        assert client.headers["Location"] == f"/v1/runs/{taken.run_id}"
        settle.complete(taken, output="done")
        client.until_named("end", run_id=str(taken.run_id), status="done")
