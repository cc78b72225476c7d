"""Live deltas, to whoever listens just now."""

import json
from typing import Any

import pytest
import redis

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.execution import Context
from tests.execution.conftest import Perform
from tests.operations import scene
from tests.races.actors import until

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _closed_breaker() -> None:
    channel.forget_failures()


def test_deltas_arrive_with_their_attempt_and_offset_and_are_stored_nowhere(perform: Perform) -> None:
    pubsub = redis.Redis.from_url(conf.redis_url, socket_timeout=10).pubsub()

    def agent(ctx: Context) -> None:
        pubsub.subscribe(f"mailbox:run:{ctx.run_id}")
        assert pubsub.get_message(timeout=10)["type"] == "subscribe"
        ctx.delta("Grüß")
        heard.append(json.loads(pubsub.get_message(timeout=10)["data"]))
        for piece in ("", " Gott", "!"):
            ctx.delta(piece)

    heard: list[Any] = []
    claim = perform(agent)
    while sum(len(one["text"]) for one in heard) < len("Grüß Gott!"):
        heard.append(json.loads(pubsub.get_message(timeout=10)["data"]))
    pubsub.close()
    text = ""
    for one in heard:
        assert (one["type"], one["attempt"], one["fence"], one["offset"]) == ("delta", 1, 1, len(text))
        text += one["text"]
    assert text == "Grüß Gott!"
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunFinished"]


@pytest.mark.parametrize("leaves", [False, True], ids=["reads nothing", "leaves half-way"])
def test_a_listener_that_is_slow_or_leaves_disturbs_no_run(
    perform: Perform, own_redis: Redis, settings: Any, leaves: bool
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": own_redis.url}
    server = redis.Redis.from_url(own_redis.url)
    # What waits for a listener is limited; whoever lets more pile up is cut off.
    server.config_set("client-output-buffer-limit", "pubsub 200000 100000 1")
    listener = redis.Redis.from_url(own_redis.url).pubsub()

    def agent(ctx: Context) -> str:
        topic = f"mailbox:run:{ctx.run_id}"
        listener.subscribe(topic)
        until(lambda: server.pubsub_numsub(topic)[0][1] == 1, "somebody listens")

        def is_alone() -> bool:
            ctx.delta("x" * 100_000)
            return bool(server.pubsub_numsub(topic)[0][1] == 0)

        assert not is_alone()
        if leaves:
            listener.close()
        until(is_alone, "nobody listens any more")
        return "done"

    claim = perform(agent, max_attempts=1)
    listener.close()
    assert (scene.dispatch(claim).status, scene.run(claim).final_output) == ("acked", "done")
    assert not channel.breaker_of(own_redis.url).is_open()


def test_without_redis_a_delta_does_nothing(perform: Perform, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": ""}
    claim = perform(lambda ctx: ctx.delta("unheard"))
    assert scene.dispatch(claim).status == "acked"


def failing(ctx: Context) -> None:
    raise ValueError("no")


def waiting(ctx: Context) -> None:
    ctx.suspend("external_event", name="go")


@pytest.mark.parametrize("ends", [lambda ctx: "done", failing, waiting], ids=["done", "failed", "waits"])
def test_what_was_said_live_is_not_kept_once_the_activation_has_ended(perform: Perform, ends: Any) -> None:
    server = redis.Redis.from_url(conf.redis_url)
    found: list[bool] = []

    def agent(ctx: Context) -> Any:
        ctx.delta("A secret, perhaps.")
        until(lambda: server.exists(f"mailbox:text:{ctx.run_id}:1") == 1, "it is kept for who comes late")
        found.append(True)
        return ends(ctx)

    claim = perform(agent)
    assert found
    until(lambda: not server.exists(f"mailbox:text:{claim.run_id}:1"), "it is deleted")
