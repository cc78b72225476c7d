"""Live text through what goes wrong between an agent and its clients: none is gone for good, none told late."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio.client
from django.db import OperationalError, connection

from mailbox_app import channel, saying
from mailbox_app.api.v1.stream_hub import Hub
from mailbox_app.api.v1.stream_rows import Found
from mailbox_app.conf import conf
from mailbox_app.execution import Context
from mailbox_app.execution.live import LiveText
from mailbox_app.execution.settling import tell
from mailbox_app.hearing import Ear
from mailbox_app.operations import checkpoint, settle, submit
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Finished
from mailbox_app.watching import text as watching
from tests.operations import scene
from tests.races.actors import until
from tests.streams.conftest import Open, emit
from tests.streams.served import Listening
from tests.streams.test_hearing import Watching
from tests.streams.test_trouble import listeners

pytestmark = pytest.mark.django_db(transaction=True)


def spoken(opened: Open) -> tuple[Claim, Listening, Context]:
    """A run, a client of its thread, and its agent's context; "One." was said live, and heard."""
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    context = Context(taken)
    context.delta("One.")
    client.until_named("delta", text="One.")
    return taken, client, context


@contextmanager
def unanswered() -> Iterator[list[bool]]:
    """The first COMMIT of the block wins, and its answer is lost."""
    commit, lost = connection.commit, []

    def committing() -> None:
        commit()
        if not lost:
            lost.append(True)
            raise OperationalError("server closed the connection unexpectedly")

    connection.commit = committing  # type: ignore[method-assign]
    try:
        yield lost
    finally:
        del connection.commit
        assert lost


def test_what_is_said_after_a_message_whose_commit_was_not_answered_is_heard(opened: Open) -> None:
    _, client, context = spoken(opened)
    with unanswered():
        context.say("One.")
    client.until_named("MessageCommitted")
    context.delta("Two.")
    client.until_named("delta", offset=4, text="Two.")


def test_a_turn_that_follows_one_whose_commit_was_not_answered_is_heard(opened: Open) -> None:
    taken, client, _ = spoken(opened)
    submit.run(scope=scene.SCOPE, thread_id=taken.thread_id, if_active="steer", agent="echo", messages=["more"])
    with unanswered():
        _, following = tell(taken, Finished(output="One.", state={}))
    assert following is not None
    assert following.turn == 2
    client.until_named("TurnStarted")
    Context(following).delta("Two.")
    client.until_named("delta", offset=0, text="Two.")


def test_what_waits_to_be_sent_while_nothing_may_leave_the_process_is_sent_afterwards(opened: Open) -> None:
    _, client, context = spoken(opened)
    mouth = saying._mouth_of_process()
    with channel.silenced():
        with mouth._lock:  # as if it had been said just before
            speech = context._live._speech
            speech._unsent, speech._end = ["Two."], 8
        mouth.speak(speech)
        until(lambda: mouth._is_owing, "it is tried")
    client.until_named("delta", offset=4, text="Two.")


def test_what_redis_did_not_take_is_heard_though_its_agent_says_nothing_more(opened: Open) -> None:
    _, client, context = spoken(opened)
    trouble = channel.breaker_of(conf.redis_url)
    trouble.failed("channel", redis.ConnectionError())
    context.delta("Two.")
    until(lambda: saying._mouth_of_process()._is_owing, "it is tried")
    trouble.reset()
    client.until_named("delta", offset=4, text="Two.")


def test_a_sending_that_fails_in_any_way_ends_no_other(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client, context = spoken(opened)
    tried: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(channel, "send", lambda commands: tried.append(commands) or 1 / 0)
        context.delta("lost")
        until(lambda: tried, "it is tried")
    context.delta("Two.")
    client.until(lambda one: one.name == "delta" and one.data["text"].endswith("Two."))


def test_a_run_is_heard_though_the_one_before_could_not_be_left(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library connects anew in one task while another one writes: anything may come of that."""
    taken, client, _ = spoken(opened)
    unsubscribe, failed = redis.asyncio.client.PubSub.unsubscribe, []

    async def once(subscription: Any, *topics: str) -> Any:
        if not failed:
            failed.append(topics)
            raise AttributeError("'NoneType' object has no attribute 'writelines'")
        return await unsubscribe(subscription, *topics)

    monkeypatch.setattr(redis.asyncio.client.PubSub, "unsubscribe", once)
    with channel.silenced():  # the next run begins before the hub has read that this one has ended
        scene.post(thread_id=taken.thread_id)
        settle.complete(taken, output="done")
        second = scene.taken()
    emit(second, "Second")
    client.until_named("Second")
    Context(second).delta("Two.")
    client.until_named("delta", offset=0, text="Two.")
    assert failed


def test_a_subscription_that_failed_is_made_with_the_next_ping(
    opened: Open, monkeypatch: pytest.MonkeyPatch, observed: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setattr("mailbox_app.hearing._PING_SECONDS", 1.0)
    idle = scene.posted_and_taken()
    settle.complete(idle, output="done")
    opened(f"/threads/{idle.thread_id}/events/stream").until_named("RunFinished")
    until(lambda: listeners() == 1, "the subscription that a run is added to")
    subscribe, failed = redis.asyncio.client.PubSub.subscribe, []

    async def once(subscription: Any, *topics: str) -> Any:
        if not failed and any(":run:" in topic for topic in topics):
            failed.append(topics)
            raise AttributeError("'NoneType' object has no attribute 'writelines'")
        return await subscribe(subscription, *topics)

    monkeypatch.setattr(redis.asyncio.client.PubSub, "subscribe", once)
    spoken(opened)
    assert failed
    assert not [name for name, _ in observed if name in ("stream.failed", "stream.deaf")]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each time that a feed has asked for what is kept, and taken it."""
    fetch, found = Hub._fetch, []

    async def noted(hub: Hub, *given: Any) -> None:
        await fetch(hub, *given)
        found.append(given)

    monkeypatch.setattr(Hub, "_fetch", noted)
    return found


def test_who_comes_first_after_a_message_is_not_told_again_what_it_holds(opened: Open, fetched: list[Any]) -> None:
    """Redis does not know yet that it is closed; nor does it ever, if the process has ended in between."""
    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("One.")
    until(lambda: watching.kept(taken.run_id, taken.fence), "it is kept")
    checkpoint.say(taken, scene.entry("One.", verb="say"), "One.")
    client = opened(f"/threads/{taken.thread_id}/events/stream", last=str(scene.thread(taken).last_cursor))
    until(lambda: fetched, "what is kept was asked for")
    emit(taken, "Told")
    client.until_named("Told")
    with channel.silenced():
        live.close()
    live.delta("Two.")
    client.until_named("delta", offset=4, text="Two.")
    assert [one.data["text"] for one in client.heard if one.name == "delta"] == ["Two."]


def test_what_a_message_holds_and_was_on_its_way_when_somebody_came_is_not_told_either(
    opened: Open, fetched: list[Any]
) -> None:
    taken = scene.posted_and_taken()
    begun = scene.thread(taken).last_cursor
    checkpoint.say(taken, scene.entry("One.", verb="say"), "One.")
    client = opened(f"/threads/{taken.thread_id}/events/stream", last=str(scene.thread(taken).last_cursor))
    until(lambda: fetched, "what is kept was asked for")
    about = {"type": "delta", "fence": taken.fence, "turn": 1, "attempt": 1}
    topic = saying.TEXT.format(run_id=taken.run_id)
    channel.publish(topic, {**about, "after": begun, "closed": 0, "offset": 0, "text": "One."})
    until(lambda: len(fetched) == 2, "it is asked what holds it")
    channel.publish(topic, {**about, "after": begun + 1, "closed": 4, "offset": 4, "text": "Two."})
    client.until_named("delta", offset=4, text="Two.")
    assert [one.data["text"] for one in client.heard if one.name == "delta"] == ["Two."]


def test_what_is_said_since_the_last_message_is_told_to_who_comes_past_it(opened: Open) -> None:
    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("One.")
    until(lambda: watching.kept(taken.run_id, taken.fence), "it is kept")
    emit(taken, "Told")
    submit.messages(scope=scene.SCOPE, thread_id=taken.thread_id, messages=["and"], boundary="next_step")
    checkpoint.reach(taken)
    client = opened(f"/threads/{taken.thread_id}/events/stream", last=str(scene.thread(taken).last_cursor))
    client.until_named("delta", offset=0, text="One.")


def test_what_is_kept_of_a_long_text_is_bounded_however_few_pieces_it_comes_in() -> None:
    speech = saying.Speech(run_id=uuid.uuid4(), fence=1, attempt=1)
    kept = 0
    for _ in range(20):
        speech._unsent, speech._end = ["x" * 250_000], speech._end + 250_000
        commands = speech.commands()
        kept = 0 if commands[0][0] == "DEL" else kept
        kept += len(str(next(command for command in commands if command[0] == "RPUSH")[2]))
        speech.answered([1] * (len(commands) - 3) + [speech._entries, 1, 1])
        assert kept < 4 * saying.MOST_TEXT


def test_whose_last_client_leaves_while_it_goes_from_one_run_to_the_next_is_left_altogether(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def left() -> tuple[Any, Any]:
        hub, client, other = Hub(), Watching(), Watching()
        is_leaving, may_go_on = asyncio.Event(), asyncio.Event()
        leave = Ear.leave

        async def slowly(ear: Ear, run_id: uuid.UUID) -> None:
            await leave(ear, run_id)
            is_leaving.set()
            await may_go_on.wait()

        another = hub.join(other, uuid.uuid4(), head=0)
        feed = hub.join(client, uuid.uuid4(), head=0)
        first, second = uuid.uuid4(), uuid.uuid4()
        await hub._apply(feed, Found(head=1, pruned=0, fence=1, open_run_id=first, is_gone=False))
        monkeypatch.setattr(Ear, "leave", slowly)
        going = asyncio.create_task(
            hub._apply(feed, Found(head=2, pruned=0, fence=2, open_run_id=second, is_gone=False))
        )
        await is_leaving.wait()
        hub.leave(client, feed)
        may_go_on.set()
        await going
        found = dict(hub._of_run), dict(hub._ear._runs)
        hub.leave(other, another)
        return found

    assert asyncio.run(left()) == ({}, {})
