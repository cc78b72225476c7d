"""pending: what nobody has read can be edited, withdrawn and put in order, under guards, until it is read."""

import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from mailbox_app.errors import (
    AlreadyConsumed,
    Gone,
    InvalidInput,
    MessageNotFound,
    RevisionConflict,
    ThreadNotFound,
)
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run
from mailbox_app.operations import checkpoint, interrupt, pending, settle, submit
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

RETRACTED = {"type": "cancelled", "detail": "messages_retracted"}


def edit(of: Any, index: int = 0, **changes: Any) -> pending.Edited:
    return pending.edit(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "message_id": of.message_ids[index], **changes}
    )


def retract(of: Any, index: int = 0, **more: Any) -> pending.Retracted:
    return pending.retract(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "message_id": of.message_ids[index], **more}
    )


def reorder(of: Any, *message_ids: Any, **more: Any) -> pending.Reordered:
    return pending.reorder(scope=scene.SCOPE, thread_id=of.thread_id, message_ids=list(message_ids), **more)


def steer(of: Any, text: str, boundary: str = "next_step") -> submit.Receipt:
    return submit.messages(scope=scene.SCOPE, thread_id=of.thread_id, messages=[text], boundary=boundary)


def listed(of: Any) -> list[str]:
    """What is pending, in order."""
    rows = Message.objects.filter(thread_id=of.thread_id).pending().order_by("position")
    return list(rows.values_list("content", flat=True))


def read(of: Any) -> list[list[str]]:
    """What each of the runs reads that can start now, one after the other."""
    texts = []
    while claim := scene.take():
        assert claim.thread_id == of.thread_id
        texts.append([str(message.content) for message in claim.messages])
        settle.complete(claim)
    return texts


def queue(*texts: str, **given: Any) -> list[submit.Receipt]:
    """Runs of one message each on one thread."""
    first = scene.post(texts[0], **given)
    return [first, *(scene.post(text, thread_id=first.thread_id, **given) for text in texts[1:])]


# Edit


def test_an_edited_message_is_read_as_it_was_edited_in_its_place() -> None:
    posted = scene.post(messages=["one", "two"])
    before = scene.thread(posted).pending_revision
    edited = edit(posted, content=[{"type": "text", "text": "eins"}], metadata={"by": "ada"}, revision=1)
    assert (edited.message.pk, edited.message.revision) == (posted.message_ids[0], 2)
    assert edited.pending_revision == scene.thread(posted).pending_revision == before + 1
    event = scene.last_event(posted)
    assert (event.kind, event.run_id) == ("MessageEdited", posted.run_id)
    assert event.payload == {
        "thread_id": str(posted.thread_id),
        "message_id": str(posted.message_ids[0]),
        "revision": 2,
        "changed": ["content", "metadata"],
    }
    claim = scene.taken()
    assert [(message.text, message.metadata) for message in claim.messages] == [("eins", {"by": "ada"}), ("two", {})]


def test_an_edit_changes_what_it_names_and_nothing_else() -> None:
    posted = scene.post(messages=[{"content": "one", "metadata": {"a": 1}, "sender": "bob", "client_id": "m-1"}])
    before = Message.objects.values().get()
    edit(posted, content="uno")
    edit(posted, metadata={})
    after = Message.objects.values().get()
    changed = {"content": "uno", "metadata": {}, "revision": 3, "updated_at": after["updated_at"]}
    assert after == before | changed
    with scene.nothing_changes():
        assert edit(posted, content="uno").message.revision == 3, "it says so already"


def test_of_two_edits_of_one_revision_the_second_is_refused_with_the_number_that_is() -> None:
    posted = scene.post()
    edit(posted, content="first", revision=1)
    with scene.nothing_changes(), pytest.raises(RevisionConflict) as refused:
        edit(posted, content="second", revision=1)
    assert refused.value.facts == {
        "message_id": posted.message_ids[0],
        "revision": 2,
        "pending_revision": scene.thread(posted).pending_revision,
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "content"),
        ({"content": " "}, "content"),
        ({"content": 5}, "content"),
        ({"content": "\x00"}, "content"),
        ({"metadata": []}, "metadata"),
        ({"content": "x", "revision": 0}, "revision"),
        ({"content": "x", "revision": "1"}, "revision"),
        ({"content": "x", "revision": True}, "revision"),
        ({"content": "x", "message_id": "no id"}, "message_id"),
        ({"content": "x", "scope": ""}, "scope"),
    ],
)
def test_an_edit_of_the_wrong_form_changes_nothing(changes: dict[str, Any], field: str) -> None:
    posted = scene.post()
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        edit(posted, **changes)
    assert refused.value.errors[0]["field"] == field


def test_a_steering_message_is_edited_and_withdrawn_until_its_boundary() -> None:
    claim = scene.posted_and_taken()
    first, second = steer(claim, "left"), steer(claim, "right")
    assert edit(first, content="straight on").message.run_id is None
    assert retract(second).cancelled_run_id is None
    assert scene.last_event(claim).run_id is None
    assert [message.content for message in checkpoint.reach(claim)] == ["straight on"]
    with scene.nothing_changes(), pytest.raises(AlreadyConsumed):
        edit(first, content="too late")


# What all refuse


ACTS = {
    "edit": lambda of, pk, **more: pending.edit(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "message_id": pk, "content": "x", **more}
    ),
    "retract": lambda of, pk, **more: pending.retract(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "message_id": pk, **more}
    ),
    "reorder": lambda of, pk, **more: pending.reorder(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "message_ids": [pk], **more}
    ),
}
EACH = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())


@EACH
def test_what_was_read_is_never_changed(act: Any) -> None:
    claim = scene.posted_and_taken()
    [message] = claim.messages
    with scene.nothing_changes(), pytest.raises(AlreadyConsumed) as refused:
        act(claim, message.pk)
    assert refused.value.facts == {"message_id": message.pk, "run_id": claim.run_id, "seq": 1}
    settle.complete(claim, output="said")
    said = Message.objects.get(content="said")
    with scene.nothing_changes(), pytest.raises(AlreadyConsumed) as refused:
        act(claim, said.pk)
    assert refused.value.facts["run_id"] == claim.run_id


@EACH
def test_what_was_withdrawn_is_gone(act: Any) -> None:
    posted = scene.post(messages=["one", "two"])
    retract(posted, reason="typo")
    with scene.nothing_changes(), pytest.raises(Gone, match="typo"):
        act(posted, posted.message_ids[0])


@EACH
def test_what_is_unknown_or_another_thread_s_or_scope_s_is_not_found(act: Any) -> None:
    posted, other = scene.post(), scene.post()
    with scene.nothing_changes():
        for unknown in (uuid.uuid4(), other.message_ids[0]):
            with pytest.raises(MessageNotFound):
                act(posted, unknown)
        with pytest.raises(ThreadNotFound):
            act(posted, posted.message_ids[0], scope="other")


# Retract


def test_a_withdrawn_message_is_read_by_nobody_and_says_why() -> None:
    posted = scene.post(messages=["one", "two"])
    before = scene.thread(posted).pending_revision
    retracted = retract(posted, reason="typo", revision=1)
    assert retracted == pending.Retracted(
        thread_id=posted.thread_id,
        message_id=posted.message_ids[0],
        cancelled_run_id=None,
        withdrawn_dispatch_id=None,
        pending_revision=before + 1,
    )
    row = Message.objects.get(pk=posted.message_ids[0])
    assert (row.state, row.retract_reason, row.revision) == ("retracted", "typo", 1)
    assert scene.last_event(posted).kind == "MessageRetracted"
    assert scene.last_event(posted).payload["reason"] == "typo"
    assert read(posted) == [["two"]]


def test_a_stale_withdrawal_changes_nothing() -> None:
    posted = scene.post()
    edit(posted, content="better")
    with scene.nothing_changes(), pytest.raises(RevisionConflict):
        retract(posted, revision=1)
    with scene.nothing_changes(), pytest.raises(InvalidInput):
        retract(posted, reason="x" * 101)


def test_withdrawing_all_that_a_run_was_to_read_cancels_it() -> None:
    posted = scene.post(messages=["one", "two"], dedupe_key="k")
    behind = scene.post("behind", thread_id=posted.thread_id)
    assert retract(posted, 1).cancelled_run_id is None
    assert retract(posted, 0).cancelled_run_id == posted.run_id
    run, dispatch = scene.run(posted), scene.dispatch(posted)
    assert (run.status, run.termination, run.started_at) == ("done", RETRACTED, None)
    assert (dispatch.status, dispatch.run_status, dispatch.termination) == ("cancelled", "done", RETRACTED)
    assert scene.kinds(posted)[-2:] == ["MessageRetracted", "RunCancelled"]
    assert scene.last_event(posted).payload["reason"] == "withdrawn"
    assert scene.run(scene.post(dedupe_key="k")).status == "created", "its key is free"
    assert scene.flag(posted) == scene.DUE
    assert scene.taken().run_id == behind.run_id


def test_a_thread_whose_only_run_is_withdrawn_is_idle() -> None:
    posted = scene.post()
    retract(posted)
    assert scene.flag(posted) == scene.IDLE
    assert scene.take() is None
    later = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    assert retract(later).cancelled_run_id == later.run_id
    assert scene.flag(later) == scene.IDLE


def test_a_run_that_alone_would_read_somebody_s_message_is_kept_for_it() -> None:
    posted = scene.post("own")
    given.message(thread=scene.thread(posted), content="anybody's", position=900)
    assert retract(posted).cancelled_run_id is None
    assert read(posted) == [["anybody's"]]


def test_another_run_reads_what_is_anybody_s_when_this_one_is_withdrawn() -> None:
    first, _ = queue("first", "second")
    given.message(thread=scene.thread(first), content="anybody's", position=900)
    assert retract(first).cancelled_run_id == first.run_id
    assert read(first) == [["second", "anybody's"]]


def test_a_held_message_is_edited_and_withdrawn() -> None:
    first, second = queue("first", "second")
    interrupt.thread(scope=scene.SCOPE, thread_id=first.thread_id)
    edit(first, content="better")
    assert retract(second).cancelled_run_id is None, "it has ended before"
    released = pending.release(scope=scene.SCOPE, thread_id=first.thread_id)
    assert released.message_ids == first.message_ids
    assert released.pending_revision == scene.thread(first).pending_revision
    assert read(first) == [["better"]]


@pytest.fixture
def resuming() -> Any:
    """A run that waits for input, with two messages and the dispatch by which it is to go on with them."""
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait())
    run = scene.run(claim)
    assert run.waiting is not None
    Run.objects.filter(pk=run.pk).update(waiting={**run.waiting, "reason": "user_input"})
    given.journal_entry(run=run, verb="suspend", name="external_event", result=None)
    fed = [
        given.message(thread=run.thread, boundary="resume_input", target_run_id=run.pk, fallback="new_run").pk
        for _ in range(2)
    ]
    return SimpleNamespace(thread_id=run.thread_id, run_id=run.pk, message_ids=fed)


def test_withdrawing_all_that_a_waiting_run_was_to_go_on_with_withdraws_that_dispatch_alone(resuming: Any) -> None:
    queued = given.dispatch(run=scene.run(resuming))
    assert retract(resuming).withdrawn_dispatch_id is None
    assert retract(resuming, 1).withdrawn_dispatch_id == queued.pk
    queued.refresh_from_db()
    assert (queued.status, queued.run_status) == ("cancelled", "waiting")
    assert scene.run(resuming).status == "waiting"
    assert not JournalEntry.objects.exists(), "else the agent would go on with nothing"
    assert scene.flag(resuming) == scene.IDLE
    assert scene.take() is None


def test_a_resume_that_was_queued_for_something_else_stays(resuming: Any) -> None:
    queued = given.dispatch(run=scene.run(resuming))
    Run.objects.filter(pk=resuming.run_id).update(waiting={"reason": "external_event", "message": ""})
    assert retract(resuming).withdrawn_dispatch_id is None
    assert retract(resuming, 1).withdrawn_dispatch_id is None
    queued.refresh_from_db()
    assert queued.status == "queued"
    assert JournalEntry.objects.exists()


# Reorder


def test_the_messages_named_come_first_and_the_others_keep_their_order() -> None:
    posted = scene.post(messages=["a", "b", "c", "d"])
    a, b, c, d = posted.message_ids
    before = scene.thread(posted).pending_revision
    ordered = reorder(posted, c, b, pending_revision=before)
    assert listed(posted) == ["c", "b", "a", "d"]
    assert ordered == pending.Reordered(
        thread_id=posted.thread_id, message_ids=[c, a], run_ids=[], pending_revision=before + 1
    )
    assert [Message.objects.get(pk=pk).revision for pk in (a, b, c, d)] == [2, 1, 2, 1]
    event = scene.last_event(posted)
    assert (event.kind, event.payload["message_ids"]) == ("MessagesReordered", [str(c), str(b)])
    reorder(posted, d, c, b, a)
    assert read(posted) == [["d", "c", "b", "a"]]


def test_runs_move_with_the_messages_they_will_read() -> None:
    first, second, third = queue("first", "second", "third")
    ordered = reorder(first, *third.message_ids, *first.message_ids)
    assert ordered.run_ids == [third.run_id, first.run_id, second.run_id]
    for one in (first, second, third):
        assert scene.dispatch(one).order == scene.run(one).order
    assert read(first) == [["third"], ["first"], ["second"]]


def test_who_comes_after_a_reordering_comes_last() -> None:
    first, second = queue("first", "second")
    reorder(first, *second.message_ids)
    scene.post("third", thread_id=first.thread_id)
    assert read(first) == [["second"], ["first"], ["third"]]


def test_only_runs_whose_place_is_not_right_any_more_are_written() -> None:
    runs = queue("a", "b", "c", "d")
    before = {one.run_id: scene.run(one).updated_at for one in runs}
    assert reorder(runs[0], *runs[1].message_ids).run_ids == [runs[1].run_id, runs[0].run_id]
    assert [before[one.run_id] == scene.run(one).updated_at for one in runs] == [False, False, True, True]


def test_a_run_that_lost_its_first_message_does_not_stay_in_front_of_one_that_is_put_there() -> None:
    first = scene.post(messages=["a", "z"])
    second = scene.post("b", thread_id=first.thread_id)
    reorder(first, first.message_ids[0], *second.message_ids)
    retract(first, 0)
    assert listed(first) == ["b", "z"]
    third = scene.post("c", thread_id=first.thread_id)
    reorder(first, *third.message_ids, *second.message_ids)
    assert listed(first) == ["c", "b", "z"]
    assert read(first) == [["c"], ["b"], ["z"]]


def test_the_flag_follows_the_order() -> None:
    given.registration(agent="other")
    first = scene.post("first")
    second = scene.post("second", thread_id=first.thread_id, agent="other")
    assert scene.thread(first).due_agent == "echo"
    reorder(first, *second.message_ids)
    assert scene.thread(first).due_agent == "other"


def test_priority_comes_before_order() -> None:
    first = scene.post("first", priority=1)
    second = scene.post("second", thread_id=first.thread_id)
    reorder(first, *second.message_ids)
    assert read(first) == [["first"], ["second"]]


def test_what_is_held_is_released_in_the_order_it_was_put_in() -> None:
    first, second = queue("first", "second")
    interrupt.thread(scope=scene.SCOPE, thread_id=first.thread_id)
    assert reorder(first, *second.message_ids).run_ids == [], "they have ended"
    released = pending.release(scope=scene.SCOPE, thread_id=first.thread_id)
    assert released.message_ids == [*second.message_ids, *first.message_ids]
    assert read(first) == [["second"], ["first"]]


def test_released_messages_of_one_run_get_one_run_wherever_they_stand() -> None:
    first = scene.post(messages=["a", "b"])
    second = scene.post("x", thread_id=first.thread_id)
    interrupt.thread(scope=scene.SCOPE, thread_id=first.thread_id)
    reorder(first, first.message_ids[0], *second.message_ids)
    assert listed(first) == ["a", "x", "b"]
    assert len(pending.release(scope=scene.SCOPE, thread_id=first.thread_id).run_ids) == 2
    assert read(first) == [["a", "b"], ["x"]]


def test_the_order_that_is_changes_nothing() -> None:
    first, second = queue("first", "second")
    with scene.nothing_changes():
        ordered = reorder(first, *first.message_ids, *second.message_ids)
    assert (ordered.message_ids, ordered.run_ids) == ([], [])


def test_a_stale_order_is_refused_with_the_number_that_is() -> None:
    first, second = queue("first", "second")
    seen = scene.thread(first).pending_revision
    scene.post("third", thread_id=first.thread_id)
    with scene.nothing_changes(), pytest.raises(RevisionConflict) as refused:
        reorder(first, *second.message_ids, *first.message_ids, pending_revision=seen)
    assert refused.value.facts == {"pending_revision": seen + 1}
    with scene.nothing_changes(), pytest.raises(RevisionConflict):
        pending.release(scope=scene.SCOPE, thread_id=first.thread_id, pending_revision=seen)


def test_an_order_of_the_wrong_form_changes_nothing() -> None:
    posted = scene.post()
    [pk] = posted.message_ids
    wrong: list[Any] = [[], "no list", [None], ["no id"], [pk, str(pk)], [uuid.uuid4()] * 10_001]
    with scene.nothing_changes():
        for message_ids in wrong:
            with pytest.raises(InvalidInput) as refused:
                pending.reorder(scope=scene.SCOPE, thread_id=posted.thread_id, message_ids=message_ids)
            assert refused.value.errors[0]["field"].startswith("message_ids")
        with pytest.raises(InvalidInput):
            reorder(posted, pk, pending_revision=-1)


def test_what_is_open_does_not_move_and_what_it_will_read_does() -> None:
    claim = scene.posted_and_taken()
    first, second = steer(claim, "left"), steer(claim, "right")
    before = Run.objects.get(pk=claim.run_id).order, Dispatch.objects.get(pk=claim.dispatch_id).order
    assert reorder(claim, *second.message_ids, *first.message_ids).run_ids == []
    assert (Run.objects.get(pk=claim.run_id).order, Dispatch.objects.get(pk=claim.dispatch_id).order) == before
    assert scene.flag(claim) == scene.IDLE
    assert [message.content for message in checkpoint.reach(claim)] == ["right", "left"]


def test_every_change_is_told_and_numbered() -> None:
    posted = scene.post(messages=["one", "two"])
    numbers = [scene.thread(posted).pending_revision]
    edit(posted, content="uno")
    numbers.append(scene.thread(posted).pending_revision)
    reorder(posted, posted.message_ids[1])
    numbers.append(scene.thread(posted).pending_revision)
    retract(posted)
    numbers.append(scene.thread(posted).pending_revision)
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    told = Event.objects.filter(thread_id=posted.thread_id).order_by("cursor").values_list("kind", flat=True)
    assert list(told)[-3:] == ["MessageEdited", "MessagesReordered", "MessageRetracted"]


def test_what_a_run_has_left_unread_goes_before_what_was_put_behind_it_by_a_second_order() -> None:
    first = scene.post("a", messages=["a", "b"], delivery={"granularity": "one"})
    other = scene.post("u", thread_id=first.thread_id)
    on_thread = {"scope": scene.SCOPE, "thread_id": first.thread_id}
    pending.reorder(**on_thread, message_ids=[first.message_ids[0], other.message_ids[0]])
    pending.reorder(**on_thread, message_ids=first.message_ids)
    read = []
    while claim := scene.take():
        read += [message.content for message in claim.messages]
        settle.complete(claim)
    assert read == ["a", "b", "u"]


def test_a_withdrawal_leaves_the_numbers_of_all_others_as_they_are() -> None:
    posted = scene.post(messages=["a", "b", "c"])
    edit(posted, 2, content="see")
    before = {pk: Message.objects.values().get(pk=pk) for pk in (posted.message_ids[0], posted.message_ids[2])}
    retract(posted, 1)
    assert {pk: Message.objects.values().get(pk=pk) for pk in before} == before
    assert edit(posted, 2, content="sea", revision=2).message.revision == 3


def test_whatever_is_said_read_or_released_changes_the_number_of_what_is_pending() -> None:
    first = scene.post()
    numbers = [scene.thread(first).pending_revision]

    def then(act: Any) -> None:
        act()
        numbers.append(scene.thread(first).pending_revision)

    claim = scene.taken()
    numbers.append(scene.thread(first).pending_revision)
    then(lambda: scene.post("behind", thread_id=first.thread_id))
    then(lambda: steer(claim, "left"))
    then(lambda: checkpoint.reach(claim))
    then(lambda: interrupt.thread(scope=scene.SCOPE, thread_id=first.thread_id))
    then(lambda: pending.release(scope=scene.SCOPE, thread_id=first.thread_id))
    assert numbers == sorted(set(numbers)), "each is another"
