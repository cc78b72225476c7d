"""deliver: from the outbox to another thread, once, in order; what is refused is told, what fails is tried again."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import Conflict, Gone, InvalidInput, ThreadNotFound, UnknownAgent
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Outbox, Run, Thread
from mailbox_app.operations import cancel, deliver, interrupt, settle
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def target(**fields: Any) -> Thread:
    return given.thread(**{"scope": scene.SCOPE, **fields})


def send(claim: Claim, to: Any, content: str = "psst", *, n: int = 1, **payload: Any) -> Outbox:
    """As `ctx.send` does it."""
    body = {
        "content": content,
        "metadata": {},
        "role": "user",
        "sender": "echo",
        "agent": "echo",
        "message_id": f"m-{n}",
        "source_run_id": str(claim.run_id),
        **payload,
    }
    where = {"thread_id": None, "thread_key": to} if isinstance(to, str) else {"thread_id": to, "thread_key": None}
    written = deliver.send(claim, scene.entry("message", verb="send", n=n), payload=body, **where)
    return Outbox.objects.get(pk=written["outbox_id"])


def make_due(row: Outbox) -> None:
    Outbox.objects.filter(pk=row.pk).update(available_at=Now() - timedelta(milliseconds=1))


def failed(row: Outbox) -> dict[str, Any]:
    """The error of the one event that tells of a row that was given up."""
    row.refresh_from_db()
    assert (row.status, row.completed_at is None) == ("dead_letter", False)
    event = Event.objects.get(kind="DeliveryFailed", payload__outbox_id=str(row.pk))
    assert event.thread_id == row.source_thread_id
    error: dict[str, Any] = event.payload["error"]
    return error


def test_what_is_sent_is_an_outbox_row_and_a_record_in_one_transaction() -> None:
    claim, there = scene.posted_and_taken(), target()
    row = send(claim, there.pk, "hello", message_id="m-7")
    assert (row.source_thread_id, row.target_thread_id, row.kind, row.status) == (
        *(claim.thread_id, there.pk, "message", "pending"),
    )
    assert JournalEntry.objects.get().result == {
        "outbox_id": str(row.pk), "thread_id": str(there.pk), "message_id": "m-7",
    }  # fmt: skip
    assert Message.objects.filter(thread=there).count() == 0


def test_a_delivered_message_has_a_run_that_answers_it() -> None:
    claim, there = scene.posted_and_taken(), target()
    row = send(claim, there.pk, "hello", metadata={"a": 1})
    assert deliver.batch() == 1
    row.refresh_from_db()
    assert (row.status, row.attempt_count, row.last_error) == ("delivered", 0, "")
    message = Message.objects.get(thread=there)
    assert (message.content, message.role, message.sender, message.metadata, message.client_id) == (
        *("hello", "user", "echo", {"a": 1}, "m-1"),
    )
    following = scene.taken()
    assert (following.thread_id, following.run_id) == (there.pk, message.run_id)
    assert scene.run(following).activation["origin"] == "durable"
    assert scene.kinds(following)[:2] == ["ThreadCreated", "RunQueued"]
    assert deliver.batch() == 0


def test_a_thread_named_by_a_key_is_made_if_it_is_missing() -> None:
    claim = scene.posted_and_taken()
    send(claim, "customer-42", n=1)
    send(claim, "customer-42", n=2)
    assert deliver.batch() == 2
    there = Thread.objects.get(scope=scene.SCOPE, key="customer-42")
    assert Message.objects.filter(thread=there).count() == 2


def test_what_is_sent_to_one_thread_arrives_in_order() -> None:
    claim, there = scene.posted_and_taken(), target()
    for n in range(1, 6):
        make_due(send(claim, there.pk, str(n), n=n))
    Outbox.objects.filter(order=Outbox.objects.earliest("order").order).update(available_at=Now())
    assert deliver.batch() == 5
    rows = Message.objects.filter(thread=there).order_by("position").values_list("content", flat=True)
    assert list(rows) == ["1", "2", "3", "4", "5"]


def test_a_message_behind_one_that_backs_off_waits_and_those_to_other_threads_do_not() -> None:
    claim, here, there = scene.posted_and_taken(), target(), target()
    first, second, other = send(claim, here.pk, n=1), send(claim, here.pk, n=2), send(claim, there.pk, n=3)
    Outbox.objects.filter(pk=first.pk).update(available_at=Now() + timedelta(seconds=60))
    assert deliver.batch() == 1
    for row, status in ((first, "pending"), (second, "pending"), (other, "delivered")):
        row.refresh_from_db()
        assert row.status == status


def test_a_batch_is_bounded(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    claim, there = scene.posted_and_taken(), target()
    for n in range(1, 6):
        send(claim, there.pk, n=n)
    assert [deliver.batch() for _ in range(4)] == [2, 2, 1, 0]


def test_the_same_message_is_made_once_however_often_it_is_delivered() -> None:
    there = target()
    first = deliver.message(
        scope=scene.SCOPE, thread_id=there.pk, message_id="m-1", content="hello", agent="echo", metadata={"a": [1]}
    )
    assert first.is_new
    claim = scene.taken()
    settle.complete(claim, output="done")
    with scene.nothing_changes():
        again = deliver.message(
            scope=scene.SCOPE, thread_id=there.pk, message_id="m-1", content="hello", agent="echo", metadata={"a": [1]}
        )
    assert (again.run_id, again.message_id, again.is_new) == (first.run_id, first.message_id, False)
    assert claim.run_id == first.run_id
    assert [message.pk for message in claim.messages] == [first.message_id]


def test_its_names_derive_from_scope_thread_and_id() -> None:
    there = target()
    first = deliver.message(scope=scene.SCOPE, thread_id=there.pk, message_id="m-1", content="a", agent="echo")
    Run.objects.all().delete()
    Message.objects.all().delete()
    again = deliver.message(scope=scene.SCOPE, thread_id=there.pk, message_id="m-1", content="a", agent="echo")
    assert (again.run_id, again.message_id) == (first.run_id, first.message_id)
    other = deliver.message(scope=scene.SCOPE, thread_id=there.pk, message_id="m-2", content="a", agent="echo")
    assert not {other.run_id, other.message_id} & {first.run_id, first.message_id}
    elsewhere = deliver.message(
        scope="other", thread_id=target(scope="other").pk, message_id="m-1", content="a", agent="echo"
    )
    assert elsewhere.run_id != first.run_id


@pytest.mark.parametrize(
    "other",
    [{"content": "b"}, {"role": "system"}, {"metadata": {"a": 2}}, {"agent": "shout"}, {"sender": "x"}],
    ids=lambda other: next(iter(other)),
)
def test_the_same_id_with_another_body_is_a_conflict(other: dict[str, Any]) -> None:
    body = {"scope": scene.SCOPE, "thread_id": target().pk, "message_id": "m-1", "content": "a", "agent": "echo"}
    deliver.message(**body)
    with scene.nothing_changes(), pytest.raises(Conflict, match="with another body"):
        deliver.message(**{**body, **other})


def test_the_same_id_to_another_thread_is_a_conflict() -> None:
    body = {"scope": scene.SCOPE, "message_id": "m-1", "content": "a", "agent": "echo"}
    deliver.message(**body, thread_id=target().pk)
    there = target()
    with scene.nothing_changes(), pytest.raises(Conflict):
        deliver.message(**body, thread_id=there.pk)


REFUSALS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception]]] = {
    "no thread": (lambda: {"thread_id": uuid.uuid4()}, ThreadNotFound),
    "another scope": (lambda: {"scope": "other"}, ThreadNotFound),
    "gone": (lambda: {"thread_id": target(deleted_at=Now()).pk}, Gone),
    "unknown agent": (lambda: {"agent": "nobody"}, UnknownAgent),
    "blank id": (lambda: {"message_id": " "}, InvalidInput),
    "blank": (lambda: {"content": ""}, InvalidInput),
}


@pytest.mark.parametrize(("given", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_durable_message_that_is_refused_changes_nothing(
    given: Callable[[], dict[str, Any]], error: type[Exception]
) -> None:
    body = {"scope": scene.SCOPE, "thread_id": target().pk, "message_id": "m-1", "content": "a", "agent": "echo"}
    wrong = given()
    with scene.nothing_changes(), pytest.raises(error):
        deliver.message(**{**body, **wrong})


def to_nowhere(claim: Claim) -> Outbox:
    return send(claim, uuid.uuid4())


def to_another_scope(claim: Claim) -> Outbox:
    return send(claim, target(scope="other").pk)


def to_a_deleted_thread(claim: Claim) -> Outbox:
    return send(claim, target(deleted_at=Now()).pk)


def to_an_unknown_agent(claim: Claim) -> Outbox:
    return send(claim, target().pk, agent="nobody")


def with_an_id_in_use(claim: Claim) -> Outbox:
    there = target()
    deliver.message(scope=scene.SCOPE, thread_id=there.pk, message_id="m-1", content="other", agent="echo")
    return send(claim, there.pk)


def with_an_id_of_another_thread(claim: Claim) -> Outbox:
    deliver.message(scope=scene.SCOPE, thread_id=target().pk, message_id="m-1", content="psst", agent="echo")
    return send(claim, target().pk)


def with_what_cannot_be_stored(claim: Claim) -> Outbox:
    return send(claim, target().pk, metadata={"a": "x" * 70_000})


@pytest.mark.parametrize(
    ("give", "code"),
    [
        (to_nowhere, "thread_not_found"),
        (to_another_scope, "thread_not_found"),
        (to_a_deleted_thread, "gone"),
        (to_an_unknown_agent, "unknown_agent"),
        (with_an_id_in_use, "conflict"),
        (with_an_id_of_another_thread, "already_exists"),
        (with_what_cannot_be_stored, "invalid_input"),
    ],
)
def test_what_is_refused_is_given_up_at_once_and_told_at_its_source(give: Callable[[Claim], Outbox], code: str) -> None:
    claim = scene.posted_and_taken()
    row = give(claim)
    behind = send(claim, row.target_thread_id, "behind", n=2)
    runs = Run.objects.count()
    deliver.batch()
    assert failed(row)["code"] == code
    assert row.attempt_count == 1
    behind.refresh_from_db()
    assert behind.status != "pending", "nothing waits behind a dead letter"
    assert Run.objects.count() - runs == (behind.status == "delivered")


def test_other_failures_back_off_and_become_a_dead_letter_that_blocks_nothing(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_deliveries": 3}
    claim, there = scene.posted_and_taken(), target()
    row, behind = send(claim, there.pk, "bad", n=1), send(claim, there.pk, "good", n=2)
    post = deliver._post

    def fails(thread: Thread, sent: Any) -> Any:
        if sent.submission.messages[0].content == "bad":
            raise ZeroDivisionError("secret text")
        return post(thread, sent)

    monkeypatch.setattr(deliver, "_post", fails)
    for attempt in (1, 2):
        before = scene.database_now()
        assert deliver.batch() == 0
        row.refresh_from_db()
        assert (row.status, row.attempt_count) == ("pending", attempt)
        assert timedelta(seconds=0.15) < row.available_at - before < timedelta(seconds=1.5)
        assert deliver.batch() == 0, "neither is what waits behind it delivered"
        make_due(row)
    assert deliver.batch() == 2
    assert failed(row) == {"code": "undeliverable", "message": "delivery failed: ZeroDivisionError"}
    assert row.attempt_count == 3
    behind.refresh_from_db()
    assert behind.status == "delivered"


def test_what_a_deleted_thread_sent_still_arrives_and_if_not_nobody_is_told() -> None:
    claim, there = scene.posted_and_taken(), target()
    arrives, does_not = send(claim, there.pk, n=1), send(claim, uuid.uuid4(), n=2)
    Thread.objects.filter(pk=claim.thread_id).update(deleted_at=Now())
    assert deliver.batch() == 2
    for row, status in ((arrives, "delivered"), (does_not, "dead_letter")):
        row.refresh_from_db()
        assert row.status == status
    assert not Event.objects.filter(kind="DeliveryFailed").exists()


def test_a_message_to_the_own_thread_waits_for_the_run_that_sent_it() -> None:
    claim = scene.posted_and_taken()
    send(claim, claim.thread_id)
    assert deliver.batch() == 1
    assert Dispatch.objects.queued().count() == 1
    assert scene.take() is None
    settle.complete(claim)
    assert scene.taken().thread_id == claim.thread_id


@pytest.mark.parametrize("stands", ["idle", "at work", "between attempts", "waiting for input", "interrupted"])
def test_a_durable_message_gets_a_run_of_its_own_wherever_its_thread_stands(stands: str) -> None:
    claim = scene.posted_and_taken()
    match stands:
        case "idle":
            settle.complete(claim)
        case "between attempts":
            settle.nack(claim, code="transient", message="no", retry_after=0)
        case "waiting for input":
            settle.suspend(claim, scene.wait("user_input"))
        case "interrupted":
            interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    sent = deliver.message(scope=scene.SCOPE, thread_id=claim.thread_id, message_id="m-1", content="psst", agent="echo")
    assert sent.run_id != claim.run_id
    if stands == "at work":
        settle.complete(claim)
    elif stands == "interrupted":
        settle.stopped(claim)
    elif stands == "between attempts":
        settle.complete(scene.taken())
    elif stands == "waiting for input":
        assert scene.take() is None
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    following = scene.taken()
    assert (following.run_id, [message.content for message in following.messages]) == (sent.run_id, ["psst"])
