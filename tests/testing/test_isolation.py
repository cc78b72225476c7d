"""What leaves the process of a test: nothing, with the real Redis of the tests listening."""

import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from mailbox_app import channel, hints, testing
from mailbox_app.conf import conf
from mailbox_app.execution import Context
from mailbox_app.operations import submit
from mailbox_app.testing import Mailbox

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid.uuid4()}"


@pytest.fixture
def traffic(queue: str) -> Iterator[Callable[[], list[str]]]:
    """What has reached Redis of this queue: its signals, its flag, and what was published since the test began."""
    client = redis.Redis.from_url(conf.redis_url, decode_responses=True)
    channel.forget_failures()
    with client.pubsub() as listener:
        listener.psubscribe("*")
        assert listener.get_message(timeout=10)["type"] == "psubscribe"

        def seen() -> list[str]:
            client.publish("end", "end")  # what came before it has arrived before it
            published = []
            while (message := listener.get_message(timeout=10))["data"] != "end":
                published.append(message["channel"])
            return [*published, *client.keys(f"*{queue}")]

        yield seen
        client.delete(queue)


def test_with_the_fixture_neither_signal_nor_live_text_is_sent(
    mailbox: Mailbox, registered_agent: Callable[..., str], queue: str, traffic: Callable[[], list[str]]
) -> None:
    def agent(ctx: Context) -> None:
        for piece in ("one ", "two"):
            ctx.delta(piece)

    registered_agent(agent, queue=queue)
    runs = [mailbox.submit("go", agent="probe") for _ in range(2)]
    mailbox.run_until_idle()
    assert mailbox.streamed(runs[0]) == mailbox.streamed(runs[1]) == ["one ", "two"]
    assert mailbox.streamed(uuid.uuid4()) == []
    assert hints.fill(queue, signals=3) == 0
    assert traffic() == []


def test_outside_the_block_signals_are_sent(queue: str, traffic: Callable[[], list[str]]) -> None:
    with testing.isolated():
        hints.wake(queue)
        channel.publish(queue, {})
    assert traffic() == []
    hints.wake(queue)
    channel.publish(queue, {})
    assert set(traffic()) >= {f"mailbox:{queue}", f"mailbox:signal:{queue}", queue}


def test_run_until_idle_sends_nothing_of_its_own(
    registered_agent: Callable[..., str], queue: str, traffic: Callable[[], list[str]]
) -> None:
    def agent(ctx: Context) -> None:
        ctx.delta("unheard")
        ctx.step("again", lambda: str(submit.run(scope="test", agent="quiet", messages=["go"]).run_id))

    registered_agent(agent, queue=queue)
    registered_agent(lambda ctx: None, name="quiet", queue=queue)
    with testing.isolated():
        submit.run(scope="test", agent="probe", messages=["go"])
    assert testing.run_until_idle() == 2
    assert traffic() == []


def test_blocks_nest_and_each_hears_its_own() -> None:
    with testing.isolated() as outer:
        channel.publish("a", {"n": 1})
        with testing.isolated() as inner:
            channel.publish("b", {"n": 2})
        assert channel.is_silenced()
        channel.publish("c", {"n": 3})
    assert not channel.is_silenced()
    assert [topic for topic, _ in outer] == ["a", "b", "c"]
    assert inner == [("b", {"n": 2})]
