"""freeze at the start of a run: what it reads, in which order, and how that is numbered."""

from typing import Any

import pytest

from mailbox_app.models import Message
from mailbox_app.operations import settle
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def add(posted: Any, content: str, *, position: int, **fields: Any) -> Message:
    return given.message(thread=scene.thread(posted), content=content, position=position, **fields)


def read(claim: Any) -> list[tuple[int | None, Any]]:
    return [(message.seq, message.content) for message in claim.messages]


def test_a_run_reads_its_own_messages_in_order_and_numbers_them() -> None:
    posted = scene.post(messages=["one", "two", "three"])
    claim = scene.taken()
    assert read(claim) == [(1, "one"), (2, "two"), (3, "three")]
    rows = Message.objects.order_by("seq").values_list("state", "seq", "run_id", "read_turn", "read_at")
    assert list(rows) == [("committed", n, posted.run_id, 1, "start") for n in (1, 2, 3)]
    assert scene.run(posted).input["to_seq"] == 3
    assert scene.thread(posted).pending_revision == 3


def test_a_run_reads_what_belongs_to_nobody_wherever_it_stands() -> None:
    posted = scene.post("own")
    add(posted, "before", position=0)
    add(posted, "after", position=900)
    claim = scene.taken()
    assert read(claim) == [(1, "before"), (2, "own"), (3, "after")]
    assert set(Message.objects.values_list("run_id", flat=True)) == {posted.run_id}


def test_a_run_never_reads_another_run_s_message() -> None:
    first = scene.post("first")
    second = scene.post("second", thread_id=first.thread_id, priority=0)
    claim = scene.taken()
    assert (claim.run_id, read(claim)) == (second.run_id, [(1, "second")])
    settle.complete(claim, output="done")
    assert read(scene.taken()) == [(3, "first")]


def test_a_held_message_is_passed_over() -> None:
    posted = scene.post("own")
    held = add(posted, "held", position=0, held=True)
    assert read(scene.taken()) == [(1, "own")]
    held.refresh_from_db()
    assert (held.state, held.seq, held.run_id) == ("pending", None, None)


def test_a_retracted_message_is_not_read() -> None:
    posted = scene.post(messages=["one", "two"])
    Message.objects.filter(pk=posted.message_ids[0]).update(state="retracted", retract_reason="withdrawn")
    assert read(scene.taken()) == [(1, "two")]


def test_numbers_have_no_gap_over_runs_answers_and_failures() -> None:
    first = scene.post(messages=["one", "two"])
    settle.complete(scene.taken(), output="answer")
    scene.post("three", thread_id=first.thread_id)
    settle.dead_letter(scene.taken(), code="permanent", message="no")
    scene.post("four", thread_id=first.thread_id)
    settle.complete(scene.taken(), output={"no": "message"})
    scene.post("five", thread_id=first.thread_id)
    settle.complete(scene.taken(), output="done")
    assert [(seq, content) for seq, _, content in scene.log(first)] == [
        *((1, "one"), (2, "two"), (3, "answer"), (4, "three")),
        *((5, "four"), (6, "five"), (7, "done")),
    ]
