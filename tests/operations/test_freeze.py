"""freeze: what a run reads at which boundary, in which order, and how that is numbered."""

from typing import Any

import pytest

from mailbox_app.models import Boundary, Message, Run
from mailbox_app.operations import freeze, settle
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


ORDER = ["interrupt", "next_step", "on_natural_end", "new_run"]


def selected(boundary: str, *rows: dict[str, Any]) -> list[int]:
    """Positions of what a running run reads at the boundary, of messages with these columns."""
    run = given.run(status="running")
    other = given.run(thread=run.thread)
    for position, row in enumerate(rows):
        owner = {"run": {"own": run, "other": other}[row["of"]]} if "of" in row else {}
        target = {"target_run_id": {"own": run, "other": other}[row["to"]].pk} if "to" in row else {}
        rest = {name: value for name, value in row.items() if name not in ("of", "to")}
        given.message(thread=run.thread, position=position, **owner, **target, **rest)
    unread = freeze.unread(thread=run.thread, run=run)
    return [message.position for message in freeze.select(unread, boundary=Boundary(boundary), run=run)]


@pytest.mark.parametrize("boundary", ORDER)
@pytest.mark.parametrize("asked", ORDER)
def test_a_message_is_eligible_at_its_boundary_and_at_every_later_one(asked: str, boundary: str) -> None:
    is_eligible = ORDER.index(asked) <= ORDER.index(boundary)
    assert selected(boundary, {"boundary": asked}) == ([0] if is_eligible else [])


@pytest.mark.parametrize("boundary", ORDER)
def test_input_for_a_wait_is_read_by_no_boundary_but_its_own(boundary: str) -> None:
    assert selected(boundary, {"boundary": "resume_input", "to": "own"}) == []
    assert selected("resume_input", {"boundary": "resume_input", "to": "own"}) == [0]
    assert selected("resume_input", {"boundary": "resume_input", "to": "other"}) == []
    assert selected("resume_input", {"boundary": "next_step"}) == []


NEXT, LATER, NEW = {"boundary": "next_step"}, {"boundary": "on_natural_end"}, {"boundary": "new_run"}
SCANS: dict[str, tuple[str, list[dict[str, Any]], list[int]]] = {
    "what waits for a new run keeps its place": ("next_step", [NEW, NEXT, NEW, NEXT], [1, 3]),
    "anything else that must wait ends the scan": ("next_step", [NEXT, LATER, NEXT], [0]),
    "a new run takes whatever came": ("new_run", [NEXT, LATER, NEW], [0, 1, 2]),
    "another run's are skipped": ("new_run", [{"of": "other", **NEW}, {"of": "own", **NEW}, NEW], [1, 2]),
    "held ones are skipped, as barriers too": ("new_run", [{"held": True, "barrier": True}, NEW], [1]),
    "one is taken alone": ("new_run", [{"granularity": "one"}, NEW], [0]),
    "a later one ends the batch": ("new_run", [NEW, NEW, {"granularity": "one"}, NEW], [0, 1]),
    "a barrier is the last of its batch": ("new_run", [NEW, {"barrier": True}, NEW], [0, 1]),
    "an ineligible barrier is not passed": ("next_step", [{"barrier": True, **NEW}, NEXT], []),
    "another run's barrier is not passed": ("new_run", [{"of": "other", "barrier": True}, {"of": "own"}], []),
    "a barrier waits for what was skipped": ("next_step", [NEW, {"barrier": True, **NEXT}], []),
    "a barrier waits for another run's": ("new_run", [{"of": "other"}, {"of": "own", "barrier": True}], []),
    "a barrier waits for nothing held": ("new_run", [{"held": True}, {"barrier": True}], [1]),
    "what is for this run is read by it": ("next_step", [{"to": "own", **NEXT}], [0]),
    "what is for another run ends the scan": ("next_step", [{"to": "other", **NEXT}, NEXT], []),
    "without fallback it is for no new run": ("new_run", [{"to": "other", **NEXT}, NEW], [1]),
    "with fallback it is": ("new_run", [{"to": "other", "fallback": "new_run", **NEXT}, NEW], [0, 1]),
    "a wait's input never holds up a new run": ("new_run", [{"boundary": "resume_input", "to": "other"}, NEW], [1]),
}


@pytest.mark.parametrize(("boundary", "rows", "expected"), SCANS.values(), ids=SCANS.keys())
def test_a_scan(boundary: str, rows: list[dict[str, Any]], expected: list[int]) -> None:
    assert selected(boundary, *rows) == expected


def test_what_other_runs_will_read_is_not_even_looked_at() -> None:
    run = given.run(status="running")
    other = given.run(thread=run.thread)
    for _ in range(3):
        given.message(thread=run.thread, run=other)
    own = given.message(thread=run.thread, run=run)
    barrier = given.message(thread=run.thread, run=other, barrier=True)
    assert [message.pk for message in freeze.unread(thread=run.thread, run=run)] == [own.pk, barrier.pk]


def test_the_input_of_a_run_grows_with_all_it_reads() -> None:
    run = Run(input={})
    first, second = Message(seq=3), Message(seq=4)
    run.input = freeze.input_of(run, [first])
    run.input = freeze.input_of(run, [second])
    assert run.input == {"from_seq": 3, "to_seq": 4, "message_ids": [str(first.pk), str(second.pk)]}
    assert freeze.input_of(run, []) == run.input
