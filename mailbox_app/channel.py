"""Redis, for what may be lost: the flag that a queue's signal is on its way, and live deltas.

Without `redis_url`, and while Redis is in trouble, every call is a no-op that answers quickly: signals are sent without
coalescing, and whoever waits for a hint finds the rows with its next poll. Nothing here raises.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

# Before each key and topic: a Redis may serve others too.
PREFIX = "mailbox:"
# A listener asks so often whether its silent peer is there, and does without an answer for twice as long.
_PING_SECONDS = 10.0
# Whatever the setting says, a peer that refuses at once is not asked all the time.
_LEAST_RETRY_SECONDS = 0.1


class Breaker:
    """Leaves a failing peer alone for `broker_retry_seconds`, so that its trouble is paid for once and not per call."""

    def __init__(self) -> None:
        self._open_until = 0.0

    def is_open(self) -> bool:
        """Whether the peer is being left alone just now."""
        return time.monotonic() < self._open_until

    def failed(self, what: str, error: Exception) -> None:
        """Count a failure and leave the peer alone for a while."""
        self._open_until = time.monotonic() + conf.broker_retry_seconds
        observe(f"{what}.failed", level=logging.WARNING, error=type(error).__name__, message=str(error)[:200])

    def reset(self) -> None:
        """Forget the last failure."""
        self._open_until = 0.0


_breakers: dict[str, Breaker] = {}


def breaker_of(url: str) -> Breaker:
    """The breaker of one server. Broker and hints usually share a URL, and then a caller waits for it once."""
    return _breakers.setdefault(url, Breaker())


def forget_failures() -> None:
    """Try every server again at once."""
    for breaker in _breakers.values():
        breaker.reset()


# What was published while a block of `silenced` ran, one list a block; of every thread of this process.
_silences: list[list[tuple[str, dict[str, Any]]]] = []


@contextlib.contextmanager
def silenced() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Let nothing out to Redis or the broker while the block runs; yields what is published: (topic, message).

    For tests: their rows may never be committed, and somebody's worker may listen.
    """
    heard: list[tuple[str, dict[str, Any]]] = []
    _silences.append(heard)
    try:
        yield heard
    finally:
        # By identity: two blocks that heard the same are equal.
        _silences[:] = [other for other in _silences if other is not heard]


def is_silenced() -> bool:
    """Whether nothing is to leave this process."""
    return bool(_silences)


_clients: dict[tuple[int, str], "redis.Redis"] = {}


def _client() -> "redis.Redis | None":
    """This process's client (a pool of connections), or None when there is none to be used now."""
    url = conf.redis_url
    if not url or is_silenced() or breaker_of(url).is_open():
        return None
    key = (os.getpid(), url)
    if key not in _clients:
        _clients[key] = redis.Redis.from_url(
            url,
            socket_timeout=conf.broker_timeout_seconds,
            socket_connect_timeout=conf.broker_timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=25,
        )
    return _clients[key]


def is_left_alone() -> bool:
    """Whether Redis has just failed, and is asked nothing for a while."""
    return breaker_of(conf.redis_url).is_open()


def raise_flag(queue: str) -> bool:
    """Say that a signal for the queue is about to be sent. False: one is on its way already, send none.

    The flag falls by itself after `signal_flag_seconds`, so a signal that got lost is not waited for longer.
    """
    client = _client()
    if client is None:
        return True
    try:
        return bool(client.set(f"{PREFIX}signal:{queue}", 1, nx=True, px=int(conf.signal_flag_seconds * 1000)))
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)
        return True


def lower_flag(queue: str) -> None:
    """Say that the queue's signal has arrived: the next due work may send one again."""
    client = _client()
    if client is None:
        return
    try:
        client.delete(f"{PREFIX}signal:{queue}")
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)


def is_reachable() -> bool:
    """Whether Redis answers; False also while it is being left alone after a failure."""
    client = _client()
    if client is None:
        return False
    try:
        return bool(client.ping())
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)
        return False


def server_facts() -> dict[str, Any]:
    """What Redis says of itself (INFO); {} when there is none, or it does not answer."""
    client = _client()
    if client is None:
        return {}
    try:
        return dict(client.info())
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)
        return {}


def publish(topic: str, message: dict[str, Any]) -> None:
    """Tell whoever listens on the topic just now."""
    for heard in _silences:
        heard.append((topic, message))
    client = _client()
    if client is None:
        return
    try:
        client.publish(f"{PREFIX}{topic}", json.dumps(message))
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)


def send(commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
    """The answers to Redis commands that are sent in one go (None: it refused that one); [] while Redis is away."""
    client = _client()
    if client is None:
        return []
    try:
        with client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            answers = pipeline.execute(raise_on_error=False)
        return [None if isinstance(answer, Exception) else answer for answer in answers]
    except redis.RedisError as error:
        breaker_of(conf.redis_url).failed("channel", error)
        return []


def listen(topic: str) -> Iterator[Any]:
    """What is published on the topic from now on, over one connection; without an end, and through every trouble.

    While Redis is away it is looked for every `broker_retry_seconds`, and what was published meanwhile is lost. That
    opens no breaker: who publishes finds out for itself.
    """
    was_told = False
    while True:
        url = conf.redis_url
        try:
            if url:
                for message in _heard(url, topic):
                    if was_told:
                        observe("listen.resumed", topic=topic)
                        was_told = False
                    if message is not None:
                        yield message
        except (redis.RedisError, OSError) as error:
            if not was_told:
                observe("listen.failed", level=logging.WARNING, topic=topic, error=type(error).__name__)
            was_told = True
        time.sleep(max(_LEAST_RETRY_SECONDS, conf.broker_retry_seconds))


def _heard(url: str, topic: str) -> Iterator[Any]:
    """Messages on the topic; None whenever the peer has shown that it lives."""
    timeout = conf.broker_timeout_seconds
    client = redis.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    subscription: Any = client.pubsub()  # type: ignore[no-untyped-call]
    with contextlib.closing(client), subscription:
        subscription.subscribe(f"{PREFIX}{topic}")
        heard_at = pinged_at = time.monotonic()
        while True:
            received = subscription.get_message(timeout=_PING_SECONDS)
            now = time.monotonic()
            if received is not None:
                heard_at = now
                yield _decoded(received)
            elif now - heard_at >= 2 * _PING_SECONDS:
                raise redis.TimeoutError("it does not answer")
            if now - pinged_at >= _PING_SECONDS:
                pinged_at = now
                subscription.ping()


def _decoded(received: dict[str, Any]) -> Any:
    if received["type"] != "message":
        return None
    with contextlib.suppress(ValueError):  # somebody else's
        return json.loads(received["data"])
    return None
