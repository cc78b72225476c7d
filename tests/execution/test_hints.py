"""Signals: coalesced by a flag in Redis, and never slower than the broker's trouble is allowed to be."""

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import current_app
from django.db import transaction

from mailbox_app import channel, hints, metrics
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.operations import settle
from mailbox_app.tally import tally
from tests.operations import scene
from tests.races.actors import until

LIMIT = 1.5


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No breaker and no connection of another test."""
    channel.forget_failures()
    hints._pools.clear()
    channel._clients.clear()
    yield
    channel.forget_failures()
    hints._pools.clear()
    channel._clients.clear()


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid.uuid4()}"


def broker(settings: Any, url: str, *, redis_url: str | None = None, **options: Any) -> None:
    current_app.conf.broker_url = current_app.conf.broker_write_url = url
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": url if redis_url is None else redis_url, **options}


@pytest.fixture(autouse=True)
def _same_broker_afterwards() -> Iterator[None]:
    before = current_app.conf.broker_url, current_app.conf.broker_write_url
    yield
    current_app.conf.broker_url, current_app.conf.broker_write_url = before


def waiting(queue: str) -> int:
    """Signals in the queue, as the broker stores them."""
    return int(redis.Redis.from_url(conf.redis_url).llen(queue))


def arrive(queue: str) -> None:
    """A worker takes what waits."""
    redis.Redis.from_url(conf.redis_url).delete(queue)
    channel.lower_flag(queue)


def timed_wake(queue: str) -> float:
    started = time.monotonic()
    hints.wake(queue)
    return time.monotonic() - started


def test_signals_are_coalesced_until_one_arrives(queue: str) -> None:
    for _ in range(5):
        hints.wake(queue)
    assert waiting(queue) == 1
    arrive(queue)
    hints.wake(queue)
    assert waiting(queue) == 1


def test_while_every_slot_is_busy_one_signal_waits_however_often_the_flag_falls(queue: str) -> None:
    for _ in range(5):
        channel.lower_flag(queue)
        hints.wake(queue)
    assert waiting(queue) == 1


def test_the_sweep_fills_a_queue_up_whatever_its_flag_says(queue: str) -> None:
    assert channel.raise_flag(queue)
    assert hints.fill(queue, signals=2) == 2
    assert waiting(queue) == 2


def test_signals_that_nobody_takes_do_not_pile_up(queue: str) -> None:
    assert [hints.fill(queue, signals=3) for _ in range(4)] == [3, 0, 0, 0]
    assert waiting(queue) == 3


def test_a_dead_redis_for_hints_silences_no_healthy_broker(queue: str, own_redis: Redis, settings: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        broker(settings, own_redis.url, redis_url=f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
    hints.wake(queue)
    assert hints.fill(queue, signals=5) == 4
    assert redis.Redis.from_url(own_redis.url).llen(queue) == 5


def test_the_flag_falls_by_itself(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "signal_flag_seconds": 0.05}
    assert channel.raise_flag(queue)
    assert not channel.raise_flag(queue)
    until(lambda: channel.raise_flag(queue), "the flag falls", seconds=5)


def test_a_closed_port_costs_little_once_and_then_nothing(queue: str, settings: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
    broker(settings, url)
    assert timed_wake(queue) < LIMIT
    assert channel.breaker_of(hints._broker_url()).is_open()
    assert timed_wake(queue) < 0.05


def test_a_broker_that_is_not_our_redis_costs_little_once_too(queue: str, settings: Any) -> None:
    """Without `redis_url` nothing but the publisher's own limits hold."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
    broker(settings, url, redis_url="")
    assert timed_wake(queue) < LIMIT
    assert channel.breaker_of(hints._broker_url()).is_open()
    assert timed_wake(queue) < 0.05


@pytest.mark.parametrize(("has_channel", "peer"), [(True, "channel"), (False, "signal")])
def test_trouble_is_counted_once_a_pause_by_what_did_not_go_out(
    has_channel: bool, peer: str, queue: str, own_redis: Redis, settings: Any
) -> None:
    tally.close()
    broker(settings, own_redis.url, redis_url=None if has_channel else "", broker_retry_seconds=60, metrics_folder="")
    hints.wake(queue)
    assert failures() == {}, "what goes out is no failure"
    own_redis.stop()
    for failed in (1, 2):
        for _ in range(3):
            hints.wake(queue)
        assert failures() == {peer: failed}
        channel.forget_failures()


def failures() -> dict[str, float]:
    """What is counted of signals and hints that did not go out, by peer."""
    samples = [sample for family in metrics.counted() for sample in family.samples]
    return {s.labels["peer"]: s.value for s in samples if s.name == "mailbox_signal_failures_total"}


@pytest.mark.parametrize("has_channel", [True, False], ids=["also our Redis", "the broker alone"])
def test_a_frozen_broker_costs_about_a_second_once(
    has_channel: bool, queue: str, own_redis: Redis, settings: Any
) -> None:
    broker(settings, own_redis.url, redis_url=None if has_channel else "", broker_retry_seconds=60)
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert timed_wake(queue) < LIMIT
        assert channel.breaker_of(hints._broker_url()).is_open()
        assert timed_wake(queue) < 0.05
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)


def test_a_broker_that_freezes_between_two_signals_costs_about_a_second_once(
    queue: str, own_redis: Redis, settings: Any
) -> None:
    """The second signal finds open connections that nobody answers on."""
    broker(settings, own_redis.url, broker_retry_seconds=60)
    hints.wake(queue)
    assert waiting(queue) == 1
    channel.lower_flag(queue)
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert timed_wake(queue) < LIMIT
        assert timed_wake(queue) < 0.05
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)


def test_a_broker_that_freezes_before_the_sweep_opens_the_breaker_too(
    queue: str, own_redis: Redis, settings: Any
) -> None:
    """The sweep asks what waits in the queue before it sends."""
    broker(settings, own_redis.url, redis_url="", broker_retry_seconds=60)
    assert hints.fill(queue, signals=1) == 1
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert hints.fill(queue, signals=5) == 0
        assert channel.breaker_of(hints._broker_url()).is_open()
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)


def test_the_breaker_closes_again_and_signals_go_out(queue: str, own_redis: Redis, settings: Any) -> None:
    broker(settings, own_redis.url, broker_retry_seconds=0.2)
    own_redis.stop()
    hints.wake(queue)
    assert channel.breaker_of(hints._broker_url()).is_open()
    own_redis.start()
    until(lambda: not channel.breaker_of(hints._broker_url()).is_open(), "the breaker closes")
    hints.wake(queue)
    assert waiting(queue) == 1


def test_a_restarted_broker_is_found_again_by_the_open_connections(queue: str, own_redis: Redis, settings: Any) -> None:
    broker(settings, own_redis.url, broker_retry_seconds=0.0)
    hints.wake(queue)
    own_redis.stop()
    own_redis.start()
    until(lambda: hints.fill(queue, signals=1) or waiting(queue), "a signal gets through")
    assert waiting(queue) >= 1


@pytest.mark.django_db(transaction=True)
def test_a_submit_with_the_broker_down_is_accepted_within_its_limit(settings: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        broker(settings, f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
    started = time.monotonic()
    posted = scene.post()
    assert time.monotonic() - started < LIMIT
    assert scene.flag(posted) == scene.DUE


@pytest.mark.django_db(transaction=True)
def test_a_signal_is_sent_after_commit_and_only_when_a_thread_becomes_due(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": queue, "signal_flag_seconds": 0.05}
    with transaction.atomic():
        posted = scene.post()
        assert waiting(queue) == 0, "nothing is visible yet"
    assert waiting(queue) == 1
    arrive(queue)
    scene.post(thread_id=posted.thread_id)
    assert waiting(queue) == 0, "the thread was due already"
    claim = scene.taken(queue=queue)
    scene.post(thread_id=posted.thread_id)
    assert (waiting(queue), claim.run_id) == (0, posted.run_id), "the thread is taken"


@pytest.mark.django_db(transaction=True)
def test_work_under_a_key_used_before_is_signalled_anew(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": queue}
    for _ in range(2):
        scene.post(dedupe_key="once")
        assert waiting(queue) == 1
        settle.complete(scene.taken(queue=queue))
        arrive(queue)


@pytest.mark.django_db(transaction=True)
def test_a_submission_that_is_rolled_back_leaves_no_row_and_no_signal(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": queue}
    with scene.nothing_changes(), transaction.atomic():
        scene.post()
        transaction.set_rollback(True)
    assert waiting(queue) == 0
    assert channel.raise_flag(queue)
