"""One thread, talked to at random in every way there is: nothing said is lost, doubled or left without a reader.

Each seed is one conversation. After every act the doctor finds nothing, and who was refused has changed nothing; at the
end everything that could be read was read once, in gap-free numbers. More of them: `MAILBOX_PROOF_TALKS=500`.
"""

import os
import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.doctor import examine
from mailbox_app.doctor.findings import Report
from mailbox_app.errors import Cancelled, MailboxError
from mailbox_app.models import Dispatch, Message, Run, Thread, Ticket
from mailbox_app.operations import (
    cancel,
    checkpoint,
    decide,
    deliver,
    interrupt,
    pending,
    post,
    recover,
    resume,
    settle,
    submit,
    tick,
)
from mailbox_app.operations.ownership import Claim
from tests.operations import asking, scene

pytestmark = pytest.mark.django_db

TALKS = int(os.environ.get("MAILBOX_PROOF_TALKS", "6"))
ACTS = 40


class Talk:
    """A thread, who executes its open run, and what anybody may do next."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.thread_id = submit.thread(scope=scene.SCOPE).pk
        self.claim: Claim | None = None
        self.told: list[str] = []
        self.numbers = iter(range(1, 1000))

    def of(self, **more: Any) -> dict[str, Any]:
        return {"scope": scene.SCOPE, "thread_id": self.thread_id, **more}

    def texts(self) -> list[str]:
        return [f"t{next(self.numbers)}" for _ in range(self.pick.choice((1, 1, 2, 3)))]

    def delivery(self) -> dict[str, Any]:
        """An `if_active`, a `delivery`, both or neither."""
        open_run = Thread.objects.get(pk=self.thread_id).open_run_id
        how: dict[str, Any] = {}
        boundary = self.pick.choice((None, None, "next_step", "on_natural_end", "new_run", "interrupt", "resume_input"))
        if boundary is not None:
            how["boundary"] = boundary
        if self.pick.random() < 0.25:
            how["granularity"] = "one"
        if self.pick.random() < 0.25:
            how["barrier"] = True
        if open_run and boundary in ("next_step", "on_natural_end", "resume_input") and self.pick.random() < 0.7:
            how["target_run_id"] = open_run
            if self.pick.random() < 0.5:
                how["fallback"] = "new_run"
        word = self.pick.choice((None, None, None, "enqueue", "steer", "interrupt", "reject"))
        return {"delivery": how or None, "if_active": word}

    # What callers do

    def say(self) -> Any:
        return post.to_thread(**self.of(messages=self.texts(), agent=self.pick.choice(("", "echo")), **self.delivery()))

    def ask_a_run(self) -> Any:
        later = self.pick.choice((None, None, None, scene.database_now() + timedelta(hours=1)))
        priority = self.pick.choice((None, None, 1, 200))
        given = {"messages": self.texts(), "agent": "echo", "available_at": later, "priority": priority}
        return submit.run(**self.of(**given, **self.delivery()))

    def tell_a_run(self) -> Any:
        return post.to_run(scope=scene.SCOPE, run_id=self.a_run(), messages=self.texts())

    def send(self) -> Any:
        number = self.pick.randrange(4)
        return deliver.message(**self.of(message_id=f"m-{number}", content=f"durable {number}", agent="echo"))

    def interrupt(self) -> Any:
        return interrupt.thread(**self.of())

    def release(self) -> Any:
        return pending.release(**self.of())

    def cancel(self) -> Any:
        return cancel.run(scope=scene.SCOPE, run_id=self.a_run())

    def cancel_all(self) -> Any:
        return cancel.thread(**self.of()) if self.pick.random() < 0.3 else None

    def edit(self) -> Any:
        return pending.edit(**self.of(message_id=self.a_message(), content=f"t{next(self.numbers)}"))

    def retract(self) -> Any:
        return pending.retract(**self.of(message_id=self.a_message()))

    def reorder(self) -> Any:
        found = self.messages() or [uuid.UUID(int=1)]
        return pending.reorder(**self.of(message_ids=self.pick.sample(found, self.pick.randint(1, len(found)))))

    def resume(self) -> Any:
        return resume.run(scope=scene.SCOPE, run_id=self.a_run(), payload=1)

    def decide(self) -> Any:
        tickets = list(Ticket.objects.filter(run__thread_id=self.thread_id).order_by("-id")[:3])
        if not tickets:
            raise Nobody
        found = self.pick.choice(tickets)
        return decide.ticket(scope=scene.SCOPE, run_id=found.run_id, ticket_id=found.ticket_id, action="resume")

    # What workers and passes do

    def take(self) -> Any:
        if self.claim is None:
            self.claim = scene.take()

    def look(self) -> Any:
        return checkpoint.reach(self.held(), after_seq=0)

    def finish(self) -> Any:
        claim, self.claim = self.held(), None
        self.claim = settle.complete(claim, output=self.pick.choice(("an answer", None)), state={"n": claim.fence})

    def fail(self) -> Any:
        claim, self.claim = self.held(), None
        if self.pick.random() < 0.7:
            settle.nack(claim, code="transient", message="no", retry_after=0)
        else:
            settle.dead_letter(claim, code="permanent", message="no")

    def wait(self) -> Any:
        claim, self.claim = self.held(), None
        reason = self.pick.choice(("user_input", "user_input", "external_event", "tool_permission", "rate_limit"))
        used = claim.fence
        if reason == "tool_permission":
            entry = scene.entry("approve", verb="ask", n=used)
            [ticket] = checkpoint.ask(claim, [asking.question(claim, entry=entry, ticket_id=f"{claim.run_id}-{used}")])
            asking.suspend(claim, [ticket.ticket_id])
            return
        entry = {"name": reason, "key": "", "n": used, "arguments_hash": "0" * 64}
        given = {"seconds": 60.0} if reason == "rate_limit" else {}
        settle.suspend(claim, scene.wait(reason, entry=entry, **given))

    def lose(self) -> Any:
        claim, self.claim = self.held(), None
        scene.expire_lease(claim)
        assert recover.reclaim() == 1

    def stop(self) -> Any:
        claim = self.held()
        if Dispatch.objects.get(pk=claim.dispatch_id).cancel_requested_at is not None:
            self.claim = None
            settle.stopped(claim)

    def expire(self) -> Any:
        if self.pick.random() < 0.3:
            Run.objects.filter(thread_id=self.thread_id, status="waiting").update(
                wait_until=Now() - timedelta(seconds=1)
            )
            tick.expire_waits()

    def pass_time(self) -> Any:
        later = Dispatch.objects.filter(thread_id=self.thread_id, available_at__gt=Now()).queued()
        later.update(available_at=Now() - timedelta(seconds=1))
        Thread.objects.filter(pk=self.thread_id, wakes_at__isnull=False).update(wakes_at=Now() - timedelta(seconds=1))
        tick.promote()

    # Whom it may concern

    def held(self) -> Claim:
        if self.claim is None:
            raise Nobody
        return self.claim

    def a_run(self) -> uuid.UUID:
        runs = list(Run.objects.filter(thread_id=self.thread_id).order_by("-order").values_list("pk", flat=True)[:4])
        return self.pick.choice(runs) if runs else uuid.UUID(int=1)

    def messages(self) -> list[uuid.UUID]:
        rows = Message.objects.filter(thread_id=self.thread_id).pending().order_by("position")
        return list(rows.values_list("pk", flat=True))

    def a_message(self) -> uuid.UUID:
        return self.pick.choice(self.messages() or [uuid.UUID(int=1)])


class Nobody(Exception):
    """There is nobody, or nothing, to do it to."""


CALLERS = ("say", "say", "say", "ask_a_run", "tell_a_run", "send", "interrupt", "release", "cancel", "cancel_all")
CHANGES = ("edit", "retract", "reorder", "resume", "decide")
WORK = ("take", "take", "take", "look", "look", "finish", "finish", "fail", "wait", "wait", "lose", "stop", "expire")
ALL = (*CALLERS, *CHANGES, *WORK, "pass_time")


def act(talk: Talk, name: str) -> None:
    """One act; who is refused has changed nothing."""
    claim, before = talk.claim, scene.tables()
    try:
        getattr(talk, name)()
        talk.told.append(name)
    except Nobody:
        return
    except Cancelled:
        assert claim is not None
        settle.stopped(claim)
        talk.claim = None
    except MailboxError as refused:
        talk.told.append(f"{name}: {type(refused).__name__}")
        assert scene.tables() == before, talk.told


def assert_healthy(talk: Talk) -> None:
    report = examine.threads(Report(), thread_id=talk.thread_id)
    assert [finding.sentence for finding in report.findings] == [], talk.told


def drain(talk: Talk) -> None:
    """Release, let time pass, and execute until nobody has anything to do; what waits for somebody is cancelled."""
    pending.release(**talk.of())
    for _ in range(200):
        if talk.claim is not None:
            talk.claim = settle.complete(talk.claim)
            continue
        talk.pass_time()
        talk.take()
        if talk.claim is None:
            waiting = Run.objects.filter(thread_id=talk.thread_id, status="waiting").first()
            if waiting is None:
                return
            cancel.run(scope=scene.SCOPE, run_id=waiting.pk)
    raise AssertionError(f"it does not end: {talk.told}")


@pytest.mark.parametrize("seed", range(TALKS))
def test_whatever_is_said_and_done_nothing_is_lost_doubled_or_left_unread(seed: int) -> None:
    talk = Talk(seed)
    for _ in range(ACTS):
        act(talk, talk.pick.choice(ALL))
        assert_healthy(talk)
    drain(talk)
    assert_healthy(talk)
    messages = Message.objects.filter(thread_id=talk.thread_id)
    assert list(messages.pending().values("content", "boundary", "run_id")) == [], talk.told
    numbers = list(messages.committed().in_order().values_list("seq", flat=True))
    assert numbers == list(range(1, len(numbers) + 1)), talk.told
    assert not Run.objects.filter(thread_id=talk.thread_id).not_done().exists(), talk.told
    said: Callable[[str], int] = lambda text: messages.filter(content=text).count()  # noqa: E731
    assert [number for number in range(4) if said(f"durable {number}") > 1] == []
