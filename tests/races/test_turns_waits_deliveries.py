"""Natural end meets a late message; suspend and expiry meet a resume; deliveries meet deliveries.

Each verb is stopped at the thread's lock while the other commits, in both orders; then all of them at once.
"""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now

from mailbox_app.errors import Conflict
from mailbox_app.models import Dispatch, JournalEntry, Message, Outbox, Run, Thread, outbox_written
from mailbox_app.operations import deliver, outbox, recover, resume, settle, submit, tick
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)


def say(of: Any, boundary: str = "on_natural_end") -> submit.Receipt:
    return submit.messages(scope=scene.SCOPE, thread_id=of.thread_id, messages=["late"], boundary=boundary)


def go_on(of: Any, **given: Any) -> resume.Resumed:
    return resume.run(scope=scene.SCOPE, run_id=of.run_id, **given)


ENDS: dict[str, Callable[[Claim], Any]] = {
    "complete": lambda claim: settle.complete(claim, output="done"),
    "dead_letter": lambda claim: settle.dead_letter(claim, code="permanent", message="no"),
    "suspend": lambda claim: settle.suspend(claim, scene.wait()),
}


@pytest.mark.parametrize("boundary", ["next_step", "on_natural_end"])
@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_waited_for_a_message_leaves_none_unread(end: str, boundary: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        posted = say(claim, boundary)
        ending = start(ENDS[end], claim)
        await_waiting()
    following = ending.result(20)
    message = Message.objects.get(pk=posted.message_ids[0])
    match end:
        case "complete":
            assert [one.pk for one in following.messages] == posted.message_ids
            assert message.run_id == claim.run_id
        case "dead_letter":
            assert scene.taken().messages[0].pk == message.pk
        case "suspend":
            assert (message.state, message.run_id) == ("pending", None)
            assert scene.run(claim).status == "waiting"


@pytest.mark.parametrize("end", ["complete", "dead_letter"])
def test_a_message_that_waited_for_an_end_starts_a_run(end: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        ENDS[end](claim)
        posting = start(say, claim)
        await_waiting()
    posted = posting.result(20)
    assert posted.run_id != claim.run_id
    assert scene.taken().run_id == posted.run_id


def test_whoever_comes_first_each_late_message_is_read_once() -> None:
    with crew(3) as together:
        for _ in range(25):
            claim = scene.posted_and_taken()
            following, one, two = together(
                lambda claim=claim: settle.complete(claim, output="done"),
                lambda claim=claim: say(claim),
                lambda claim=claim: say(claim, "next_step"),
            )
            read: list[uuid.UUID] = []
            while following is not None:
                read += [message.pk for message in following.messages]
                following = settle.complete(following) or scene.take()
            while (later := scene.take()) is not None:
                read += [message.pk for message in later.messages]
                settle.complete(later)
            assert sorted(read) == sorted([*one.message_ids, *two.message_ids])
            assert recover.repair() == 0
            numbers = Message.objects.filter(thread_id=claim.thread_id).committed().in_order()
            assert list(numbers.values_list("seq", flat=True)) == list(range(1, numbers.count() + 1))


def test_a_wait_that_was_behind_its_resume_goes_on() -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        assert go_on(claim, payload=1).status == "stored"
        waiting = start(ENDS["suspend"], claim)
        await_waiting()
    waiting.result(20)
    assert scene.taken().run_id == claim.run_id
    assert JournalEntry.objects.get().result == 1


def test_a_resume_that_was_behind_the_wait_ends_it() -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        ENDS["suspend"](claim)
        resuming = start(lambda: go_on(claim, payload=1))
        await_waiting()
    assert resuming.result(20).status == "resumed"
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == claim.run_id


def test_whoever_comes_first_a_wait_and_its_resumes_make_one_dispatch() -> None:
    with crew(3) as together:
        for _ in range(25):
            claim = scene.posted_and_taken()
            _, one, two = together(
                lambda claim=claim: settle.suspend(claim, scene.wait()),
                lambda claim=claim: go_on(claim, payload="one", resume_id="r-1"),
                lambda claim=claim: go_on(claim, payload="one", resume_id="r-1"),
            )
            assert one == two
            assert Dispatch.objects.of_run(claim.run_id).queued().count() == 1
            assert JournalEntry.objects.get(run_id=claim.run_id).result == "one"
            following = scene.taken()
            assert following.run_id == claim.run_id
            settle.complete(following)


def overdue() -> Claim:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait())
    Run.objects.filter(pk=claim.run_id).update(wait_until=Now() - timedelta(seconds=1))
    return claim


def test_a_resume_that_was_behind_the_end_of_the_wait_is_refused() -> None:
    claim = overdue()
    with transaction.atomic():
        assert tick.expire_waits() == 1
        resuming = start(lambda: go_on(claim))
        await_waiting()
    with pytest.raises(Conflict, match="is done"):
        resuming.result(20)
    assert Dispatch.objects.queued().count() == 0


def test_a_tick_leaves_a_wait_that_is_being_ended() -> None:
    claim = overdue()
    with transaction.atomic():
        go_on(claim)
        assert start(tick.expire_waits).result(20) == 0
    assert tick.expire_waits() == 0
    assert scene.taken().run_id == claim.run_id


def test_a_tick_that_found_a_wait_looks_again_under_the_fence() -> None:
    claim = overdue()
    go_on(claim)  # between the tick's look and its lock
    with scene.nothing_changes():
        assert tick._expire_on(claim.thread_id) == 0


def test_whoever_comes_first_a_wait_either_expires_or_goes_on() -> None:
    outcomes = set()
    with crew(3) as together:
        for _ in range(25):
            claim = overdue()

            def resumes(claim: Claim = claim) -> str:
                try:
                    return go_on(claim).status
                except Conflict:
                    return "refused"

            expired, twin, answer = together(tick.expire_waits, tick.expire_waits, resumes)
            tick.expire_waits()
            run, queued = scene.run(claim), Dispatch.objects.of_run(claim.run_id).queued().count()
            if answer == "refused":
                assert (expired + twin, run.status, queued) == (1, "done", 0)
            else:
                assert (answer, expired + twin, run.status, queued) == ("resumed", 0, "waiting", 1)
                settle.complete(scene.taken())
            assert scene.kinds(claim).count("RunTerminated") == (answer == "refused")
            outcomes.add(answer)
    assert outcomes <= {"refused", "resumed"}


def send(claim: Claim, to: uuid.UUID, *, n: int = 1) -> None:
    payload = {
        "content": f"psst {n}",
        "metadata": {},
        "role": "user",
        "sender": "echo",
        "agent": "echo",
        "message_id": f"{to}-{n}",
        "source_run_id": str(claim.run_id),
    }
    entry = scene.entry("message", verb="send", n=n)
    deliver.send(claim, entry, thread_id=to, thread_key=None, payload=payload)


def leave_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_written, "receivers", [])


def test_any_number_of_deliveries_at_once_make_one_message_and_one_run() -> None:
    there = given.thread()

    def post(n: int) -> deliver.Delivered:
        return deliver.message(
            scope=scene.SCOPE, thread_id=there.pk, message_id=f"m-{n}", content="hello", agent="echo"
        )

    with crew(4) as together:
        for n in range(15):
            made = together(*[lambda n=n: post(n)] * 4)
            assert len({(one.run_id, one.message_id) for one in made}) == 1
            assert sum(one.is_new for one in made) == 1
    assert (Message.objects.count(), Run.objects.count(), Dispatch.objects.count()) == (15, 15, 15)


def test_the_same_id_to_two_threads_at_once_is_given_to_one() -> None:
    here, there = given.thread(), given.thread()

    def post(thread: Thread, n: int) -> Any:
        body = {"scope": scene.SCOPE, "message_id": f"m-{n}", "content": "hello", "agent": "echo"}
        try:
            return deliver.message(thread_id=thread.pk, **body).is_new
        except Conflict:
            return "refused"

    with crew(2) as together:
        for n in range(15):
            made = together(lambda n=n: post(here, n), lambda n=n: post(there, n))
            assert sorted(map(str, made)) == ["True", "refused"]
    assert Message.objects.count() == 15


def test_sweeps_and_senders_at_once_deliver_everything_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_to_the_sweep(monkeypatch)
    claim, threads = scene.posted_and_taken(), [given.thread() for _ in range(3)]
    for n in range(1, 31):
        send(claim, threads[n % 3].pk, n=n)
    nowhere = uuid.uuid4()
    send(claim, nowhere, n=31)

    def sweep() -> int:
        return sum(deliver.batch() for _ in range(10))

    rows = list(Outbox.objects.filter(target_thread_id=threads[0].pk))
    with crew(4) as together:
        together(sweep, sweep, sweep, lambda: deliver.at_once(None, rows=rows))
    while deliver.batch():
        pass
    assert not Outbox.objects.filter(status="pending").exists()
    for place, thread in enumerate(threads):
        contents = Message.objects.filter(thread=thread).order_by("position").values_list("content", flat=True)
        assert list(contents) == [f"psst {n}" for n in range(1, 31) if n % 3 == place]
    assert Outbox.objects.get(target_thread_id=nowhere).status == "dead_letter"
    assert scene.kinds(claim).count("DeliveryFailed") == 1


def too_late() -> bool:
    raise Conflict("somebody was faster")


def test_a_sweep_that_found_a_row_looks_again_under_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_to_the_sweep(monkeypatch)
    claim, there = scene.posted_and_taken(), given.thread()
    send(claim, there.pk)
    found = Outbox.objects.get()
    assert deliver.batch() == 1  # between the other sweep's look and its lock
    with scene.nothing_changes():
        assert deliver._deliver(found, scene.SCOPE)
        assert outbox.end(found, too_late)


def test_a_target_that_is_held_is_left_for_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_to_the_sweep(monkeypatch)
    claim, there = scene.posted_and_taken(), given.thread()
    send(claim, there.pk)
    with Thread.objects.fence(there.pk):
        assert start(deliver.batch).result(20) == 0
    row = Outbox.objects.get()
    assert (row.status, row.attempt_count) == ("pending", 0)
    assert deliver.batch() == 1


def test_two_threads_that_send_to_each_other_never_wait_for_each_other() -> None:
    here, there = scene.posted_and_taken(), scene.posted_and_taken()

    def sends(claim: Claim, to: uuid.UUID) -> None:
        for n in range(1, 16):
            send(claim, to, n=n)

    with crew(2) as together:
        together(lambda: sends(here, there.thread_id), lambda: sends(there, here.thread_id))
    while deliver.batch():
        pass
    assert Outbox.objects.filter(status="delivered").count() == 30
