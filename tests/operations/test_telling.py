"""What is recorded: each verb's events in order, as they are described, and together with what they describe.

`tests/operations/telling.py` has the verbs, `mailbox_app/payloads.py` the descriptions.
"""

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import pytest
from django.db import connection

from mailbox_app.kinds import Kind
from mailbox_app.models import Dispatch, Event, Message
from mailbox_app.operations import cancel, checkpoint, claim, interrupt, post, recover, replay, settle
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.payloads import DESCRIBED, Correlation, Field, SeenBy
from tests.operations import scene
from tests.operations.telling import CASES, Verb

pytestmark = pytest.mark.django_db

EACH = pytest.mark.parametrize("prepare", CASES, ids=lambda prepare: prepare.__name__)


def recorded(verb: Verb) -> list[Event]:
    """The events a verb records, in the order of their writing."""
    before = Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    verb()
    return list(Event.objects.filter(pk__gt=before).order_by("pk"))


def is_id(value: Any) -> bool:
    return isinstance(value, str) and str(uuid.UUID(value)) == value


def is_list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(is_one(one) for one in value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


TYPES: dict[str, Callable[[Any], bool]] = {
    "id": is_id,
    "ids": is_list_of(is_id),
    "text": is_text,
    "texts": is_list_of(is_text),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "time": lambda value: datetime.fromisoformat(value).tzinfo is not None,
    "object": lambda value: isinstance(value, dict),
    "anything": lambda value: value is not None,
}


def whose(correlation: Correlation, event: Event) -> str:
    """The id that an event of this correlation must carry."""
    told = event.payload
    match correlation:
        case Correlation.THREAD:
            return str(event.thread_id)
        case Correlation.DISPATCH:
            return str(event.dispatch_id or event.run_id)
        case Correlation.MESSAGE:
            return str(event.run_id or told["message_id"])
        case Correlation.DECISION:
            return str(told.get("decision_id") or told["ticket_id"])
        case Correlation.CHILD:
            return str(told["child_run_id"])
        case _:
            return str(told["outbox_id"])


def assert_described(event: Event) -> None:
    """The event is one of those that are described, and says what is described of it, and nothing else."""
    one = DESCRIBED[Kind(event.kind)]
    fields = {field.name: field for field in one.fields}
    assert set(event.payload) <= set(fields)
    assert {field.name for field in one.fields if not field.is_optional} <= set(event.payload)
    for name, value in event.payload.items():
        field = fields[name]
        assert (value is None and field.is_nullable) or TYPES[field.type](value), (event.kind, name, value)
    assert event.payload["thread_id"] == str(event.thread_id)
    assert event.payload.get("dispatch_id") == (event.dispatch_id and str(event.dispatch_id))
    assert one.is_of_run or event.run_id is None
    assert (event.schema_version, event.key) == (one.version, None)
    assert event.correlation_id == whose(one.correlation, event)
    assert event.visibility == visibility_of(event, one.seen_by)


def visibility_of(event: Event, seen_by: SeenBy) -> str:
    if seen_by is SeenBy.AS_MESSAGE:
        return Message.objects.get(pk=event.payload["message_id"]).visibility
    return "public" if seen_by is SeenBy.ALL else "internal"


def of_renewal() -> set[str]:
    """The times that a renewal moves, as they stand, to the second."""
    rows = Dispatch.objects.claimed().values_list("lease_until", "updated_at")
    return {at.isoformat()[:19] for times in rows for at in times}


@EACH
def test_a_verb_records_its_events_in_order_each_as_it_is_described(prepare: Callable[[], Verb]) -> None:
    verb = prepare()
    volatile = of_renewal()
    found = recorded(verb)
    assert " ".join(event.kind for event in found) == CASES[prepare]
    for event in Event.objects.all():
        assert_described(event)
        assert not {"lease_until", "updated_at", "claimed_by", "claim_token"} & set(event.payload)
        assert not volatile & set(re.findall(r"\d{4}-\d\d-\d\dT[\d:]{8}", str(event.payload)))


class Killed(BaseException):
    """Ends the process where it stands: nobody catches it."""


@contextmanager
def killed_at_write(number: int) -> Iterator[list[str]]:
    """Have the process end at its n-th write; what it has written, or was about to."""
    seen: list[str] = []

    def execute(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE", "WITH step_")):
            seen.append(sql)
            if len(seen) == number:
                raise Killed
        return call(sql, params, many, context)

    with connection.execute_wrapper(execute):
        yield seen


@EACH
def test_wherever_a_verb_is_ended_there_is_neither_the_event_nor_what_it_tells(prepare: Callable[[], Verb]) -> None:
    verb = prepare()
    before = scene.tables()
    for number in range(1, 20):
        with suppress(Killed), killed_at_write(number) as seen:
            verb()
        if len(seen) < number:
            break
        assert scene.tables() == before, seen[-1]
    assert number > 1
    assert len(scene.tables()["Event"]) == len(before["Event"]) + len(CASES[prepare].split())


def told_of(thread_id: Any) -> Counter[str]:
    """How often an event told that a message was read or said, by the message's id."""
    events = list(Event.objects.filter(thread_id=thread_id))
    begun = [event.payload["input"] for event in events if event.kind in ("RunStarted", "TurnStarted")]
    said = [event.payload["message_id"] for event in events if event.kind == "MessageCommitted"]
    return Counter([*said, *(message_id for one in begun for message_id in one["message_ids"])])


def test_each_message_that_enters_the_log_is_told_once_however_often_it_is_read() -> None:
    """At the start, at a checkpoint, as the next turn, by what resumes; again after a lost lease and by a replay."""
    posted = scene.post("start")
    on = {"scope": scene.SCOPE, "thread_id": posted.thread_id}
    taken = scene.taken()
    post.to_thread(**on, messages=["checkpoint"], if_active="steer")
    assert [message.content for message in checkpoint.reach(taken, after_seq=1)] == ["checkpoint"]
    checkpoint.say(taken, scene.entry("message", verb="say"), "said")
    scene.expire_lease(taken)
    assert recover.reclaim() == 1
    again = scene.taken()
    assert [message.content for message in checkpoint.reach(again, after_seq=1)] == ["checkpoint"]
    post.to_thread(**on, messages=["turn"], if_active="steer")
    following = settle.complete(again, output="answered")
    assert following is not None
    settle.suspend(following, scene.wait("user_input"))
    post.to_thread(**on, messages=["resume"])
    settle.dead_letter(scene.taken(), code="permanent", message="no")
    log = Message.objects.filter(thread_id=posted.thread_id).committed().in_order()
    assert [message.content for message in log] == ["start", "checkpoint", "said", "answered", "turn", "resume"]
    assert told_of(posted.thread_id) == Counter(str(message.pk) for message in log)
    before = Event.objects.filter(kind="MessageCommitted").count()
    replay.one(dispatch_id=Dispatch.objects.dead_letters().get().pk, by="ann")
    scene.taken()
    assert Event.objects.filter(kind="MessageCommitted").count() == before


def test_a_message_that_is_told_names_the_run_that_has_said_it() -> None:
    taken = scene.posted_and_taken()
    read = NewMessage(content="read", role="assistant")
    post.to_thread(scope=scene.SCOPE, thread_id=taken.thread_id, messages=[read], if_active="steer")
    assert [message.content for message in checkpoint.reach(taken, after_seq=1)] == ["read"]
    checkpoint.say(taken, scene.entry("message", verb="say"), "said")
    settle.complete(taken, output="answered")
    told = [event.payload for event in Event.objects.filter(kind="MessageCommitted").order_by("cursor")]
    run_id = str(taken.run_id)
    assert [(one["content"], one["producer_run_id"]) for one in told] == [
        ("read", None), ("said", run_id), ("answered", run_id),
    ]  # fmt: skip


def test_every_kind_is_described_and_comes_about() -> None:
    assert set(DESCRIBED) == set(Kind)
    assert {kind for kinds in CASES.values() for kind in kinds.split()} == set(Kind.values)


def test_every_field_that_is_described_is_written_and_left_out_or_null_where_it_may_be() -> None:
    """What is described and never comes would be a promise nobody keeps."""
    written: dict[tuple[str, str], set[str]] = {}
    for prepare in CASES:
        # Not `atomic`: an agent's verbs refuse to be called inside of one.
        before = connection.savepoint()
        found = recorded(prepare())
        connection.savepoint_rollback(before)
        for event in found:
            for field in DESCRIBED[Kind(event.kind)].fields:
                if field.name not in event.payload:
                    state = "left out"
                else:
                    state = "null" if event.payload[field.name] is None else "there"
                written.setdefault((event.kind, field.name), set()).add(state)
    promised = {(str(one.kind), field.name): expected(field) for one in DESCRIBED.values() for field in one.fields}
    assert written == promised


def expected(field: Field) -> set[str]:
    return {"there"} | ({"left out"} if field.is_optional else set()) | ({"null"} if field.is_nullable else set())


@pytest.mark.parametrize("of", ["interrupt", "cancel"])
def test_a_request_to_stop_that_is_repeated_after_a_renewal_is_told_once_and_fails_nobody(of: str) -> None:
    taken = scene.posted_and_taken()
    verbs: dict[str, Verb] = {
        "interrupt": lambda: interrupt.thread(scope=scene.SCOPE, thread_id=taken.thread_id),
        "cancel": lambda: cancel.run(scope=scene.SCOPE, run_id=taken.run_id),
    }
    first = recorded(verbs[of])
    claim.renew(tokens=[taken.token])
    assert [*recorded(verbs["interrupt"]), *recorded(verbs["cancel"])] == []
    settle.stopped(taken)
    assert first[0].kind in ("RunInterrupted", "RunCancelRequested")
    assert scene.last_event(taken).kind == "RunCancelled"
