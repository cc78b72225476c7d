"""What Flower is told: each activation whole or not at all, within a limit, at no cost to the run."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app

from mailbox_app import channel, hints
from mailbox_app.devtools.servers import Redis
from mailbox_app.errors import Cancelled, Permanent, Transient
from mailbox_app.execution import Context
from mailbox_app.flower import Flower
from mailbox_app.operations import recover, settle
from mailbox_app.telemetry import observed
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import until

pytestmark = pytest.mark.django_db(transaction=True)
WORKER = "shown@here"
SECRET = "the customer's own words"


class Ear:
    """Who listens to Celery's events, as Flower does: with Celery's own receiver, on the broker."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._receiver = current_app.events.Receiver(current_app.connection(), handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        until(self._has_heard, "the ear hears")
        self.events.clear()

    def _has_heard(self) -> bool:
        hints.show("probe@here", [{"type": "task-probe", "timestamp": time.time(), "uuid": "probe"}])
        return bool(self.events)

    def _listen(self) -> None:
        with self._receiver.consumer_context() as (connection, _, _):
            while not self._receiver.should_stop:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)

    def of(self, dispatch_id: Any) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("uuid") == str(dispatch_id)]

    def named(self, worker: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["hostname"] == worker]

    def types(self, dispatch_id: Any) -> list[str]:
        return [event["type"] for event in self.of(dispatch_id)]


@pytest.fixture(autouse=True)
def _a_closed_breaker() -> Iterator[None]:
    before = current_app.conf.broker_url, current_app.conf.broker_write_url
    channel.forget_failures()
    hints._pools.clear()
    yield
    current_app.conf.broker_url, current_app.conf.broker_write_url = before
    channel.forget_failures()
    hints._pools.clear()


@pytest.fixture
def ear() -> Iterator[Ear]:
    listening = Ear()
    yield listening
    listening.close()


@pytest.fixture
def flower(settings: Any) -> Iterator[Flower]:
    settings.MAILBOX = {**settings.MAILBOX, "flower_runs_per_second": 1_000.0}
    shown = Flower()
    shown.worker = WORKER
    shown.start()
    yield shown
    observed.disconnect(dispatch_uid="mailbox.flower")


@pytest.fixture
def dropped() -> Iterator[list[tuple[str, int]]]:
    """(reason, events) of everything Flower will not hear of."""
    found: list[tuple[str, int]] = []

    def listen(name: str, fields: dict[str, Any], **_: Any) -> None:
        if name == "flower.dropped":
            found.append((fields["reason"], fields["events"]))

    observed.connect(listen)
    yield found
    observed.disconnect(listen)


def _raise(error: BaseException) -> Any:
    def agent(ctx: Context) -> None:
        raise error

    return agent


@pytest.mark.parametrize(
    ("agent", "options", "end", "shown"),
    [
        (lambda ctx: SECRET, {}, "task-succeeded", {"result": "'natural end'"}),
        (_raise(Transient(SECRET)), {}, "task-retried", {"exception": "retry: transient"}),
        (_raise(Transient(SECRET)), {"max_attempts": 1}, "task-failed", {"exception": "dead letter: transient"}),
        (_raise(Permanent(SECRET)), {}, "task-failed", {"exception": "dead letter: permanent"}),
        (_raise(ValueError(SECRET)), {"max_attempts": 1}, "task-failed", {"exception": "dead letter: ValueError"}),
    ],
    ids=["natural end", "retry", "attempts used up", "permanent", "a bug"],
)
def test_an_activation_is_shown_with_its_outcome_and_no_payload(
    agent: Any, options: dict[str, Any], end: str, shown: dict[str, Any], flower: Flower, ear: Ear, perform: Perform
) -> None:
    done = perform(agent, SECRET, **options)
    until(lambda: len(ear.of(done.dispatch_id)) == 3, "three events arrive")
    received, started, ended = ear.of(done.dispatch_id)
    assert [event["type"] for event in (received, started, ended)] == ["task-received", "task-started", end]
    assert received["name"] == "mailbox.run.probe"
    assert received["kwargs"] == repr({"thread": str(done.thread_id), "run": str(done.run_id), "attempt": 1})
    assert shown.items() <= ended.items()
    assert {event["hostname"] for event in (received, started, ended)} == {WORKER}
    assert received["clock"] < started["clock"] < ended["clock"]
    assert SECRET not in repr(ear.events)


def test_a_cancelled_run_is_shown_as_revoked(flower: Flower, ear: Ear, register: Register, perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        scene.Dispatch.objects.filter(pk=ctx.dispatch_id).update(cancel_requested_at=scene.Now())
        with pytest.raises(Cancelled):
            ctx.checkpoint()

    done = perform(agent)
    until(lambda: len(ear.of(done.dispatch_id)) == 3, "three events arrive")
    assert ear.types(done.dispatch_id)[-1] == "task-revoked"


def test_a_lost_lease_is_told_by_the_sweep_in_the_name_of_who_had_it(flower: Flower, ear: Ear) -> None:
    scene.post()
    lost = scene.taken(worker="lost@there:77")
    flower._shown.clear()  # another process claimed it
    scene.expire_lease(lost)
    assert recover.reclaim() == 1
    until(lambda: "task-retried" in ear.types(lost.dispatch_id), "the sweep tells")
    last = ear.of(lost.dispatch_id)[-1]
    assert (last["hostname"], last["exception"]) == ("lost@there", "lease lost")


def test_a_worker_that_lost_its_lease_tells_nothing_more(flower: Flower, ear: Ear, perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        scene.Dispatch.objects.filter(pk=ctx.dispatch_id).update(lease_until=scene.Now() - scene.timedelta(seconds=1))
        assert recover.reclaim() == 1

    done = perform(agent)
    assert flower.flush(5)
    until(lambda: len(ear.of(done.dispatch_id)) >= 3, "the sweep's event arrives")
    assert ear.types(done.dispatch_id) == ["task-received", "task-started", "task-retried"]


def test_what_is_over_the_limit_is_not_shown_at_all_and_counted(
    flower: Flower, ear: Ear, dropped: list[tuple[str, int]], settings: Any, perform: Perform
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "flower_runs_per_second": 0.001}
    first, *others = [perform(lambda ctx: None) for _ in range(5)]
    until(lambda: len(ear.of(first.dispatch_id)) == 3, "the first is shown")
    assert flower.flush(5)
    assert [ear.types(one.dispatch_id) for one in others] == [[]] * 4
    assert dropped == [("limit", 3)] * 4


def test_a_limit_of_zero_shows_nothing(
    flower: Flower, ear: Ear, dropped: list[tuple[str, int]], settings: Any, perform: Perform
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "flower_runs_per_second": 0.0}
    done = perform(lambda ctx: None)
    assert flower.flush(5)
    assert ear.of(done.dispatch_id) == []
    assert dropped == [("limit", 3)]


def test_a_thousand_activations_in_a_second_reach_flower_no_faster_than_the_limit(
    flower: Flower, ear: Ear, dropped: list[tuple[str, int]], settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "flower_runs_per_second": 20.0}
    started = time.monotonic()
    facts = {"thread_id": "t", "run_id": "r", "agent": "a", "queue": "q", "code": None, "attempt": 1}
    for number in range(1_000):
        moved = {"dispatch_id": number, **facts}
        observed.send(None, name="dispatch.moved", fields={**moved, "kind": "RunStarted", "outcome": "", "waited": 0})
        observed.send(None, name="dispatch.moved", fields={**moved, "kind": "RunFinished", "outcome": "natural_end"})
    seconds = time.monotonic() - started
    assert flower.flush(10)
    shown = 1_000 - len(dropped)
    assert 20 <= shown <= 20 + 20 * seconds + 1
    until(lambda: len(ear.named(WORKER)) >= 3 * shown, "what is shown arrives whole")
    assert len(ear.named(WORKER)) == 3 * shown
    assert set(dropped) == {("limit", 3)}


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return f"redis://127.0.0.1:{unused.getsockname()[1]}/0"


def test_without_a_broker_runs_are_as_fast_as_ever_and_the_loss_is_counted(
    flower: Flower, dropped: list[tuple[str, int]], settings: Any, perform: Perform
) -> None:
    current_app.conf.broker_url = current_app.conf.broker_write_url = _closed_port()
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": "", "broker_retry_seconds": 60.0}
    done = perform(lambda ctx: "all the same")
    assert scene.run(done).final_output == "all the same"
    assert flower.flush(10)
    assert sum(events for reason, events in dropped if reason == "broker") == 3
    assert channel.breaker_of(hints._broker_url()).is_open()


def test_a_frozen_broker_slows_no_run(
    flower: Flower, own_redis: Redis, dropped: list[tuple[str, int]], settings: Any, perform: Perform
) -> None:
    current_app.conf.broker_url = current_app.conf.broker_write_url = own_redis.url
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": "", "broker_retry_seconds": 0.0}
    perform(lambda ctx: None)
    assert flower.flush(5)
    scene.post(agent="probe")
    claimed = scene.taken(agents=("probe",))
    assert flower.flush(5)
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        facts = {"thread_id": "t", "run_id": "r", "agent": "a", "queue": "q", "code": None, "attempt": 1, "waited": 0}
        for number in range(100):
            fields = {"dispatch_id": number, "kind": "RunStarted", "outcome": "", **facts}
            observed.send(None, name="dispatch.moved", fields=fields)
        assert time.monotonic() - started < 0.5
        assert flower.flush(20)
        assert sum(events for _, events in dropped) == 200
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    settle.hand_back(tokens=[claimed.token])
    assert flower.flush(5)


def test_a_frozen_broker_is_left_alone_after_the_first_failure(own_redis: Redis, settings: Any) -> None:
    current_app.conf.broker_url = current_app.conf.broker_write_url = own_redis.url
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": "", "broker_retry_seconds": 60.0}
    events = [{"type": "task-started", "timestamp": time.time(), "uuid": "x"}]
    assert hints.show(WORKER, events)
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert not hints.show(WORKER, events)
        started = time.monotonic()
        assert not any(hints.show(WORKER, events) for _ in range(10))
        assert time.monotonic() - started < 0.1
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)


def test_more_than_a_slow_broker_takes_does_not_pile_up(
    flower: Flower, dropped: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "flower_runs_per_second": 1e9}
    gate = threading.Event()
    monkeypatch.setattr(hints, "show", lambda worker, events: gate.wait(30))
    facts = {"thread_id": "t", "run_id": "r", "agent": "a", "queue": "q", "code": None, "attempt": 1, "waited": 0}
    for number in range(3_000):
        fields = {"dispatch_id": number, "kind": "RunStarted", "outcome": "", **facts}
        observed.send(None, name="dispatch.moved", fields=fields)
    assert len(flower._waiting) == 2_000
    assert sum(events for reason, events in dropped if reason == "full") == 4_000
    gate.set()
    assert flower.flush(10)
