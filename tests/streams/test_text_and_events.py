"""Live text and durable events come by two ways, and either may be the quicker: nothing is shown twice or lost."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis

from mailbox_app import channel
from mailbox_app.api.v1 import stream_rows
from mailbox_app.api.v1.stream_text import Came, RunText
from mailbox_app.conf import conf
from mailbox_app.execution.live import LiveText
from mailbox_app.operations import checkpoint, recover, resume, settle, submit
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import scene
from tests.races.actors import until
from tests.streams.conftest import Open, emit
from tests.streams.served import Heard, Listening

pytestmark = pytest.mark.django_db(transaction=True)

RUN = uuid.UUID(int=1)


def piece(offset: int, text: str, *, after: int, closed: int = 0, turn: int = 1) -> dict[str, Any]:
    place = {"after": after, "closed": closed, "offset": offset}
    return {"fence": 1, "turn": turn, "attempt": 1, **place, "text": text}


def said(claim: Claim, live: LiveText, text: str) -> None:
    checkpoint.say(claim, scene.entry(text, verb="say"), text)
    live.close()


def is_said(text: str) -> Callable[[Heard], bool]:
    return lambda one: one.name == "MessageCommitted" and one.data["payload"]["content"] == text


def deltas(client: Listening) -> list[tuple[int, str]]:
    return [(one.data["offset"], one.data["text"]) for one in client.heard if one.name == "delta"]


def publish(claim: Claim, piece: str) -> None:
    redis.Redis.from_url(conf.redis_url).publish(f"mailbox:run:{claim.run_id}", piece)


def test_a_message_closes_what_was_said_before_it_and_nothing_that_was_said_after_it() -> None:
    text = RunText(RUN, fence=1)
    text.add(piece(0, "One.", after=3))
    text.close(3)  # an event that the text was said after
    assert text.tail(0) == (0, "One.")
    text.close(4)
    assert text.tail(0) == (4, "")
    assert text.add(piece(4, "Two.", after=4, closed=4)) == Came.NEW
    text.close(4)  # the same again
    assert text.tail(0) == (4, "Two.")


def test_text_that_comes_later_than_the_message_that_holds_it_is_not_told() -> None:
    text = RunText(RUN, fence=1, closed_at=4)
    assert text.add(piece(0, "One.", after=3)) == Came.OLD
    assert text.tail(0) == (4, "")
    assert text.add(piece(4, "Two.", after=4)) == Came.NEW
    assert text.tail(0) == (4, "Two.")


def test_text_whose_place_among_the_events_is_not_known_is_told_and_closed_by_the_next_message() -> None:
    text = RunText(RUN, fence=1, closed_at=4)
    assert text.add(piece(0, "One.", after=0)) == Came.NEW
    text.close(5)
    assert text.tail(0) == (4, "")


def test_what_is_said_after_a_message_is_shown_after_it_though_it_is_heard_before(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 60.0}
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    live = LiveText(taken)
    live.delta("One.")
    client.until_named("delta", offset=0, text="One.")
    emit(taken, "Heard")  # what was read because the process had begun to listen is over
    client.until_named("Heard")
    with channel.silenced():  # the web process is not told of the message
        said(taken, live, "One.")
    live.delta("Two.")
    client.until_named("delta", offset=4, text="Two.")
    names = [one.data["payload"]["content"] if is_said("One.")(one) else one.name for one in client.heard]
    assert names[-3:] == ["Heard", "One.", "delta"]
    live.delta("Three.")
    client.until_named("delta", offset=8, text="Three.")


def test_what_is_heard_later_than_the_message_that_holds_it_is_not_shown(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    live = LiveText(taken)
    live.delta("One")
    client.until_named("delta", offset=0, text="One")
    with channel.silenced():
        live.delta(".")
    late = live._speech._encoded(3, ".")  # it is on its way when the message is committed
    said(taken, live, "One.")
    client.until(is_said("One."))
    publish(taken, late)
    emit(taken, "Between")
    client.until_named("Between")
    live.delta("Two.")
    client.until_named("delta", text="Two.")
    assert [text for _, text in deltas(client)] == ["One", "Two."]


def test_a_message_that_a_run_reads_closes_nothing_of_what_it_says_whatever_its_role(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    live = LiveText(taken)
    live.delta("One.")
    client.until_named("delta", offset=0, text="One.")
    example = NewMessage(content="an example", role="assistant")
    submit.messages(scope=scene.SCOPE, thread_id=taken.thread_id, messages=[example], boundary="next_step")
    assert [message.content for message in checkpoint.reach(taken, after_seq=1)] == ["an example"]
    client.until(is_said("an example"))
    live.delta("Two.")
    client.until_named("delta", offset=4, text="Two.")
    said(taken, live, "One.Two.")
    client.until(is_said("One.Two."))
    live.delta("Three.")
    client.until_named("delta", offset=8, text="Three.")
    late = opened(f"/threads/{taken.thread_id}/events/stream")
    late.until_named("delta", offset=8, text="Three.")
    assert [text for _, text in deltas(late)] == ["Three."]


@pytest.mark.parametrize(("role", "closes"), [("assistant", True), ("user", False)])
def test_a_message_that_was_told_before_events_named_who_has_said_it_closes_by_its_role(
    role: str, closes: bool
) -> None:
    run = given.run()
    given.event(thread=run.thread, run_id=run.pk, kind="MessageCommitted", payload={"role": role})
    found = stream_rows.of_run(run.thread_id, run.pk, 0)
    assert found is not None
    assert [one.closes for one in found.told] == [closes]


def test_who_comes_while_text_is_still_kept_that_a_message_holds_is_not_shown_it(opened: Open) -> None:
    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("One.")
    kept = redis.Redis.from_url(conf.redis_url)
    key = f"mailbox:text:{taken.run_id}:{taken.fence}"
    until(lambda: kept.llen(key) == 1, "it is kept")
    checkpoint.say(taken, scene.entry("One.", verb="say"), "One.")  # and has not been closed yet
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until(is_said("One."))
    live.close()
    live.delta("Two.")
    client.until_named("delta", text="Two.")
    assert deltas(client) == [(4, "Two.")]


def test_live_text_names_an_activation_that_changes_with_each_turn_resume_and_attempt(opened: Open) -> None:
    first = scene.posted_and_taken()
    client = opened(f"/runs/{first.run_id}/events/stream")

    def speak(claim: Claim, text: str) -> tuple[str, int]:
        LiveText(claim).delta(text)
        data = client.until_named("delta", text=text, offset=0).data
        return data["activation"], data["attempt"]

    found = [speak(first, "the first turn says much")]
    submit.messages(scope=scene.SCOPE, thread_id=first.thread_id, messages=["and"], boundary="on_natural_end")
    second = settle.complete(first)
    assert second is not None
    found.append(speak(second, "the second"))
    scene.expire_lease(second)
    assert recover.reclaim() == 1
    scene.make_available(second)
    third = scene.taken()
    found.append(speak(third, "a"))
    settle.suspend(third, scene.wait(name="go"))
    resume.run(scope=scene.SCOPE, run_id=first.run_id, name="go")
    found.append(speak(scene.taken(), "b"))
    assert [attempt for _, attempt in found] == [1, 1, 2, 1]
    assert len({activation for activation, _ in found}) == 4
    # The durable events tell it as well.
    begun = [one for one in client.heard if one.name in ("RunStarted", "TurnStarted", "RunResumed")]
    assert [(one.name, one.data["payload"].get("attempt"), one.data["payload"]["turn"]) for one in begun] == [
        ("RunStarted", 1, 1), ("TurnStarted", None, 2), ("RunResumed", 2, 2), ("RunResumed", 1, 2),
    ]  # fmt: skip
