"""From where a stream begins, and how far behind its reader may be."""

import re
import socket
import threading
from typing import Any

import pytest

from mailbox_app.models import Event, Thread
from mailbox_app.operations import emit as events
from mailbox_app.operations import settle
from tests import make
from tests.operations import scene
from tests.races.actors import start
from tests.streams.conftest import Open, emit
from tests.streams.served import PATIENCE_SECONDS, Server, listening

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_stream_from_now_has_what_comes_later_once_though_somebody_records_meanwhile(opened: Open) -> None:
    """From now: from the thread's last cursor, which `GET /threads/{id}` tells."""
    taken = scene.posted_and_taken()
    for _ in range(5):
        emit(taken, "Before")

    is_shown = threading.Event()

    def more() -> None:
        for _ in range(50):
            emit(taken, "During")
        assert is_shown.wait(PATIENCE_SECONDS)
        for _ in range(50):
            emit(taken, "During")
        emit(taken, "Last")

    recording = start(more)
    shown = make.api(scope=scene.SCOPE).get(f"/threads/{taken.thread_id}").json()
    is_shown.set()
    now = shown["last_cursor"]
    client = opened(f"/threads/{taken.thread_id}/events/stream?cursor={now}")
    client.until_named("Last")
    recording.result(60)
    assert now >= 8
    expected = list(Event.objects.filter(thread_id=taken.thread_id).after(now).values_list("cursor", flat=True))
    assert [int(one.id or 0) for one in client.events()] == expected
    assert expected[0] == now + 1
    assert "Before" not in client.names()


def test_who_loses_the_stream_of_a_submission_goes_on_with_the_runs_and_misses_nothing(
    opened: Open, server: Server, headers: dict[str, str]
) -> None:
    asked = {**headers, "Accept": "text/event-stream"}
    body = {"agent": "echo", "messages": [{"content": "Hello"}]}
    with listening(f"{server.url}/v1/runs", method="POST", body=body, headers=asked) as first:
        first.until_named("RunQueued")
        taken = scene.taken()
        emit(taken, "Seen")
        last = first.until_named("Seen").id
    emit(taken, "Missed")
    second = opened(f"/runs/{taken.run_id}/events/stream", last=last)
    second.until_named("Missed")
    settle.complete(taken, output="done")
    second.to_the_end()
    heard = [int(one.id or 0) for one in [*first.events(), *second.events()]]
    assert heard == list(Event.objects.filter(run_id=taken.run_id).after(0).values_list("cursor", flat=True))
    assert second.names()[-1] == "end"


@pytest.mark.slow
def test_a_reader_5000_events_behind_is_not_cut_off_while_it_reads(
    server: Server, headers: dict[str, str], settings: Any
) -> None:
    """More than is kept for it, and than its connection holds: it reads on from the table, as slowly as it does."""
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 0.2}
    taken = scene.posted_and_taken()
    path = f"/v1/runs/{taken.run_id}/events/stream"
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        slow.settimeout(30)
        slow.connect((host, int(port)))
        token = headers["Authorization"]
        slow.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: {token}\r\n\r\n".encode())
        heard = slow.recv(1_000)
        for _ in range(10):
            with Thread.objects.fence(taken.thread_id) as thread:
                for _ in range(500):
                    event = events.of_thread(thread, "Many", padding="x" * 500)
                    event.run_id = taken.run_id
            heard += slow.recv(1_000)
        settle.complete(taken, output="done")
        behind = len(re.findall(rb"(?m)^id: ", heard))
        while b"event: end" not in heard[-200:]:
            piece = slow.recv(100_000)
            assert piece, "it was cut off"
            heard += piece
    assert behind < 50
    written = Event.objects.filter(run_id=taken.run_id).after(0).values_list("cursor", flat=True)
    assert [int(at) for at in re.findall(rb"(?m)^id: (\d+)", heard)] == list(written)
    assert len(written) == 5_004
