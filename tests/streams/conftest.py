"""A server with streams, a caller's token, and a way to make events on a thread."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbox_app import channel, telemetry
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.operations import scene
from tests.races.actors import start
from tests.streams.served import PATIENCE_SECONDS, Listening, Server, listening, serving
from tests.streams.web import Web, web_process

_uses = itertools.count(1)

# Opens the stream at a path under /v1, until the test ends.
Open = Callable[..., Listening]


@pytest.fixture(autouse=True)
def _closed_breaker() -> Iterator[None]:
    channel.forget_failures()
    yield
    channel.forget_failures()


@pytest.fixture
def server(transactional_db: None) -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def web(transactional_db: None, tmp_path: Path) -> Iterator[Web]:
    """A web process, which can be killed."""
    with web_process(tmp_path) as web:
        yield web


@pytest.fixture
def headers(transactional_db: None) -> dict[str, str]:
    return {"Authorization": f"Bearer {make.token(scope=scene.SCOPE)[1]}"}


@pytest.fixture
def opened(server: Server, headers: dict[str, str]) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_one(path: str, *, last: str | None = None, at: str = "", **given: Any) -> Listening:
            sent = {**headers, **given.pop("headers", {}), **({} if last is None else {"Last-Event-ID": last})}
            return stack.enter_context(listening(f"{at or server.url}/v1{path}", headers=sent, **given))

        yield open_one


@pytest.fixture
def observed() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What is observed while the test runs."""
    found: list[tuple[str, dict[str, Any]]] = []

    def hear(name: str, fields: dict[str, Any], **_: Any) -> None:
        found.append((name, fields))

    telemetry.observed.connect(hear, weak=False)
    yield found
    telemetry.observed.disconnect(hear)


def emit(claim: Claim, kind: str, payload: Any = None, *, visibility: str = "public") -> None:
    """Record an event of the agent's own."""
    scene.emit(claim, kind, payload or {}, n=next(_uses), visibility=visibility)


@contextlib.contextmanager
def going(*claims: Claim, a_second: float = 100.0) -> Iterator[None]:
    """Record events of these runs, one after the other, from another thread while the block runs."""
    is_over = threading.Event()

    def record() -> None:
        for number in itertools.count():
            emit(claims[number % len(claims)], "Told", {"number": number})
            if is_over.wait(1 / a_second):
                return

    recording = start(record)
    try:
        yield
    finally:
        is_over.set()
        recording.result(PATIENCE_SECONDS)
