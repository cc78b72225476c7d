"""Live deltas, to whoever listens just now."""

import json
from typing import Any

import pytest
import redis

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.execution import Context
from tests.execution.conftest import Perform
from tests.operations import scene

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _closed_breaker() -> None:
    channel.forget_failures()


def test_deltas_arrive_with_their_attempt_and_offset_and_are_stored_nowhere(perform: Perform) -> None:
    pubsub = redis.Redis.from_url(conf.redis_url, socket_timeout=10).pubsub()

    def agent(ctx: Context) -> None:
        pubsub.subscribe(f"mailbox:run:{ctx.run_id}")
        assert pubsub.get_message(timeout=10)["type"] == "subscribe"
        for piece in ("Grüß", "", " Gott", "!"):
            ctx.delta(piece)

    claim = perform(agent)
    heard: list[Any] = [json.loads(pubsub.get_message(timeout=10)["data"]) for _ in range(3)]
    pubsub.close()
    assert heard == [
        {"type": "delta", "attempt": 1, "offset": 0, "text": "Grüß"},
        {"type": "delta", "attempt": 1, "offset": 4, "text": " Gott"},
        {"type": "delta", "attempt": 1, "offset": 9, "text": "!"},
    ]
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunFinished"]


def test_without_redis_a_delta_does_nothing(perform: Perform, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": ""}
    claim = perform(lambda ctx: ctx.delta("unheard"))
    assert scene.dispatch(claim).status == "acked"
