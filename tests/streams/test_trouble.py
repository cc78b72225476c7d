"""Streams while Redis, the web process, the database's notices or a client fail: no gap, no repeat, nobody slowed."""

import asyncio
import json
import socket
from typing import Any

import pytest
import redis
from django.db import connection

from mailbox_app import channel
from mailbox_app.api.v1 import stream_rows
from mailbox_app.api.v1.stream_hub import hub
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Event, Run, Thread
from mailbox_app.operations import checkpoint, settle, threads
from mailbox_app.operations import emit as events
from mailbox_project.asgi import application
from tests.operations import scene
from tests.races.actors import until
from tests.streams.conftest import Open, emit
from tests.streams.served import PATIENCE_SECONDS, Listening, Server, listening, serving

pytestmark = pytest.mark.django_db(transaction=True)

Observed = list[tuple[str, dict[str, Any]]]


def cursors(client: Listening) -> list[int]:
    return [int(one.id) for one in client.events() if one.id]


def public(thread_id: Any) -> list[int]:
    rows = Event.objects.filter(thread_id=thread_id).public().after(0)
    return list(rows.values_list("cursor", flat=True))


def listeners(server: Redis | None = None) -> int:
    """How many subscriptions there are."""
    client = redis.Redis.from_url(server.url if server else conf.redis_url)
    return len(client.client_list(_type="pubsub"))


def followed() -> list[str]:
    """The runs whose live text is heard."""
    client = redis.Redis.from_url(conf.redis_url)
    return sorted(topic.decode() for topic in client.pubsub_channels("mailbox:run:*"))


def test_redis_that_stops_in_mid_stream_delays_events_and_loses_none(
    own_redis: Redis, settings: Any, opened: Open, observed: Observed
) -> None:
    settings.MAILBOX = {
        **settings.MAILBOX, "redis_url": own_redis.url, "broker_retry_seconds": 0.1, "wait_poll_seconds": 0.05,
    }  # fmt: skip
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    live = LiveText(taken)
    live.delta("before ")
    client.until_named("delta", text="before ")
    own_redis.stop()
    live.delta("while it was away ")
    emit(taken, "WhileItWasAway")
    client.until_named("WhileItWasAway")
    own_redis.start()
    channel.forget_failures()
    until(lambda: listeners(own_redis) == 1, "it is listened to again")

    def is_whole() -> bool:
        live.delta(".")  # what Redis has lost is told again with the next piece
        client.until_named("delta")
        return client.text().rstrip(".") == "before while it was away "

    until(is_whole, "the live text is whole")
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 60.0}
    emit(taken, "Afterwards")
    client.until_named("Afterwards")
    settle.complete(taken, output="done")
    client.until_named("RunFinished")
    assert cursors(client) == public(taken.thread_id)
    assert "stream.deaf" in [name for name, _ in observed]


def test_without_redis_a_stream_polls(settings: Any, opened: Open) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": "", "wait_poll_seconds": 0.05}
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    LiveText(taken).delta("unheard")
    emit(taken, "Later")
    client.until_named("Later")
    settle.complete(taken, output="done")
    client.to_the_end()
    assert cursors(client) == list(Event.objects.filter(run_id=taken.run_id).after(0).values_list("cursor", flat=True))
    assert client.text() == ""


def test_a_notice_that_is_lost_is_made_up_for(settings: Any, opened: Open) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 0.1}
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    with channel.silenced():
        emit(taken, "Untold")
    client.until_named("Untold")


def test_what_was_not_told_while_redis_was_away_is_looked_for_once_it_is_back(
    own_redis: Redis, settings: Any, opened: Open
) -> None:
    late = {"wait_poll_seconds": 60.0, "stream_poll_seconds": 60.0}
    settings.MAILBOX = {**settings.MAILBOX, **late, "redis_url": own_redis.url, "broker_retry_seconds": 0.1}
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    until(lambda: listeners(own_redis) == 1, "the process listens")
    own_redis.stop()
    emit(taken, "WhileItWasAway")
    own_redis.start()
    client.until_named("WhileItWasAway")


def test_a_message_closes_what_was_said_live_also_when_nobody_was_told(settings: Any, opened: Open) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 0.1}
    taken = scene.posted_and_taken()
    path = f"/threads/{taken.thread_id}/events/stream"
    client = opened(path)
    live = LiveText(taken)
    live.delta("said")
    client.until_named("delta", text="said")
    with channel.silenced():
        checkpoint.say(taken, scene.entry("said", verb="say"), "said")
        live.close()
        client.until(lambda one: one.name == "MessageCommitted" and one.data["payload"]["role"] == "assistant")
    late = opened(path)
    late.until_named("RunStarted")
    emit(taken, "Later")
    late.until_named("Later")
    assert late.text() == ""


def test_notices_that_come_twice_too_early_or_from_somebody_else_change_nothing(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    server = redis.Redis.from_url(conf.redis_url)
    thread = str(taken.thread_id)
    for message in (
        *[json.dumps({thread: cursor}) for cursor in (1, 3, 3, 10**9, 10**9)],
        *("", "[]", "null", "{", b"\xff", json.dumps({thread: "x"}), json.dumps({"x": 5})),
    ):
        server.publish("mailbox:events", message)
        server.publish(f"mailbox:run:{taken.run_id}", message)
    for piece in ({}, {"fence": 1}, {"fence": "x", "attempt": 1, "closed": 0, "offset": 0, "text": "?"}):
        server.publish(f"mailbox:run:{taken.run_id}", json.dumps(piece))
    emit(taken, "Later")
    client.until_named("Later")
    settle.complete(taken, output="done")
    client.until_named("RunFinished")
    assert cursors(client) == public(taken.thread_id)
    assert "delta" not in client.names()


def test_a_web_process_that_is_replaced_costs_its_clients_nothing(opened: Open) -> None:
    taken = scene.posted_and_taken()
    path = f"/threads/{taken.thread_id}/events/stream"
    with serving() as first:
        before = opened(path, at=first.url)
        before.until_named("RunStarted")
        LiveText(taken).delta("said before")
        before.until_named("delta")
    before.to_the_end()
    emit(taken, "Between")
    after = opened(path, last=before.events()[-1].id)
    after.until_named("delta", offset=0, text="said before")
    emit(taken, "After")
    after.until_named("After")
    assert cursors(before) + cursors(after) == public(taken.thread_id)


def test_a_client_that_does_not_read_is_cut_off_and_slows_nobody(
    server: Server, headers: dict[str, str], settings: Any, opened: Open, observed: Observed
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_send_seconds": 2.0}
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect((host, int(port)))
        slow.sendall(
            f"GET /v1{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {headers['Authorization']}\r\n\r\n".encode()
        )
        assert slow.recv(12) == b"HTTP/1.1 200"
        client = opened(path)
        client.until_named("RunStarted")
        live = LiveText(taken)

        def is_cut() -> bool:
            live.delta("x" * 50_000)
            return "stream.cut" in [name for name, _ in observed]

        until(is_cut, "the slow one is cut off")
        emit(taken, "Later")
        client.until_named("Later")
        settle.complete(taken, output="done")
        client.to_the_end()
    assert client.names()[-1] == "end"
    assert [name for name, _ in observed].count("stream.cut") == 1
    assert Run.objects.get(pk=taken.run_id).status == "done"


def test_many_clients_share_one_subscription_and_each_reading(
    opened: Open, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 60.0}
    taken = scene.posted_and_taken()
    asked: list[str] = []

    def counted(name: str, read: Any) -> Any:
        return lambda *given: asked.append(name) or read(*given)

    for name in ("of_threads", "of_run", "heads"):
        monkeypatch.setattr(stream_rows, name, counted(name, getattr(stream_rows, name)))
    path = f"/threads/{taken.thread_id}/events/stream"
    last = opened(path).until_named("RunStarted").id
    until(lambda: listeners() == 1, "the process listens")
    clients = [opened(path, last=last) for _ in range(20)]
    asked.clear()
    for number in range(3):
        emit(taken, f"Told{number}")
        for client in clients:
            client.until_named(f"Told{number}")
    # One reading for a notice; a commit that is told of while another is read may cost one more.
    assert set(asked) == {"of_threads"}
    assert len(asked) <= 6
    assert listeners() == 1


def test_nobody_listens_once_the_last_stream_has_ended(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    until(lambda: listeners() == 1, "the process listens")
    settle.complete(taken, output="done")
    client.to_the_end()
    until(lambda: listeners() == 0, "nobody does")


def test_whoever_listens_again_hears_no_run_that_was_left(opened: Open, server: Server, headers: Any) -> None:
    taken = scene.posted_and_taken()
    other = scene.post()
    with listening(f"{server.url}/v1/threads/{taken.thread_id}/events/stream", headers=headers) as client:
        client.until_named("RunStarted")
        until(lambda: followed() == [f"mailbox:run:{taken.run_id}"], "its run is heard")
        emit(taken, "Last")  # lets the client see that it is to leave
    emit(taken, "AfterThat")
    until(lambda: listeners() == 0, "nobody listens")
    again = opened(f"/threads/{other.thread_id}/events/stream")
    again.until_named("RunQueued")
    until(lambda: listeners() == 1, "the process listens")
    with channel.silenced():
        late = scene.taken()
    again.until_named("RunStarted")
    until(lambda: f"mailbox:run:{late.run_id}" in followed(), "the open run is heard")
    assert followed() == [f"mailbox:run:{late.run_id}"]


def test_a_client_that_is_slow_when_its_thread_is_deleted_is_told_of_that_first(headers: Any) -> None:
    taken = scene.posted_and_taken()

    async def told() -> bytes:
        sent, is_read, has_begun = list[bytes](), asyncio.Event(), asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if b"RunStarted" in sent[-1]:
                has_begun.set()
                await is_read.wait()

        async def receive() -> Any:
            if not asked:
                return {"type": "http.disconnect"} if await is_over.wait() else None
            return asked.pop()

        asked, is_over = [{"type": "http.request", "body": b"", "more_body": False}], asyncio.Event()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": f"/v1/threads/{taken.thread_id}/events/stream", "query_string": b"", "server": ("localhost", 80),
            "headers": [(b"host", b"localhost"), (b"authorization", headers["Authorization"].encode())],
        }  # fmt: skip
        serving = asyncio.create_task(application(scope, receive, send))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await has_begun.wait()
            await asyncio.to_thread(ended)
            [feed] = hub()._feeds.values()
            while not feed.is_gone:
                await asyncio.sleep(0.01)
            is_read.set()
            await serving
        return b"".join(sent)

    def ended() -> None:
        try:
            settle.complete(taken, output="done")
            threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
        finally:
            connection.close()

    heard = asyncio.run(told())
    names = [line.removeprefix("event: ") for line in heard.decode().splitlines() if line.startswith("event: ")]
    assert names[-3:] == ["RunFinished", "ThreadDeleted", "end"]


def test_a_client_behind_what_is_kept_reads_on_from_the_table(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_buffer_entries": 5}
    taken = scene.posted_and_taken()
    path = f"/threads/{taken.thread_id}/events/stream"
    client = opened(path)
    client.until_named("RunStarted")
    with channel.silenced():
        for _ in range(250):
            emit(taken, "Many")
    late = opened(path)
    emit(taken, "Last")
    for one in (client, late):
        one.until_named("Last")
        assert cursors(one) == public(taken.thread_id)


def test_events_pruned_before_they_were_sent_end_the_stream_with_an_error(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 60.0}
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    until(lambda: listeners() == 1, "the process listens")
    emit(taken, "Told")
    last = client.until_named("Told").id
    # In one transaction: a reading that is under way must not come between.
    with channel.silenced(), Thread.objects.fence(taken.thread_id) as thread:
        for _ in range(3):
            events.of_thread(thread, "Lost")
        thread.flush()
        thread.pruned_cursor = int(last or 0) + 2
        Event.objects.filter(thread=thread, cursor__lte=thread.pruned_cursor).delete()
    redis.Redis.from_url(conf.redis_url).publish("mailbox:events", json.dumps({str(taken.thread_id): 10**6}))
    heard = client.to_the_end()
    assert (heard[-1].name, heard[-1].data["code"]) == ("error", "cursor_pruned")
    assert opened(f"/threads/{taken.thread_id}/events/stream", last=last).status == 410


def test_a_database_that_loses_its_connections_delays_events_and_loses_none(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 0.1}
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    for number in range(3):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        emit(taken, f"Told{number}")
    client.until_named("Told2")
    assert cursors(client) == public(taken.thread_id)
