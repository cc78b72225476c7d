"""Probes: what is alive, what is ready, and how long finding out may take."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from mailbox_app import channel

# The probe has a connection of its own, so it sees only what is committed.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _a_closed_breaker() -> Iterator[None]:
    channel.forget_failures()
    yield
    channel.forget_failures()


@contextmanager
def listening_to_nobody() -> Iterator[int]:
    """A port that is connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


@pytest.fixture
def database_port(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send connections that are opened from now on to another port; those that are open stay."""

    def change(port: int) -> None:
        monkeypatch.setitem(connections.settings["default"], "HOST", "127.0.0.1")
        monkeypatch.setitem(connections.settings["default"], "PORT", str(port))

    return change


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_live_is_200_and_asks_nobody(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        answer = Client().get("/health/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready_is_200_when_all_is_well_and_names_the_components() -> None:
    answer = Client().get("/health/ready")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "components": {"database": "ok", "migrations": "ok", "redis": "ok"}},
    )
    assert "no-cache" in answer["Cache-Control"]


def test_ready_is_503_when_the_database_refuses_and_says_nothing_about_where_it_is(database_port: Any) -> None:
    database_port(closed_port())
    answer = Client().get("/health/ready")
    assert (answer.status_code, answer.json()) == (
        503,
        {
            "status": "unavailable",
            "components": {"database": "unavailable", "migrations": "unknown", "redis": "ok"},
        },
    )


def test_ready_answers_within_about_two_seconds_when_the_database_never_does(database_port: Any) -> None:
    with listening_to_nobody() as port:
        database_port(port)
        begun = time.monotonic()
        answer = Client().get("/health/ready")
        took = time.monotonic() - begun
    assert answer.status_code == 503
    assert took < 3


def test_live_is_200_when_the_database_is_down(database_port: Any) -> None:
    database_port(closed_port())
    connection.close()
    assert Client().get("/health/live").status_code == 200


def test_ready_is_503_while_a_migration_is_missing() -> None:
    recorder = MigrationRecorder(connection)
    latest = max(name for app, name in recorder.applied_migrations() if app == "mailbox")
    recorder.record_unapplied("mailbox", latest)
    try:
        answer = Client().get("/health/ready")
    finally:
        recorder.record_applied("mailbox", latest)
    assert (answer.status_code, answer.json()["components"]) == (
        503,
        {"database": "ok", "migrations": "pending", "redis": "ok"},
    )
    assert Client().get("/health/ready").status_code == 200


def test_ready_is_200_and_degraded_without_redis(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": f"redis://:secret@127.0.0.1:{closed_port()}/0"}
    answer = Client().get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["components"]["redis"] == "unavailable"
    assert b"secret" not in answer.content


def test_ready_answers_within_about_two_seconds_when_redis_never_does(settings: Any) -> None:
    with listening_to_nobody() as port:
        settings.MAILBOX = {**settings.MAILBOX, "redis_url": f"redis://127.0.0.1:{port}/0"}
        begun = time.monotonic()
        answer = Client().get("/health/ready")
        took = time.monotonic() - begun
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert took < 3


def test_a_project_without_redis_is_ready(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": ""}
    answer = Client().get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert answer.json()["components"]["redis"] == "not_configured"


def test_probes_need_no_credentials_and_refuse_what_is_no_reading() -> None:
    for path in ("/health/live", "/health/ready"):
        assert Client().post(path).status_code == 405
        assert Client().head(path).status_code == 200


def test_a_probe_leaves_no_connection_behind() -> None:
    def count() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            return int(cursor.fetchone()[0])

    before = count()
    for _ in range(5):
        assert Client().get("/health/ready").status_code == 200
    until = time.monotonic() + 10
    while count() > before and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert count() <= before
