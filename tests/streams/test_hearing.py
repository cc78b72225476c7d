"""The subscription of a web process: whose text is heard, whenever it was asked for."""

import asyncio
import threading
import uuid
from typing import Any

import pytest
import redis.asyncio.client

from mailbox_app import channel, saying
from mailbox_app.api.v1 import stream_rights, stream_rows
from mailbox_app.api.v1.stream_hub import Hub
from mailbox_app.api.v1.stream_rights import Right
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


class Watching:
    """A client of the hub that takes nothing."""

    def __init__(self) -> None:
        self.news, self.cursor, self.ends = asyncio.Event(), 0, None
        self.right = Right(None, "", None)

    def is_stuck(self, now: float) -> bool:
        return False

    def cut(self, *, is_closed: bool) -> None:
        raise AssertionError

    def refuse(self) -> None:
        pass


@pytest.mark.django_db(transaction=True)
def test_who_comes_while_the_last_one_s_subscription_is_being_given_up_is_told_of_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = redis.asyncio.client.PubSub.aclose

    async def heard() -> bool:
        goes_on = asyncio.Event()

        async def slowly(subscription: Any) -> None:
            await goes_on.wait()
            await close(subscription)

        hub, client = Hub(), Watching()

        async def is_up() -> None:
            while not hub._ear.is_up:
                await asyncio.sleep(0.01)

        async with asyncio.timeout(10):
            feed = hub.join(client, uuid.uuid4(), head=0)
            await is_up()
            monkeypatch.setattr(redis.asyncio.client.PubSub, "aclose", slowly)
            before = set(hub._tasks)
            hub.leave(client, feed)
            feed = hub.join(client, uuid.uuid4(), head=0)
            await is_up()
            goes_on.set()
            await asyncio.wait(before)
            found = hub._ear.is_up and hub._ear._subscription is not None
            hub.leave(client, feed)
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
            return found

    assert asyncio.run(heard())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("question", ["standing", "heads"])
def test_a_database_that_does_not_answer_keeps_no_stuck_client_from_being_cut(
    question: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_rights_seconds": 0.05, "stream_poll_seconds": 0.05}
    is_asked, may_answer, asked = threading.Event(), threading.Event(), []

    def hanging(given: Any) -> Any:
        asked.append(given)
        is_asked.set()
        assert may_answer.wait(30)
        return set() if question == "standing" else {}

    class Stuck(Watching):
        was_cut = False

        def is_stuck(self, now: float) -> bool:
            return is_asked.is_set()

        def cut(self, *, is_closed: bool) -> None:
            self.was_cut = True

    async def cut() -> bool:
        hub, client = Hub(), Stuck()
        feed = hub.join(client, uuid.uuid4(), head=0)
        try:
            async with asyncio.timeout(10):
                while not client.was_cut:
                    await asyncio.sleep(0.01)
        finally:
            may_answer.set()
            hub.leave(client, feed)
        return client.was_cut

    monkeypatch.setattr(stream_rights if question == "standing" else stream_rows, question, hanging)
    assert asyncio.run(cut())
    assert len(asked) == 1, "it is not asked again while it does not answer"
