"""Cancel meets claim, settle and itself; replay meets replay and discard; delete meets submit: one winner each."""

from collections.abc import Callable
from typing import Any

import pytest

from mailbox_app.errors import AlreadyResolved, Gone, LeaseLost, ThreadBusy
from mailbox_app.models import Dispatch, Event, Run, Thread
from mailbox_app.operations import cancel, recover, replay, settle, threads
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.races.actors import crew

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 10


def asking(of: Any) -> Callable[[], str]:
    return lambda: cancel.run(scope=scene.SCOPE, run_id=of.run_id).outcome


def test_cancel_against_claim_either_ends_the_run_or_asks_its_worker() -> None:
    outcomes = set()
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            outcome, claim = together(asking(posted), scene.take)
            outcomes.add(outcome)
            run, dispatch = scene.run(posted), scene.dispatch(posted)
            if outcome == "cancelled":
                # A claimer that found the thread held takes nothing; whoever comes later finds nothing.
                assert (claim, run.status, dispatch.status) == (None, "done", "cancelled")
                assert scene.take() is None
            else:
                assert claim is not None
                assert (outcome, run.status, dispatch.status) == ("requested", "running", "claimed")
                assert dispatch.cancel_requested_at is not None
                settle.stopped(claim)
            assert scene.kinds(posted).count("RunCancelled") == 1
    assert outcomes <= {"cancelled", "requested"}


def test_cancel_against_complete_a_completion_that_came_first_stands() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim = scene.posted_and_taken()

            def finish(claim: Claim = claim) -> None:
                settle.complete(claim, output="done")

            outcome, _ = together(asking(claim), finish)
            assert outcome in ("requested", "already_done")
            assert scene.run(claim).termination == {"type": "natural_end"}


def test_cancel_against_nack_ends_the_run_whoever_came_first() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim = scene.posted_and_taken()

            def fail(claim: Claim = claim) -> None:
                settle.nack(claim, code="transient", message="no", retry_after=0)

            outcome, _ = together(asking(claim), fail)
            assert outcome in ("requested", "cancelled")
            assert (scene.run(claim).status, scene.dispatch(claim).status) == ("done", "cancelled")
            assert scene.take() is None


def test_cancel_against_the_sweep_ends_the_run_whoever_came_first() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim = scene.posted_and_taken()
            scene.expire_lease(claim)
            together(asking(claim), recover.reclaim)
            recover.reclaim()  # it leaves alone a thread that somebody holds
            assert (scene.run(claim).status, scene.dispatch(claim).status) == ("done", "cancelled")
            with pytest.raises(LeaseLost):
                settle.complete(claim)


def test_of_many_cancels_one_ends_the_run_and_one_event_says_so() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            assert sorted(together(*[asking(posted)] * 4)) == ["already_done"] * 3 + ["cancelled"]
            assert scene.kinds(posted).count("RunCancelled") == 1


def buried() -> Claim:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no")
    return claim


def test_of_many_replays_and_discards_one_deals_with_the_dead_letter() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            dead = buried()

            def again(dead: Claim = dead) -> str:
                try:
                    replay.one(dispatch_id=dead.dispatch_id, by="ann")
                except AlreadyResolved:
                    return "refused"
                return "replayed"

            def discard(dead: Claim = dead) -> str:
                try:
                    replay.discard(dispatch_id=dead.dispatch_id, by="bob")
                except AlreadyResolved:
                    return "refused"
                return "discarded"

            verdicts = together(again, again, again, discard)
            [verdict] = set(verdicts) - {"refused"}
            assert verdicts.count("refused") == 3
            assert scene.dispatch(dead).resolution == verdict
            assert Run.objects.filter(replay_of=dead.run_id).count() == (1 if verdict == "replayed" else 0)
            if verdict == "replayed":
                settle.complete(scene.taken())


def test_two_bulk_replays_share_the_dead_letters_and_double_none() -> None:
    letters = {buried().run_id for _ in range(12)}

    def bulk() -> list[Any]:
        batch = replay.many(by="ann", limit=12)
        assert {code for _, code in batch.refused} <= {"already_resolved"}
        return [one.replay_of for one in batch.replayed]

    with crew(2) as together:
        first, second = together(bulk, bulk)
    assert sorted(first + second) == sorted(letters)
    assert Run.objects.filter(replay_of__isnull=False).count() == 12
    assert recover.repair() == 0


def test_delete_against_submit_leaves_no_run_on_a_deleted_thread() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim = scene.posted_and_taken()
            settle.complete(claim)

            def delete(claim: Claim = claim) -> str:
                try:
                    threads.delete(scope=scene.SCOPE, thread_id=claim.thread_id)
                except ThreadBusy:
                    return "busy"
                return "deleted"

            def submit(claim: Claim = claim) -> str:
                try:
                    scene.post(thread_id=claim.thread_id)
                except Gone:
                    return "gone"
                return "accepted"

            assert together(delete, submit) in (["deleted", "gone"], ["busy", "accepted"])
            deleted = Thread.objects.get(pk=claim.thread_id).deleted_at is not None
            assert Run.objects.filter(thread_id=claim.thread_id).not_done().exists() is not deleted
            if not deleted:
                settle.complete(scene.taken())
    assert Dispatch.objects.queued().count() == 0
    assert Event.objects.filter(kind="ThreadDeleted").count() == Thread.objects.exclude(deleted_at=None).count()
