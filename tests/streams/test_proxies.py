"""Streams through proxies: nginx, which buffers unless told not to, and one that holds back whatever it is told."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from mailbox_app.api.v1 import stream
from mailbox_app.conf import conf
from mailbox_app.models import Run
from mailbox_app.operations import settle
from mailbox_app.states import RunStatus
from tests.operations import scene
from tests.races.actors import until
from tests.streams import table
from tests.streams.conftest import Open, emit, going
from tests.streams.proxies import Nginx, nginx, withholding
from tests.streams.recipes import following
from tests.streams.served import Listening, Server
from tests.streams.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

Front = Callable[..., Nginx]
HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}
# Told to mind no header, nginx is a proxy that buffers.
DEAF = "proxy_ignore_headers X-Accel-Buffering;"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients come back at once, when this process serves them."""
    monkeypatch.setattr(stream, "_RECONNECT_MS", (20, 50))


@pytest.fixture
def front(server: Server, tmp_path: Path) -> Iterator[Front]:
    """nginx before the server."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(nginx(tmp_path / "nginx", server.url, **given))


def cursors(client: Listening) -> list[int]:
    return [int(one.id) for one in client.events() if one.id]


# By HTTP/1.0, its default towards servers, and where it compresses, nginx holds back unless it is told not to.
@pytest.mark.parametrize(
    ("encoding", "http"), [("identity", "1.1"), ("identity", "1.0"), ("gzip", "1.1"), ("gzip", "1.0")]
)
def test_nginx_passes_each_event_on_before_there_is_another_one(
    front: Front, opened: Open, encoding: str, http: str
) -> None:
    taken = scene.posted_and_taken()
    headers = {"Accept-Encoding": encoding}
    client = opened(f"/runs/{taken.run_id}/events/stream", at=front(http=http).url, headers=headers)
    for number in range(20):
        emit(taken, f"Told{number}")
        client.until_named(f"Told{number}")
    settle.complete(taken, output="done")
    client.to_the_end()
    assert client.headers.get("Content-Encoding", "identity") == encoding
    assert client.headers["Server"].startswith("nginx")
    assert cursors(client) == table.of_run(taken.run_id)
    assert client.names()[-1] == "end"


def test_nginx_passes_the_stream_of_a_submission_on_and_a_client_that_leaves_is_noticed(
    front: Front, server: Server, headers: dict[str, str]
) -> None:
    url = f"{front().url}/v1/runs"
    with following("POST", url, headers=headers, json=HELLO) as client:
        client.until_named("RunQueued")
        taken = scene.taken()
        client.until_named("RunStarted")
        emit(taken, "Told")
        client.until_named("Told")
        until(lambda: subscriptions() == 1, "it is listened to")
    until(lambda: subscriptions() == 0, "nobody listens")
    assert Run.objects.get(pk=taken.run_id).status == RunStatus.RUNNING


def subscriptions() -> int:
    return len(redis.Redis.from_url(conf.redis_url).client_list(_type="pubsub"))


def test_heartbeats_keep_nginx_from_closing_a_silent_stream(front: Front, opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_heartbeat_seconds": 0.25}
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream", at=front(read_timeout="3s").url)
    for _ in range(30):  # more than two of its patiences
        client.until(lambda one: one.data == "heartbeat")
    settle.complete(taken, output="done")
    client.to_the_end()
    assert client.names()[-1] == "end"
    assert client.names().count("metadata") == 1


def test_nginx_that_closes_a_stream_whose_heartbeat_is_late_costs_its_client_nothing(
    front: Front, headers: dict[str, str], settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_heartbeat_seconds": 60.0}
    taken = scene.posted_and_taken()
    url = f"{front(read_timeout='300ms').url}/v1/runs/{taken.run_id}/events/stream"
    with following("GET", url, headers=headers) as client:
        until(lambda: len(client.requests) > 1, "it was closed")
        emit(taken, "Told")
        client.until_named("Told")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)


def test_a_stream_outlives_that_nginx_is_reloaded_and_comes_back_when_it_is_started_again(
    front: Front, headers: dict[str, str]
) -> None:
    taken, proxy = scene.posted_and_taken(), front()
    with following("GET", f"{proxy.url}/v1/runs/{taken.run_id}/events/stream", headers=headers) as client:
        with going(taken):
            client.until(lambda one: len(client.cursors()) > 10, "it is told")
            proxy.reload()
            seen = len(client.cursors())
            client.until(lambda one: len(client.cursors()) > seen + 10, "it is told on")
            assert len(client.requests) == 1, "by the connection it had"
            proxy.stop()
            seen = len(client.cursors())
            proxy.start()
            client.until(lambda one: len(client.cursors()) > seen + 10, "it came back")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert len(client.requests) >= 2


@pytest.mark.slow
def test_a_server_that_is_replaced_behind_nginx_costs_its_clients_nothing(
    web: Web, tmp_path: Path, headers: dict[str, str]
) -> None:
    taken = scene.posted_and_taken()
    with (
        nginx(tmp_path / "nginx", web.url) as proxy,
        following("GET", f"{proxy.url}/v1/runs/{taken.run_id}/events/stream", headers=headers) as client,
    ):
        with going(taken):
            client.until(lambda one: len(client.cursors()) > 10, "it is told")
            web.kill()
            until(lambda: len(client.requests) >= 3, "it was told 502 and asks again")
            seen = len(client.cursors())
            web.start()
            client.until(lambda one: len(client.cursors()) > seen + 10, "it came back")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)


def test_nginx_that_minds_no_header_holds_back_until_the_stream_ends(
    front: Front, opened: Open, headers: dict[str, str]
) -> None:
    taken, proxy = scene.posted_and_taken(), front(more=DEAF)
    path = f"/runs/{taken.run_id}/events/stream"
    with following("GET", f"{proxy.url}/v1{path}", headers=headers) as client:
        direct = opened(path)
        emit(taken, "Told")
        direct.until_named("Told")
        assert client.heard == []
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert client.heard[-1].event == "end"
    assert len(client.requests) == 1


def test_behind_a_proxy_that_holds_so_many_bytes_back_each_event_comes_once_in_bursts_and_the_last_with_the_end(
    server: Server, opened: Open, headers: dict[str, str]
) -> None:
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    with (
        withholding(server.url, most_bytes=4_096) as proxy,
        following("GET", f"{proxy.url}/v1{path}", headers=headers) as client,
    ):
        direct = opened(path)
        emit(taken, "Small")
        direct.until_named("Small")
        assert client.heard == [], "it is held back"
        with going(taken):
            client.until(lambda one: len(client.cursors()) > 50, "it comes in bursts")
        emit(taken, "Last")
        direct.until_named("Last")
        until(lambda: proxy.held_bytes > 0, "something is held back")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert client.heard[-1].event == "end"
    assert len(client.requests) == 1
    assert 2 <= proxy.bursts < len(client.cursors()) / 2


def test_what_a_proxy_held_back_when_it_was_cut_comes_again_and_nothing_twice(
    server: Server, headers: dict[str, str]
) -> None:
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    with (
        withholding(server.url, most_bytes=4_096) as proxy,
        following("GET", f"{proxy.url}/v1{path}", headers=headers) as client,
    ):
        with going(taken):
            for times in range(1, 4):
                seen = len(client.cursors())
                client.until(lambda one, seen=seen: len(client.cursors()) > seen, "a burst")  # type: ignore[misc]
                until(lambda: proxy.held_bytes > 0, "something is held back")
                proxy.cut()
                until(lambda times=times: len(client.requests) > times, "it came back")  # type: ignore[misc]
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert len(client.requests) == 4


def test_a_short_stream_is_a_long_poll_through_a_proxy_that_holds_all_back(
    server: Server, headers: dict[str, str], settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_seconds": 0.3}
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    with (
        withholding(server.url, most_bytes=None) as proxy,
        following("GET", f"{proxy.url}/v1{path}", headers=headers) as client,
    ):
        for number in range(3):
            emit(taken, f"Told{number}")
            client.until_named(f"Told{number}")  # while the run goes on
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.cursors() == table.of_run(taken.run_id)
    assert client.heard[-1].event == "end"


def test_a_submission_whose_answer_is_lost_is_repeated_and_is_one_run(server: Server, headers: dict[str, str]) -> None:
    with withholding(server.url, most_bytes=4_096) as proxy:
        url = f"{proxy.url}/v1/runs"
        with following("POST", url, headers=headers, json=HELLO) as client:
            until(lambda: Run.objects.exists() and proxy.held_bytes > 0, "it is submitted, and the answer held back")
            proxy.cut()
            until(lambda: len(client.requests) > 1, "it asks again")
            settle.complete(scene.taken(), output="done")
            client.to_the_end()
    assert {method for method, _, _ in client.requests} == {"POST"}
    [run] = Run.objects.all()
    assert client.cursors() == table.of_run(run.pk)
    assert client.heard[-1].event == "end"
