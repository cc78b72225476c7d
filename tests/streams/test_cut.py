"""Clients that do not read, on a real server: nothing of them is left, and nobody complains."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mailbox_app.api.v1 import stream_cut
from mailbox_app.execution.live import LiveText
from tests.operations import scene
from tests.races.actors import until
from tests.streams.served import Server

pytestmark = pytest.mark.django_db(transaction=True)

Observed = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the server's log has to say."""
    found: list[str] = []
    logger, handler = logging.getLogger("uvicorn.error"), logging.Handler(logging.WARNING)
    level = logger.level
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


@contextlib.contextmanager
def unread(server: Server, path: str, headers: dict[str, str], *, head: str = "") -> Iterator[socket.socket]:
    """A client that reads that its stream has begun, and no more."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect((host, int(port)))
        sent = f"GET /v1{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {headers['Authorization']}\r\n{head}\r\n"
        slow.sendall(sent.encode())
        assert slow.recv(12) == b"HTTP/1.1 200"
        yield slow


def is_reset(client: socket.socket) -> bool:
    client.settimeout(10)
    try:
        while client.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    return False


def flood(live: LiveText, observed: Observed, count: int) -> None:
    def are_cut() -> bool:
        live.delta("x" * 50_000)
        return [name for name, _ in observed].count("stream.cut") == count

    until(are_cut, "they are cut off")


def reasons(observed: Observed) -> list[str]:
    return [fields["reason"] for name, fields in observed if name == "stream.ended"]


def test_the_connections_of_clients_that_do_not_read_are_closed_at_once_and_the_server_logs_no_error(
    server: Server, headers: dict[str, str], settings: Any, observed: Observed, complaints: list[str]
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_send_seconds": 0.5}
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(unread(server, path, headers)) for _ in range(3)]
        flood(LiveText(taken), observed, 3)
        until(lambda: not server.server_state.connections, "the server has lost them, though they are there")
        assert all(is_reset(client) for client in clients)
    until(lambda: reasons(observed) == ["cut"] * 3, "their streams have ended")
    assert complaints == []


def test_a_client_behind_a_proxy_is_cut_off_as_well_and_its_connection_left_to_the_proxy(
    server: Server, headers: dict[str, str], settings: Any, observed: Observed
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_send_seconds": 0.5}
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    with unread(server, path, headers, head="X-Forwarded-For: 192.0.2.7\r\n"):
        flood(LiveText(taken), observed, 1)
        until(lambda: reasons(observed) == ["cut"], "its stream has ended")


def test_a_client_that_leaves_while_it_is_being_sent_to_is_forgotten(
    server: Server, headers: dict[str, str], settings: Any, observed: Observed
) -> None:
    taken = scene.posted_and_taken()
    live, path = LiveText(taken), f"/runs/{taken.run_id}/events/stream"
    with unread(server, path, headers):
        [protocol] = server.server_state.connections

        def is_full() -> bool:
            live.delta("x" * 50_000)
            return bool(protocol.flow.write_paused)

        until(is_full, "the server waits for its client")
    until(lambda: reasons(observed) == ["left"], "its stream has ended")


def test_only_the_connection_that_is_meant_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
        served = [stack.enter_context(listener.accept()[0]) for _ in clients]
        ends = stream_cut.ends_of({"client": clients[1].getsockname(), "server": address})
        assert ends is not None
        absent = (("192.0.2.7", 5), ends[1])
        assert stream_cut.close({ends, absent}) == {ends}
        assert stream_cut.close(set()) == set()
        for one in (served[0], served[2]):
            one.sendall(b"there")
        assert [client.recv(9) for client in (clients[0], clients[2])] == [b"there", b"there"]
        with pytest.raises(BrokenPipeError):
            served[1].sendall(b"gone")


@pytest.mark.parametrize("scope", [{}, {"client": None, "server": None}, {"client": ("a", 0), "server": ("b", 1)}])
def test_a_request_whose_server_does_not_know_its_ends_names_none(scope: dict[str, Any]) -> None:
    assert stream_cut.ends_of({**scope}) is None
