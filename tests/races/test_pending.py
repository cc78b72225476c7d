"""Edit, retract, reorder and release meet claim, interrupt, cancel and each other: one comes first, nothing is lost."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from mailbox_app.errors import AlreadyConsumed, Gone, Refused, RevisionConflict
from mailbox_app.models import Message, Run
from mailbox_app.operations import cancel, interrupt, pending, recover, settle
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 12


def editing(of: Any, text: str, revision: int = 1) -> Callable[[], Any]:
    return answered(
        lambda: pending.edit(
            scope=scene.SCOPE,
            thread_id=of.thread_id,
            message_id=of.message_ids[0],
            content=text,
            revision=revision,
        )
    )


def retracting(of: Any) -> Callable[[], Any]:
    return answered(lambda: pending.retract(scope=scene.SCOPE, thread_id=of.thread_id, message_id=of.message_ids[0]))


def reordering(of: Any, *messages: Any, **guard: Any) -> Callable[[], Any]:
    return answered(
        lambda: pending.reorder(scope=scene.SCOPE, thread_id=of.thread_id, message_ids=list(messages), **guard)
    )


def answered(act: Callable[[], Any]) -> Callable[[], Any]:
    """What it returns, or the refusal it raises."""

    def call() -> Any:
        try:
            return act()
        except Refused as refusal:
            return refusal

    return call


def read(of: Any) -> list[str]:
    """What all runs read that can start now."""
    texts = []
    while claim := scene.take():
        assert claim.thread_id == of.thread_id
        texts += [str(message.content) for message in claim.messages]
        settle.complete(claim)
    return texts


def assert_settled(of: Any) -> None:
    """Nobody is left to read anything, and nothing is left that nobody reads."""
    assert not Run.objects.filter(thread_id=of.thread_id).not_done().exists()
    assert not Message.objects.filter(thread_id=of.thread_id, held=False).pending().exists()
    assert recover.repair() == 0
    scene.kinds(of)


def test_an_edit_against_the_claim_that_reads_it_is_read_or_refused() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post("old")
            edited, claim = together(editing(posted, "new"), scene.take)
            claim = claim or scene.taken()
            [message] = claim.messages
            is_refused = isinstance(edited, AlreadyConsumed)
            assert is_refused or edited.message.revision == 2
            assert message.content == ("old" if is_refused else "new")
            row = Message.objects.get(pk=message.pk)
            assert (row.content, row.state, row.seq) == (message.content, "committed", 1)
            settle.complete(claim)
            assert_settled(posted)


@pytest.mark.parametrize("acting", ["edit", "retract", "reorder"])
def test_whoever_waits_for_a_claim_under_way_finds_the_message_read(acting: str) -> None:
    posted, is_there, go_on = scene.post(), threading.Event(), threading.Event()
    act = {
        "edit": editing(posted, "new"),
        "retract": retracting(posted),
        "reorder": reordering(posted, *posted.message_ids),
    }[acting]

    def stop(execute: Any, sql: str, *more: Any) -> Any:
        found = execute(sql, *more)
        if "SKIP LOCKED" in sql:
            is_there.set()
            assert go_on.wait(30)
        return found

    def take() -> Any:
        with connection.execute_wrapper(stop):
            return scene.take()

    taking = start(take)
    assert is_there.wait(20)
    refused = start(act)
    await_waiting()
    go_on.set()
    claim = taking.result(20)
    assert isinstance(refused.result(20), AlreadyConsumed)
    assert [message.content for message in claim.messages] == ["hello there"]


def test_a_claim_does_not_wait_for_an_edit_under_way_and_reads_it_afterwards() -> None:
    posted = scene.post("old")
    with transaction.atomic():
        assert isinstance(editing(posted, "new")(), pending.Edited)
        assert start(scene.take).result(20) is None
    assert [message.content for message in scene.taken().messages] == ["new"]


def test_a_withdrawal_against_the_claim_that_reads_it_ends_the_run_or_is_refused() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            retracted, claim = together(retracting(posted), scene.take)
            run = scene.run(posted)
            if isinstance(retracted, AlreadyConsumed):
                assert claim is not None
                assert (run.status, len(claim.messages)) == ("running", 1)
                settle.complete(claim)
            else:
                assert (claim, retracted.cancelled_run_id, run.status) == (None, posted.run_id, "done")
            assert_settled(posted)


def test_a_reordering_against_claims_never_loses_a_run_or_lets_one_start_twice() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            first = scene.post("first")
            second = scene.post("second", thread_id=first.thread_id)
            third = scene.post("third", thread_id=first.thread_id)
            ordered, claim = together(reordering(first, *third.message_ids, *first.message_ids), scene.take)
            claim = claim or scene.taken()
            begun = [str(message.content) for message in claim.messages]
            settle.complete(claim)
            if isinstance(ordered, AlreadyConsumed):
                expected = ["first", "second", "third"]
            else:
                expected = ["third", "first", "second"]
                assert ordered.run_ids
            assert [*begun, *read(first)] == expected
            assert second.run_id
            assert_settled(first)


def test_a_withdrawal_against_an_interrupt_leaves_nothing_to_release_or_to_read() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            retracted, met = together(
                retracting(posted), lambda of=posted: interrupt.thread(scope=scene.SCOPE, thread_id=of.thread_id)
            )
            assert isinstance(retracted, pending.Retracted), "held or not, nobody has read it"
            came_first = retracted.cancelled_run_id is not None
            assert met.superseded_run_ids == ([] if came_first else [posted.run_id])
            assert met.held_message_ids == ([] if came_first else posted.message_ids)
            assert scene.kinds(posted).count("RunCancelled") == 1
            assert pending.release(scope=scene.SCOPE, thread_id=posted.thread_id).message_ids == []
            assert read(posted) == []
            assert_settled(posted)


def test_of_edits_of_one_revision_one_is_made() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            posted = scene.post("old")
            answers = together(*[editing(posted, text) for text in ("a", "b", "c")])
            [won] = [one for one in answers if isinstance(one, pending.Edited)]
            lost = [one for one in answers if isinstance(one, RevisionConflict)]
            assert [one.facts["revision"] for one in lost] == [2, 2]
            row = Message.objects.get(pk=posted.message_ids[0])
            assert (row.content, row.revision) == (won.message.content, 2)
            assert scene.kinds(posted).count("MessageEdited") == 1
            assert read(posted) == [row.content]


def test_of_reorderings_of_one_revision_one_is_made() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post(messages=["a", "b", "c"])
            seen = scene.thread(posted).pending_revision
            a, b, c = posted.message_ids
            answers = together(
                reordering(posted, c, b, a, pending_revision=seen), reordering(posted, b, a, c, pending_revision=seen)
            )
            assert sorted(type(one).__name__ for one in answers) == ["Reordered", "RevisionConflict"]
            assert read(posted) == (["c", "b", "a"] if isinstance(answers[0], pending.Reordered) else ["b", "a", "c"])


def test_a_release_against_a_withdrawal_of_what_is_held_is_read_or_not_once() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            interrupt.thread(scope=scene.SCOPE, thread_id=posted.thread_id)
            released, retracted = together(
                lambda of=posted: pending.release(scope=scene.SCOPE, thread_id=of.thread_id), retracting(posted)
            )
            assert isinstance(retracted, pending.Retracted)
            came_first = bool(released.message_ids)
            assert retracted.cancelled_run_id == (released.run_ids[0] if came_first else None)
            assert read(posted) == []
            assert_settled(posted)


def test_two_withdrawals_and_a_cancel_end_a_run_once() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            answers = together(
                retracting(posted),
                retracting(posted),
                lambda of=posted: cancel.run(scope=scene.SCOPE, run_id=of.run_id),
            )
            withdrawn = [isinstance(one, pending.Retracted) for one in answers[:2]]
            assert sum(withdrawn) <= 1
            assert all(isinstance(one, Gone) for one, ok in zip(answers, withdrawn, strict=False) if not ok)
            assert scene.run(posted).status == "done"
            assert scene.kinds(posted).count("RunCancelled") == 1
            assert_settled(posted)
