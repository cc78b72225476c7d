"""httpx-sse, by the recipe of docs/streaming.md: each event once and in order, whatever the server does meanwhile."""

from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from mailbox_app.api.v1 import stream
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Run
from mailbox_app.operations import settle
from tests.operations import scene
from tests.races.actors import until
from tests.streams import table
from tests.streams.conftest import emit, going
from tests.streams.recipes import following
from tests.streams.served import Server
from tests.streams.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}


def test_it_comes_back_with_the_last_id_after_as_long_as_it_was_told(
    server: Server, headers: dict[str, str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_RECONNECT_MS", (123, 123))
    settings.MAILBOX = {**settings.MAILBOX, "stream_seconds": 0.3}  # so long is a stream open
    taken = scene.posted_and_taken()
    path = f"/v1/runs/{taken.run_id}/events/stream"
    with following("GET", f"{server.url}{path}", headers=headers) as client:
        with going(taken):
            client.until(
                lambda one: len(client.requests) > 3 and int(client.requests[-1][2]) > 0, "it came back again and again"
            )
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert set(client.waits) == {0.123}
    named = [int(last) for _, _, last in client.requests]
    assert named[0] == 0
    assert named == sorted(named), "it never named an earlier event"
    assert set(named) <= {0, *client.cursors()}
    assert client.heard[-1].json() == {"run_id": str(taken.run_id), "status": "done"}


@pytest.mark.slow
def test_a_server_that_is_killed_and_one_that_is_replaced_cost_it_nothing(web: Web, headers: dict[str, str]) -> None:
    taken = scene.posted_and_taken()
    with following("GET", f"{web.url}/v1/runs/{taken.run_id}/events/stream", headers=headers) as client:
        with going(taken):
            client.until(lambda one: len(client.cursors()) > 20, "it is told")
            web.kill()
            seen = len(client.cursors())
            web.start()
            client.until(lambda one: len(client.cursors()) > seen + 20, "it came back")
            web.replace()
            seen = len(client.cursors())
            client.until(lambda one: len(client.cursors()) > seen + 20, "it came back again")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert len(client.requests) >= 3
    assert all(0.5 <= seconds <= 2.0 for seconds in client.waits)


@pytest.mark.slow
def test_what_a_submission_was_answered_with_goes_on_as_its_runs_stream(web: Web, headers: dict[str, str]) -> None:
    with following("POST", f"{web.url}/v1/runs", headers=headers, json=HELLO) as client:
        client.until_named("RunQueued")
        taken = scene.taken()
        with going(taken):
            client.until(lambda one: len(client.cursors()) > 20, "it is told")
            web.kill()
            web.start()
            seen = len(client.cursors())
            client.until(lambda one: len(client.cursors()) > seen + 20, "it came back")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    [posted, *got] = client.requests
    assert posted == ("POST", "/v1/runs", "0")
    assert {(method, path) for method, path, _ in got} == {("GET", f"/v1/runs/{taken.run_id}/events/stream")}
    assert Run.objects.count() == 1


def test_heartbeats_live_text_strange_letters_and_an_agents_own_end_are_what_they_are(
    server: Server, headers: dict[str, str], settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_heartbeat_seconds": 0.05}
    taken = scene.posted_and_taken()
    with following("GET", f"{server.url}/v1/runs/{taken.run_id}/events/stream", headers=headers) as client:
        client.until_named("RunStarted")
        LiveText(taken).delta("Gr\u00fc\u00df\u2028Gott")
        client.until_named("delta")
        emit(taken, "end", {"text": "one\u2028two\u0085three\r\nfour\nid: 7"})
        client.until_named("end")
        emit(taken, "Later")
        client.until_named("Later")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    [delta] = [one.json() for one in client.heard if one.event == "delta"]
    own, ours = [one.json() for one in client.heard if one.event == "end"]
    assert delta["text"] == "Gr\u00fc\u00df\u2028Gott"
    assert own["payload"] == {"text": "one\u2028two\u0085three\r\nfour\nid: 7"}
    assert ours == {"run_id": str(taken.run_id), "status": "done"}
    assert len(client.requests) == 1


def test_what_it_is_refused_is_raised_and_a_run_that_was_all_sent_has_no_event(
    server: Server, headers: dict[str, str]
) -> None:
    taken = scene.posted_and_taken()
    settle.complete(taken, output="done")
    path = f"{server.url}/v1/runs/{taken.run_id}/events/stream"
    with following("GET", path, headers={}) as stranger:
        until(lambda: stranger.has_ended, "it is refused")
    assert isinstance(stranger.error, httpx.HTTPStatusError)
    assert stranger.error.response.status_code == 401
    last = str(table.of_run(taken.run_id)[-1])
    with (
        httpx.Client(headers=headers) as client,
        connect_sse(client, "GET", path, headers={"Last-Event-ID": last}) as source,
    ):
        assert source.response.status_code == 204
    with following("GET", f"{path}?cursor={last}", headers=headers) as late:
        late.to_the_end()  # `Last-Event-ID: 0` wins
    assert late.cursors() == table.of_run(taken.run_id)
