"""A healthy system gives no finding, in whatever state its rows are; also while it works."""

import functools
import itertools
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.doctor import examine, running, schema, walk
from mailbox_app.doctor.findings import Report
from mailbox_app.models import Dispatch, Event, Message, Run, Thread
from mailbox_app.operations import (
    cancel,
    checkpoint,
    claim,
    decide,
    prune,
    recover,
    replay,
    resume,
    settle,
    submit,
    threads,
    tick,
)
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.settle import hand_back
from tests import given
from tests.operations import asking, scene
from tests.operations.test_deliver import send
from tests.races.actors import crew, start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are what is looked at."""
    monkeypatch.setattr("mailbox_app.channel.Breaker.is_open", lambda self: True)


# Each run that is to be claimed goes before whatever else is due.
_priorities = itertools.count(120, -1)


def taken() -> Claim:
    return scene.posted_and_taken(priority=next(_priorities))


def queued() -> None:
    scene.post()


def queued_twice() -> None:
    first = scene.post()
    scene.post(thread_id=first.thread_id, priority=127)


def scheduled() -> None:
    scene.post(available_at=scene.database_now() + timedelta(hours=1))


def scheduled_and_come_due() -> None:
    """As between two ticks: what wakes has come due, and later work has taken the flag."""
    first = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    scene.make_available(first)
    scene.post(thread_id=first.thread_id)


def claimed() -> None:
    taken()


def claimed_with_more_behind() -> None:
    owned = taken()
    scene.post(thread_id=owned.thread_id)


def steered() -> None:
    owned = taken()
    submit.messages(scope=scene.SCOPE, thread_id=owned.thread_id, messages=["late"], boundary="next_step")


def waiting() -> None:
    settle.suspend(taken(), scene.wait())


def waiting_in_front_of_another() -> None:
    owned = taken()
    scene.post(thread_id=owned.thread_id)
    settle.suspend(owned, scene.wait())


def waiting_until_a_time() -> None:
    settle.suspend(taken(), scene.wait("rate_limit", seconds=600))


def resumed() -> None:
    owned = taken()
    settle.suspend(owned, scene.wait())
    resume.run(scope=scene.SCOPE, run_id=owned.run_id)


def asking_while_it_works() -> None:
    owned = taken()
    checkpoint.ask(owned, [asking.question(owned)])


def waiting_for_answers() -> list[str]:
    owned = taken()
    questions = [asking.question(owned, name, expires_in=60.0) for name in ("one", "two")]
    ids = [ticket.ticket_id for ticket in checkpoint.ask(owned, questions)]
    asking.suspend(owned, ids)
    asking.answer(owned, ids[0])
    return ids


def answered() -> None:
    ids = waiting_for_answers()
    decide.ticket(scope=scene.SCOPE, run_id=asking.ticket(ids[1]).run_id, ticket_id=ids[1], action="cancel")


def answered_by_nobody() -> None:
    asking.overdue(waiting_for_answers()[1])
    assert tick.expire_tickets() == 1


def answered_before_it_could_wait() -> None:
    owned = taken()
    [ticket] = checkpoint.ask(owned, [asking.question(owned)])
    asking.answer(owned, ticket.ticket_id)
    asking.suspend(owned, [ticket.ticket_id])


def cancelled_with_a_question() -> None:
    cancel.run(scope=scene.SCOPE, run_id=asking.ticket(waiting_for_answers()[1]).run_id)


def done_with_a_question() -> None:
    owned = taken()
    checkpoint.ask(owned, [asking.question(owned)])
    settle.complete(owned)


def cancelled_wait() -> None:
    owned = taken()
    settle.suspend(owned, scene.wait())
    cancel.run(scope=scene.SCOPE, run_id=owned.run_id)


def cancelled_unstarted() -> None:
    cancel.run(scope=scene.SCOPE, run_id=scene.post().run_id)


def asked_to_stop() -> None:
    cancel.run(scope=scene.SCOPE, run_id=taken().run_id)


def backing_off() -> None:
    settle.nack(taken(), code="down", message="no", retry_after=600)


def handed_back() -> None:
    hand_back(tokens=[taken().token])


def reclaimed() -> None:
    owned = taken()
    scene.expire_lease(owned)
    recover.reclaim()


def done() -> None:
    settle.complete(taken(), output="fine", state={"n": 1})


def done_with_more_turns() -> None:
    owned = taken()
    submit.messages(scope=scene.SCOPE, thread_id=owned.thread_id, messages=["late"], boundary="on_natural_end")
    following = settle.complete(owned, output="one")
    assert following is not None
    settle.complete(following, output="two")


def dead_letter() -> Any:
    owned = taken()
    settle.dead_letter(owned, code="permanent", message="no")
    return owned


def dead_letter_replayed() -> None:
    replay.one(dispatch_id=dead_letter().dispatch_id, by="me")


def dead_letter_discarded() -> None:
    replay.discard(dispatch_id=dead_letter().dispatch_id, by="me")


def pruned() -> None:
    owned = taken()
    settle.complete(owned, output="fine")
    scene.post(thread_id=owned.thread_id)
    Event.objects.filter(thread_id=owned.thread_id, cursor__lte=2).update(created_at=Now() - timedelta(days=31))
    Dispatch.objects.filter(pk=owned.dispatch_id).update(completed_at=Now() - timedelta(days=2))
    assert prune.batch() == 3


def deleted() -> None:
    owned = taken()
    settle.complete(owned, output="fine")
    threads.delete(scope=scene.SCOPE, thread_id=owned.thread_id)


def deleted_and_half_pruned() -> None:
    owned = taken()
    settle.complete(owned, output="fine")
    threads.delete(scope=scene.SCOPE, thread_id=owned.thread_id)
    Thread.objects.filter(pk=owned.thread_id).update(deleted_at=Now() - timedelta(days=8))
    Event.objects.filter(thread_id=owned.thread_id, cursor__gt=2).delete()


def sent_to_other_threads() -> None:
    owned = taken()
    assert send(owned, given.thread(scope=scene.SCOPE).pk).status == "delivered"
    given.outbox(source_thread=scene.thread(owned), order=scene.thread(owned).next_order - 1, available_at=Now())


def overdue_wait_ended() -> None:
    owned = taken()
    settle.suspend(owned, scene.wait(seconds=600))
    Run.objects.filter(pk=owned.run_id).update(wait_until=Now() - timedelta(seconds=1))
    assert tick.expire_waits() == 1


def empty_thread() -> None:
    submit.thread(scope=scene.SCOPE, key=str(uuid.uuid4()))


STATES: list[Callable[[], Any]] = [
    *(queued, queued_twice, scheduled, scheduled_and_come_due, claimed, claimed_with_more_behind, steered, waiting),
    *(asking_while_it_works, waiting_for_answers, answered, answered_by_nobody, answered_before_it_could_wait),
    *(cancelled_with_a_question, done_with_a_question),
    *(waiting_in_front_of_another, waiting_until_a_time, resumed, cancelled_wait, cancelled_unstarted, asked_to_stop),
    *(backing_off, handed_back, reclaimed, done, done_with_more_turns, dead_letter, dead_letter_replayed),
    *(dead_letter_discarded, pruned, deleted, deleted_and_half_pruned, sent_to_other_threads, overdue_wait_ended),
    empty_thread,
]


@pytest.fixture
def alive() -> None:
    """A worker that serves everything, and passes that ran just now."""
    given.registration(slots=4)
    for name in ("due_tick", "sweep", "gc"):
        given.maintenance(name=name)


def told(report: Report) -> list[str]:
    return [f"{one.code}: {one.sentence}" for one in report.findings]


@pytest.mark.usefixtures("alive")
def test_every_state_of_a_healthy_system_gives_no_finding() -> None:
    for make in STATES:
        make()
    with scene.nothing_changes():
        for size in (walk.BATCH, 3):
            report = examine.threads(Report(), size=size)
            assert told(report) == []
            assert report.looked_at["threads"] == Thread.objects.count() - 1  # the half pruned one
    assert running.look() == []
    assert schema.look() == []
    statuses = set(Dispatch.objects.values_list("status", flat=True))
    assert statuses == {"queued", "claimed", "acked", "cancelled", "dead_letter"}
    assert set(Run.objects.values_list("status", flat=True)) == {"created", "running", "waiting", "done"}
    assert set(Message.objects.values_list("state", flat=True)) == {"pending", "committed", "retracted"}


@pytest.mark.usefixtures("alive")
def test_a_system_at_work_gives_no_finding() -> None:
    """Three submit, claim, settle, wait, fail and cancel as fast as they can; the doctor looks again and again."""
    over = threading.Event()
    looks: list[Report] = []

    def work(name: str) -> None:
        for number in range(12):
            for key in ("a", "b", "c", "d"):
                posted = submit.run(scope=scene.SCOPE, agent="echo", messages=["hello"], thread_key=key)
                if number % 4 == 3:
                    cancel.run(scope=scene.SCOPE, run_id=posted.run_id)
            tokens = [uuid.uuid4() for _ in range(2)]
            taken = claim.due(queue=scene.QUEUE, agents=["echo"], worker=name, tokens=tokens)
            for place, one in enumerate(taken.claims):
                match (number + place) % 4:
                    case 0:
                        settle.nack(one, code="down", message="no", retry_after=0.01)
                    case 1 if not one.replays:
                        settle.suspend(one, scene.wait("rate_limit", seconds=0.01))
                    case 2:
                        settle.dead_letter(one, code="permanent", message="no")
                    case _:
                        settle.complete(one, output="fine", state={"n": number})
            tick.promote()

    def look() -> None:
        while not over.is_set() or len(looks) < 3:
            looks.append(examine.threads(Report()))

    looking = start(look)
    with crew(3) as together:
        together(*[functools.partial(work, f"worker {number}") for number in range(3)])
    over.set()
    looking.result(60)
    assert [line for report in looks for line in told(report)] == []
    assert len({report.looked_at["events"] for report in looks}) > 2, "nothing moved while it looked"
