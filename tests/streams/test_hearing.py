"""The subscription of a web process: whose text is heard, whenever it was asked for."""

import asyncio
import uuid
from typing import Any

import pytest
import redis.asyncio.client

from mailbox_app import channel, saying
from mailbox_app.hearing import Ear


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.is_up = asyncio.Event()
        self.joined_runs: list[uuid.UUID] = []
        self.pieces: list[dict[str, Any]] = []
        self.has_heard = asyncio.Event()

    def up(self) -> None:
        self.is_up.set()

    def told(self, cursors: dict[str, int]) -> None:
        pass

    def joined(self, run_id: uuid.UUID) -> None:
        self.joined_runs.append(run_id)
        self.has_heard.set()

    def said(self, run_id: uuid.UUID, piece: dict[str, Any]) -> None:
        self.pieces.append(piece)


def test_a_run_followed_while_the_subscription_is_being_made_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = uuid.uuid4()
    subscribe = redis.asyncio.client.PubSub.subscribe

    async def listened() -> list[uuid.UUID]:
        heard = Heard()
        ear = Ear(heard)

        async def meanwhile(subscription: Any, *topics: str) -> Any:
            if channel.PREFIX + saying.EVENTS in topics:
                await ear.follow(run_id)
            return await subscribe(subscription, *topics)

        monkeypatch.setattr(redis.asyncio.client.PubSub, "subscribe", meanwhile)
        listening = asyncio.create_task(ear.run())
        try:
            async with asyncio.timeout(10):
                await heard.is_up.wait()
                await heard.has_heard.wait()
        finally:
            listening.cancel()
        return heard.joined_runs

    assert asyncio.run(listened()) == [run_id]
