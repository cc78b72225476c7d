"""The one Redis subscription of a web process, on its event loop: notices of new events, and live text.

All of it may be lost. `is_up` tells whether notices arrive; whoever listens looks for itself when they have begun to
arrive again, and all the time while they do not.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from typing import Any, Protocol

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mailbox_app import channel, saying
from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

# A listener asks so often whether its silent peer is there, and does without an answer for twice as long.
_PING_SECONDS = 10.0
_LEAST_RETRY_SECONDS = 0.1
# Connections for texts that are asked for.
_MOST_ASKED = 8


class Listener(Protocol):
    """Who is told what is heard."""

    def up(self) -> None:
        """Notices arrive from now on; what was told before is lost."""

    def told(self, cursors: dict[str, int]) -> None:
        """These threads have events up to these cursors."""

    def joined(self, run_id: uuid.UUID) -> None:
        """The run's live text arrives from now on; what was said before is kept."""

    def said(self, run_id: uuid.UUID, piece: dict[str, Any]) -> None:
        """A piece of a run's live text."""


class Ear:
    """One subscription. `run()` until cancelled; the rest from the same loop."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._events = channel.PREFIX + saying.EVENTS
        self._runs: dict[str, uuid.UUID] = {}
        self._client: Any = None
        self._subscription: Any = None
        # When Redis is back, all runs' texts are asked for at once.
        self._few = asyncio.Semaphore(_MOST_ASKED)
        self.is_up = False

    async def run(self) -> None:
        """Listen, through every trouble; while Redis is away it is looked for every `broker_retry_seconds`."""
        was_told = False
        while True:
            try:
                if conf.redis_url:
                    await self._listen()
            except (redis.RedisError, OSError, TimeoutError) as error:
                if not was_told or self.is_up:
                    observe("stream.deaf", level=logging.WARNING, error=type(error).__name__)
                was_told = True
            finally:
                self.is_up, self._subscription = False, None
            await asyncio.sleep(max(_LEAST_RETRY_SECONDS, conf.broker_retry_seconds))

    async def follow(self, run_id: uuid.UUID) -> None:
        """Hear the run's live text; `joined` tells when that begins."""
        topic = channel.PREFIX + saying.TEXT.format(run_id=run_id)
        self._runs[topic] = run_id
        # The reader may be connecting it anew just now, and the client library does not lock it: anything may come of
        # that. What was not subscribed then is with the next ping.
        with contextlib.suppress(Exception):
            if self._subscription is not None:
                await self._subscription.subscribe(topic)

    async def leave(self, run_id: uuid.UUID) -> None:
        """Hear it no more."""
        topic = channel.PREFIX + saying.TEXT.format(run_id=run_id)
        self._runs.pop(topic, None)
        with contextlib.suppress(Exception):
            if self._subscription is not None:
                await self._subscription.unsubscribe(topic)

    async def text_of(self, run_id: uuid.UUID, fence: int) -> list[dict[str, Any]] | None:
        """The pieces that are kept of an activation's live text; None when Redis did not answer, and may again.

        [] without a subscription: `joined` tells when there is one.
        """
        client = self._client
        if client is None:
            return []
        key = channel.PREFIX + saying.KEPT.format(run_id=run_id, fence=fence)
        try:
            async with self._few:
                found = await client.lrange(key, 0, -1)
        except (redis.RedisError, OSError, TimeoutError):
            return None
        return [piece for piece in map(_read, found) if isinstance(piece, dict)]

    async def _listen(self) -> None:
        timeout = conf.broker_timeout_seconds
        options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        client = redis.asyncio.Redis.from_url(conf.redis_url, retry=Retry(NoBackoff(), 0), **options)
        subscription: Any = client.pubsub()
        try:
            await subscription.subscribe(self._events)
            self._client, self._subscription = client, subscription
            # What was followed while it was being made found none to add itself to.
            if self._runs:
                await subscription.subscribe(*self._runs)
            await self._hear(subscription)
        finally:
            self._client = self._subscription = None
            with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
                await subscription.aclose()
                await client.aclose()

    async def _hear(self, subscription: Any) -> None:
        heard_at = pinged_at = time.monotonic()
        while True:
            received = await subscription.get_message(timeout=_PING_SECONDS)
            now = time.monotonic()
            if received is not None:
                heard_at = now
                self._take(received["type"], received["channel"], received["data"])
            elif now - heard_at >= 2 * _PING_SECONDS:
                raise redis.TimeoutError("it does not answer")
            if now - pinged_at >= _PING_SECONDS:
                pinged_at = now
                await subscription.ping()
                if missing := [topic for topic in self._runs if topic.encode() not in subscription.channels]:
                    await subscription.subscribe(*missing)

    def _take(self, kind: str, topic: Any, data: Any) -> None:
        topic = topic.decode() if isinstance(topic, bytes) else topic
        run_id = self._runs.get(topic)
        if kind == "subscribe" and topic == self._events:
            self.is_up = True
            self._listener.up()
        elif kind == "subscribe" and run_id is not None:
            self._listener.joined(run_id)
        elif kind == "message" and isinstance(found := _read(data), dict):
            if topic == self._events:
                self._listener.told(found)
            elif run_id is not None:
                self._listener.said(run_id, found)


def _read(data: Any) -> Any:
    with contextlib.suppress(ValueError, TypeError):  # somebody else's
        return json.loads(data)
    return None
