"""replay: a dead letter becomes a new run on the same input, once; or it is discarded."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import (
    AlreadyResolved,
    DeadLetterNotFound,
    DuplicateKey,
    Gone,
    InvalidInput,
    NothingToReplay,
    ThreadBusy,
)
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run, Thread
from mailbox_app.operations import checkpoint, replay, settle, threads
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def bury(text: str = "hello there", *, code: str = "permanent", **given: Any) -> Claim:
    claim = scene.posted_and_taken(text, **given)
    settle.dead_letter(claim, code=code, message="no")
    return claim


def again(of: Claim, **given: Any) -> replay.Replayed:
    return replay.one(**{"dispatch_id": of.dispatch_id, "by": "ann", **given})


def test_a_dead_letter_becomes_a_new_run_that_reads_the_same_messages() -> None:
    dead = bury("one", options={"depth": 2}, metadata={"ticket": "T"}, priority=7, max_attempts=3)
    Run.objects.filter(pk=dead.run_id).update(state={"n": 1}, config_version="c1")
    replayed = again(dead)
    run, dispatch = Run.objects.get(pk=replayed.run_id), Dispatch.objects.get(pk=replayed.dispatch_id)
    assert (run.replay_of_id, run.status, run.agent, run.turn, run.state) == (
        dead.run_id,
        "created",
        "echo",
        1,
        {"n": 1},
    )
    assert (run.options, run.metadata, run.config_version) == ({"depth": 2}, {"ticket": "T"}, "c1")
    assert (run.activation["origin"], run.activation["replayed_by"]) == ("replay", "ann")
    assert (dispatch.queue, dispatch.priority, dispatch.max_attempts, dispatch.attempt_count) == (scene.QUEUE, 7, 3, 0)
    assert (scene.dispatch(dead).resolution, scene.dispatch(dead).resolved_at is None) == ("replayed", False)
    assert scene.thread(dead).latest_run_id == run.pk
    claim = scene.taken()
    assert (claim.run_id, claim.state, claim.options, claim.replays) == (run.pk, {"n": 1}, {"depth": 2}, True)
    assert [(message.seq, message.content) for message in claim.messages] == [(1, "one")]
    assert (claim.first_seq, Message.objects.get(content="one").run_id) == (1, dead.run_id)
    settle.complete(claim, output="done")
    assert scene.log(dead) == [(1, "user", "one"), (2, "assistant", "done")]
    assert Run.objects.get(pk=dead.run_id).status == "done"


def test_the_timeline_tells_watchers_of_the_new_run_and_operators_who_asked() -> None:
    dead = bury()
    replayed = again(dead)
    queued, told = Event.objects.filter(thread_id=dead.thread_id).order_by("-cursor")[:2]
    assert (told.kind, told.visibility, told.dispatch_id) == ("DeadLetterReplayed", "internal", dead.dispatch_id)
    assert (told.payload["by"], told.payload["replayed_as"]) == ("ann", str(replayed.run_id))
    assert (queued.kind, queued.visibility, queued.run_id) == ("RunQueued", "public", replayed.run_id)
    assert queued.payload["replay_of"] == str(dead.run_id)
    assert "ann" not in str(queued.payload)
    assert scene.kinds(dead)[-2:] == ["DeadLetterReplayed", "RunQueued"]


def test_a_replay_reads_only_what_its_original_had_read_whatever_came_since() -> None:
    dead = bury("one")
    later = scene.posted_and_taken("two", thread_id=dead.thread_id)
    settle.complete(later, output="second")
    queued = scene.post("three", thread_id=dead.thread_id)
    replayed = again(dead)
    ahead = scene.taken()
    assert ahead.run_id == queued.run_id, "it has its place behind what was queued before"
    settle.complete(ahead)
    claim = scene.taken()
    assert (claim.run_id, [message.content for message in claim.messages]) == (replayed.run_id, ["one"])
    assert claim.first_seq == 1


def test_a_retried_replay_reads_the_same_again() -> None:
    again(bury("one"))
    claim = scene.taken()
    settle.nack(claim, code="transient", message="no", retry_after=0)
    second = scene.taken()
    assert (second.run_id, second.attempt) == (claim.run_id, 2)
    assert [message.content for message in second.messages] == ["one"]


def test_a_replay_that_fails_too_is_a_dead_letter_that_can_be_replayed_with_the_same_input() -> None:
    first = bury("one")
    again(first)
    second = scene.taken()
    settle.dead_letter(second, code="permanent", message="still no")
    third = again(second)
    claim = scene.taken()
    assert (claim.run_id, [message.content for message in claim.messages]) == (third.run_id, ["one"])
    assert Run.objects.get(pk=third.run_id).replay_of_id == second.run_id


def test_the_journal_of_the_turn_goes_with_it_unless_fresh() -> None:
    for fresh, names in ((False, ["look-up", "write"]), (True, [])):
        claim = scene.posted_and_taken()
        checkpoint.record(claim, scene.entry("look-up"), {"found": [1, 2]})
        checkpoint.record(claim, scene.entry("write"), "x")
        given.journal_entry(run=scene.run(claim), turn=2, name="of another turn")
        settle.dead_letter(claim, code="permanent", message="no")
        replayed = again(claim, fresh=fresh)
        copied = JournalEntry.objects.filter(run_id=replayed.run_id).order_by("id")
        assert [entry.name for entry in copied] == names
        if not fresh:
            originals = JournalEntry.objects.of_turn(claim.run_id, 1)
            shape = ("turn", "verb", "name", "key", "n", "arguments_hash", "result")
            assert list(copied.values_list(*shape)) == list(originals.values_list(*shape))
        assert JournalEntry.objects.filter(run_id=claim.run_id).count() == 3
        settle.complete(scene.taken())


def test_a_dead_letter_is_resolved_once() -> None:
    dead = bury()
    replayed = again(dead)
    with scene.nothing_changes():
        with pytest.raises(AlreadyResolved) as refused:
            again(dead)
        with pytest.raises(AlreadyResolved):
            replay.discard(dispatch_id=dead.dispatch_id, by="bob")
    assert refused.value.code == "already_resolved"
    assert refused.value.facts == {
        "dispatch_id": dead.dispatch_id, "resolution": "replayed", "run_id": replayed.run_id,
    }  # fmt: skip


def test_a_discarded_dead_letter_stays_as_it_is_and_is_not_replayed() -> None:
    dead = bury()
    replay.discard(dispatch_id=dead.dispatch_id, by="ann", reason="known")
    row = scene.dispatch(dead)
    assert (row.resolution, row.status, row.resolved_at is None) == ("discarded", "dead_letter", False)
    event = scene.last_event(dead)
    assert (event.kind, event.visibility) == ("DeadLetterDiscarded", "internal")
    assert (event.payload["by"], event.payload["reason"]) == ("ann", "known")
    with scene.nothing_changes(), pytest.raises(AlreadyResolved):
        again(dead)
    assert Run.objects.count() == 1


def test_a_dedupe_key_goes_with_the_replay_and_a_holder_refuses_it() -> None:
    dead = bury(dedupe_key="nightly")
    holder = scene.post(dedupe_key="nightly")
    with scene.nothing_changes(), pytest.raises(DuplicateKey):
        again(dead)
    settle.complete(scene.taken())
    replayed = again(dead)
    assert Run.objects.get(pk=replayed.run_id).dedupe_key == "nightly"
    assert holder.run_id != replayed.run_id


def test_what_there_is_no_dead_letter_of_is_not_found() -> None:
    dead, alive = bury(), scene.post()
    with scene.nothing_changes():
        for wrong in ({"dispatch_id": uuid.uuid4()}, {"dispatch_id": alive.dispatch_id}, {"scope": "other"}):
            with pytest.raises(DeadLetterNotFound):
                again(dead, **wrong)
            with pytest.raises(DeadLetterNotFound):
                replay.discard(**{"dispatch_id": dead.dispatch_id, "by": "ann", **wrong})
        with pytest.raises(InvalidInput):
            again(dead, by="")


def test_a_run_that_had_read_nothing_is_not_replayed() -> None:
    run = given.run(status="done")
    dead = given.dispatch(run=run, status="dead_letter")
    with scene.nothing_changes(), pytest.raises(NothingToReplay):
        replay.one(dispatch_id=dead.pk, by="ann")


def test_on_a_deleted_thread_there_is_nothing_to_deal_with() -> None:
    dead = bury()
    Thread.objects.update(deleted_at=Now())
    with scene.nothing_changes():
        with pytest.raises(Gone):
            again(dead)
        with pytest.raises(Gone):
            replay.discard(dispatch_id=dead.dispatch_id, by="ann")
        assert replay.many(by="ann") == replay.Batch()


FILTERS: dict[str, Any] = {
    "agent": {"agent": "analyst"},
    "queue": {"queue": "slow"},
    "code": {"code": "timed_out"},
    "scope": {"scope": "other"},
}


@pytest.mark.parametrize("name", FILTERS)
def test_many_replays_what_matches_and_nothing_else(name: str) -> None:
    bury()
    other = bury(code="timed_out" if name == "code" else "permanent")
    Dispatch.objects.filter(pk=other.dispatch_id).update(**({name: "analyst"} if name == "agent" else {}))
    Dispatch.objects.filter(pk=other.dispatch_id).update(**({name: "slow"} if name == "queue" else {}))
    if name == "scope":
        Thread.objects.filter(pk=other.thread_id).update(scope="other")
    batch = replay.many(by="ann", **FILTERS[name])
    assert [one.replay_of for one in batch.replayed] == [other.run_id]
    assert (batch.refused, batch.has_more, Dispatch.objects.dead_letters().count()) == ([], False, 1)


def test_many_reads_the_range_of_creation_from_including_to_excluding() -> None:
    letters = [bury() for _ in range(3)]
    now = scene.database_now()
    for age, letter in enumerate(letters):
        Dispatch.objects.filter(pk=letter.dispatch_id).update(created_at=now - timedelta(hours=age))
    batch = replay.many(by="ann", created_after=now - timedelta(hours=1), created_before=now)
    assert [one.replay_of for one in batch.replayed] == [letters[1].run_id]


def test_many_goes_oldest_first_piece_by_piece_and_says_whether_there_are_more() -> None:
    letters = [bury() for _ in range(5)]
    found = [replay.many(by="ann", limit=2) for _ in range(4)]
    assert [len(batch.replayed) for batch in found] == [2, 2, 1, 0]
    assert [batch.has_more for batch in found] == [True, True, False, False]
    assert [one.replay_of for batch in found for one in batch.replayed] == [letter.run_id for letter in letters]


def test_many_passes_over_what_is_refused_and_reaches_what_stands_behind() -> None:
    stuck = bury(dedupe_key="held")
    scene.post(dedupe_key="held", agent="analyst")
    free = [bury() for _ in range(2)]
    batch = replay.many(by="ann", limit=2)
    assert batch.refused == [(stuck.dispatch_id, "duplicate_key")]
    assert [one.replay_of for one in batch.replayed] == [one.run_id for one in free]
    assert batch.has_more is False
    assert Dispatch.objects.dead_letters().get().pk == stuck.dispatch_id


@pytest.mark.parametrize("limit", [0, 1001, True, "5"])
def test_many_refuses_a_limit_out_of_range(limit: Any) -> None:
    with pytest.raises(InvalidInput):
        replay.many(by="ann", limit=limit)


def test_a_replay_waits_behind_an_open_run_and_its_thread_cannot_be_deleted() -> None:
    dead = bury()
    scene.posted_and_taken(thread_id=dead.thread_id)
    replayed = again(dead)
    assert scene.take() is None
    with pytest.raises(ThreadBusy):
        threads.delete(scope=scene.SCOPE, thread_id=dead.thread_id)
    assert Run.objects.get(pk=replayed.run_id).status == "created"
