"""checkpoint and emit: what an executing agent writes between claim and end."""

import pytest

from mailbox_app.errors import Cancelled
from mailbox_app.models import Event, JournalEntry
from mailbox_app.operations import checkpoint
from tests.operations import scene

pytestmark = pytest.mark.django_db


def test_a_step_s_record_is_one_journal_row_and_nothing_else() -> None:
    claim = scene.posted_and_taken()
    before = scene.tables()
    assert checkpoint.record(claim, scene.entry(), {"b": 1, "a": [1e20]}) == {"a": [10**20], "b": 1}
    after = scene.tables()
    (row,) = after.pop("JournalEntry")
    before.pop("JournalEntry")
    assert after == before
    assert (row["run_id"], row["turn"], row["verb"], row["name"], row["key"], row["n"]) == (
        *(claim.run_id, 1, "step", "look-up", "", 1),
    )


def test_what_is_said_is_numbered_recorded_and_announced() -> None:
    claim = scene.posted_and_taken("hello")
    said = checkpoint.say(claim, scene.entry("message", verb="say"), "one moment")
    assert said["seq"] == 2
    assert scene.log(claim) == [(1, "user", "hello"), (2, "assistant", "one moment")]
    event = scene.last_event(claim)
    assert (event.kind, event.payload["message_id"], event.payload["message_seq"]) == (
        *("MessageCommitted", said["message_id"], 2),
    )
    assert (event.payload["content"], event.payload["role"]) == ("one moment", "assistant")
    assert JournalEntry.objects.get().result == said


def test_an_event_with_a_key_is_recorded_once_in_its_thread() -> None:
    claim = scene.posted_and_taken()

    for number, key in enumerate(("price", "price", None), start=1):
        scene.emit(claim, "Priced", number, n=number, key=key)
    for number, key in enumerate((None, "price", "tax", "tax"), start=4):
        claim.emitted.add(scene.emission("Priced", number, n=number, key=key))
    checkpoint.flush(claim)
    rows = Event.objects.filter(kind="Priced").order_by("cursor").values_list("cursor", "key", "payload")
    assert list(rows) == [(4, "price", 1), (5, None, 3), (6, None, 4), (7, "tax", 6)]
    told = [result["cursor"] for result in JournalEntry.objects.order_by("n").values_list("result", flat=True)]
    assert told == [4, 4, 5, 6, 4, 7, 7]


def test_another_thread_may_use_the_same_key() -> None:
    for claim in (scene.posted_and_taken(), scene.posted_and_taken()):
        scene.emit(claim, "Priced", {}, key="price", visibility="internal")
    assert list(Event.objects.filter(key="price").values_list("cursor", "visibility")) == [(4, "internal")] * 2


def test_a_checkpoint_reads_nothing_that_waits_for_another_run() -> None:
    claim = scene.posted_and_taken()
    scene.post("next", thread_id=claim.thread_id)
    with scene.nothing_changes():
        assert checkpoint.reach(claim) == []


def test_a_checkpoint_says_that_somebody_asked_to_stop() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    with scene.nothing_changes(), pytest.raises(Cancelled, match=str(claim.run_id)):
        checkpoint.reach(claim)
