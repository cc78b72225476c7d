"""The queue's verbs in any order against the oracle, on a real database.

An example is one transaction that is rolled back: emptying two dozen tables costs more than the example itself, and
each verb's own transaction is a savepoint in it. What that leaves out, other connections, is what `tests/races` is
about. Time is a rule: rows are aged.
"""

import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailbox_app.errors import (
    ActiveRunConflict,
    AlreadyResolved,
    Conflict,
    DuplicateKey,
    LeaseLost,
    NotScheduled,
)
from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import cancel, claim, deliver, prune, recover, replay, resume, settle, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.proof import compare
from tests.proof.oracle import RATE_LIMIT, Entry, Intent, Talk

AGENTS = ("echo", "analyst")
PICK = st.integers(0, 11)
CLAIMED_BY = {"queue": scene.QUEUE, "worker": scene.WORKER}
# Far enough that it never comes while an example runs.
LATER_SECONDS = 3600.0


class Held:
    """A claim somebody was given; it may have been lost since."""

    def __init__(self, claim: Claim, run: Intent, entry: Entry) -> None:
        self.claim, self.run, self.entry, self.turn = claim, run, entry, run.turn

    @property
    def is_owner(self) -> bool:
        return self.entry.token == self.claim.token and self.run.turn == self.turn

    def has_ended(self, *statuses: str, left_run: str | None = None) -> bool:
        """Whether this very claim has ended so."""
        entry = self.entry
        is_so = entry.ended_by == self.claim.token and entry.status in statuses and entry.id is not None
        return is_so and left_run in (None, entry.left_run)


SUBMISSION = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(AGENTS),
        "count": st.integers(1, 2),
        "priority": st.sampled_from((128, 128, 5)),
        "most": st.integers(1, 3),
        "later": st.sampled_from((False, False, True)),
        "key": st.sampled_from((None, None, None, "a", "b")),
    }
)


class Queue(RuleBasedStateMachine):
    """Any order of what clients, workers, operators and the clock may do."""

    def __init__(self) -> None:
        super().__init__()
        self.talks: list[Talk] = []
        self.held: list[Held] = []
        self.durable: dict[tuple[int, int], tuple[uuid.UUID, str]] = {}
        self.number = 0
        self._example = transaction.atomic()
        # As in a TestCase: the transaction around all is not an agent's.
        self._example._from_testcase = True  # type: ignore[attr-defined]
        self._example.__enter__()

    def teardown(self) -> None:
        try:
            # After a failure it is the failure that is to be told.
            if sys.exc_info()[0] is None:
                self._everything_ends()
                with connection.cursor() as cursor:
                    # What a COMMIT would check.
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        finally:
            transaction.set_rollback(True)
            self._example.__exit__(None, None, None)

    @invariant()
    def the_rows_say_what_the_oracle_says(self) -> None:
        compare.check(self.talks)

    @invariant()
    def no_flag_was_forgotten(self) -> None:
        assert recover.repair() == 0

    # What is there to choose from.

    @property
    def runs(self) -> list[Intent]:
        return [run for talk in self.talks for run in talk.runs]

    def _run(self, pick: int) -> Intent:
        """Mostly one that is not done."""
        going = [run for run in self.runs if run.status != "done"]
        chosen = going if going and pick < 9 else self.runs
        return chosen[-1 - pick % len(chosen)]

    def _talk(self, pick: int) -> Talk:
        return self.talks[pick % len(self.talks)]

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        later = timedelta(seconds=LATER_SECONDS + len(self.runs))
        return {
            "messages": ["said"] * given["count"],
            "agent": given["agent"],
            "priority": given["priority"],
            "max_attempts": given["most"],
            "dedupe_key": given["key"],
            "available_at": scene.database_now() + later if given["later"] else None,
        }

    def _is_taken(self, key: str | None) -> bool:
        return key is not None and any(run.key == key and run.status != "done" for run in self.runs)

    # Clients.

    @precondition(lambda self: len(self.talks) < 3)
    @rule(given=SUBMISSION)
    def begin_a_thread(self, given: dict[str, Any]) -> None:
        if self._is_taken(given["key"]):
            return
        receipt = submit.run(scope=scene.SCOPE, **self._arguments(given))
        talk = Talk(receipt.thread_id, len(self.talks))
        self.talks.append(talk)
        talk.submit(**given)

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, given=SUBMISSION, if_active=st.sampled_from(("enqueue", "enqueue", "reject")))
    def submit_a_run(self, pick: int, given: dict[str, Any], if_active: str) -> None:
        talk = self._talk(pick)
        call = lambda: submit.run(  # noqa: E731
            scope=scene.SCOPE, thread_id=talk.id, if_active=if_active, **self._arguments(given)
        )
        if if_active == "reject" and talk.open is not None:
            self._refused(ActiveRunConflict, call)
        elif self._is_taken(given["key"]):
            self._refused(DuplicateKey, call)
        else:
            call()
            talk.submit(**given)

    @precondition(lambda self: self.talks)
    @rule(wanted=st.lists(st.tuples(PICK, SUBMISSION), min_size=2, max_size=3))
    def submit_many_runs(self, wanted: list[tuple[int, dict[str, Any]]]) -> None:
        submissions = [{"thread_id": self._talk(pick).id, **self._arguments(given)} for pick, given in wanted]
        call = lambda: submit.many(scope=scene.SCOPE, submissions=submissions)  # noqa: E731
        keys = [given["key"] for _, given in wanted if given["key"]]
        if len(set(keys)) < len(keys) or any(self._is_taken(key) for key in keys):
            self._refused(DuplicateKey, call)
            return
        receipts = call()
        assert [receipt.thread_id for receipt in receipts] == [one["thread_id"] for one in submissions]
        for pick, given in wanted:
            self._talk(pick).submit(**given)

    @precondition(lambda self: any(talk.open for talk in self.talks))
    @rule(pick=PICK, boundary=st.sampled_from(("next_step", "on_natural_end")))
    def say_something(self, pick: int, boundary: str) -> None:
        talks = [talk for talk in self.talks if talk.open]
        talk = talks[pick % len(talks)]
        assert talk.open is not None
        posted = submit.messages(scope=scene.SCOPE, thread_id=talk.id, messages=["more"], boundary=boundary)
        talk.say()
        assert posted.run_id == talk.open.id
        talk.is_stale = False

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, number=st.integers(0, 2), content=st.sampled_from(("one", "two")))
    def deliver_a_message(self, pick: int, number: int, content: str) -> None:
        talk = self._talk(pick)
        call = lambda: deliver.message(  # noqa: E731
            scope=scene.SCOPE,
            thread_id=talk.id,
            message_id=f"{talk.place}-{number}",
            content=content,
            agent="echo",
        )
        known = self.durable.get((talk.place, number))
        if known is not None and known[1] != content:
            self._refused(Conflict, call)
            return
        delivered = call()
        assert delivered.is_new == (known is None)
        if known is None:
            self.durable[talk.place, number] = (delivered.run_id, content)
            talk.submit(agent="echo", count=1, priority=128, most=5, later=False, key=None)
        else:
            assert delivered.run_id == known[0]

    @precondition(lambda self: self.runs)
    @rule(pick=PICK)
    def cancel_a_run(self, pick: int) -> None:
        run = self._run(pick)
        assert run.id is not None
        expected = run.talk.cancel(run)
        assert cancel.run(scope=scene.SCOPE, run_id=run.id).outcome == expected
        run.talk.is_stale = False

    @precondition(lambda self: self.runs)
    @rule(
        pick=PICK,
        name=st.sampled_from(("", "", "a")),
        payload=st.integers(0, 1),
        resume_id=st.sampled_from((None, None, "x", "y")),
    )
    def resume_a_run(self, pick: int, name: str, payload: int, resume_id: str | None) -> None:
        waiting = [run for run in self.runs if run.status == "waiting"] or self.runs
        run = waiting[-1 - pick % len(waiting)]
        expected = run.talk.resume(run, name, payload, resume_id)
        call = lambda: resume.run(  # noqa: E731
            scope=scene.SCOPE, run_id=run.id, name=name, payload=payload, resume_id=resume_id
        )
        if expected == "conflict":
            self._refused(Conflict, call)
        else:
            assert call().status == expected
            run.talk.is_stale = False

    # Workers.

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule(agents=st.sampled_from((AGENTS, AGENTS[:1], AGENTS[1:])), most=st.sampled_from((1, 2)))
    def a_worker_of_some_agents_claims(self, agents: tuple[str, ...], most: int) -> None:
        self._claim(agents, most)

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule()
    def a_worker_claims_one(self) -> None:
        self._claim(AGENTS, 1)

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule()
    def a_worker_claims_all(self) -> None:
        self._claim(AGENTS, 4)

    def _claim(self, agents: tuple[str, ...], most: int) -> None:
        due = Thread.objects.filter(due_at__isnull=False, due_queue=scene.QUEUE, due_agent__in=agents)
        looked_at = list(due.order_by("due_priority", "due_at", "id").values_list("pk", flat=True))[:most]
        by_id = {talk.id: talk for talk in self.talks}
        tokens = [uuid.uuid4() for _ in range(most)]
        taken = claim.due(agents=agents, tokens=tokens, **CLAIMED_BY)
        expected, unused = [], iter(tokens)
        for talk in (by_id[pk] for pk in looked_at):
            head = talk.head()
            assert head is not None, "a due thread has a head"
            if head.agent in agents:
                expected.append(talk.claim(next(unused)))
            talk.is_stale = False
        assert [one.run_id for one in taken.claims] == [run.id for run in expected]
        for one, run in zip(taken.claims, expected, strict=True):
            assert run.live is not None
            assert (one.token, one.fence, one.turn) == (run.live.token, run.talk.fence, run.turn)
            assert one.attempt == 1 + run.live.attempts + run.live.lost
            self.held.append(Held(one, run, run.live))
        assert taken.has_more == due.exists(), "has_more is true"

    @precondition(lambda self: self.held)
    @rule(picks=st.lists(PICK, min_size=1, max_size=3, unique=True))
    def renew_claims(self, picks: list[int]) -> None:
        chosen = [self._held(pick) for pick in picks]
        renewed = claim.renew(tokens=[one.claim.token for one in chosen])
        owned = [one for one in chosen if one.entry.token == one.claim.token]
        assert set(renewed.lost) == {one.claim.token for one in chosen} - {one.claim.token for one in owned}
        assert set(renewed.cancelled) == {one.claim.token for one in owned if one.entry.asked_to_stop}
        for one in owned:
            one.entry.is_expired = False

    @precondition(lambda self: self.held)
    @rule(pick=PICK, output=st.sampled_from((None, "text", {"a": 1})))
    def finish(self, pick: int, output: Any) -> None:
        held = self._held(pick)
        call = lambda: settle.complete(held.claim, output=output)  # noqa: E731
        is_owned = held.entry.token == held.claim.token
        if is_owned and held.run.turn == held.turn + 1:
            # Its answer might have been lost.
            again = self._unchanged(call)
            assert again.turn == held.run.turn
        elif held.is_owner:
            self._finished(held, call(), output)
        else:
            self._stale(held, call, "acked", left_run="done")

    @precondition(lambda self: self.held)
    @rule(picks=st.lists(PICK, min_size=2, max_size=3, unique=True), output=st.sampled_from((None, "text")))
    def finish_together(self, picks: list[int], output: Any) -> None:
        chosen = {held.run.talk.id: held for held in map(self._held, picks)}
        done = settle.finish_some([settle.Finishing(claim=one.claim, output=output) for one in chosen.values()])
        assert set(done) == {one.claim.token for one in chosen.values() if one.is_owner}
        for held in chosen.values():
            if held.is_owner:
                self._finished(held, done[held.claim.token], output)
            else:
                held.run.talk.is_stale = False

    def _finished(self, held: Held, following: Claim | None, output: Any) -> None:
        has_next = held.run.talk.finish(held.run, says=isinstance(output, str))
        held.run.talk.is_stale = False
        assert (following is not None) == has_next
        if following is not None:
            self.held.append(Held(following, held.run, held.entry))

    @precondition(lambda self: self.held)
    @rule(pick=PICK, later=st.booleans())
    def fail(self, pick: int, later: bool) -> None:
        held = self._held(pick)
        wait = LATER_SECONDS if later else 0
        call = lambda: settle.nack(held.claim, code="boom", message="it failed", retry_after=wait)  # noqa: E731
        if held.is_owner:
            held.run.talk.fail(held.run, later=later)
            self._settled(held, call)
        else:
            self._stale(held, call, "queued", "dead_letter", "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def fail_for_good(self, pick: int) -> None:
        held = self._held(pick)
        call = lambda: settle.dead_letter(held.claim, code="bad", message="never")  # noqa: E731
        if held.is_owner:
            held.run.talk.bury(held.run)
            self._settled(held, call)
        else:
            self._stale(held, call, "dead_letter")

    @precondition(lambda self: self.held)
    @rule(pick=PICK, reason=st.sampled_from(("external_event", "manual_pause", RATE_LIMIT)), name=st.sampled_from("a"))
    def wait(self, pick: int, reason: str, name: str) -> None:
        held = self._held(pick)
        name = name if reason == "external_event" else ""
        self.number += 1
        slot = {"name": name or reason, "key": "", "n": self.number, "arguments_hash": "0" * 64}
        seconds = LATER_SECONDS if reason == RATE_LIMIT else None
        wait = scene.wait(reason, name=name, entry=slot, seconds=seconds)
        call = lambda: settle.suspend(held.claim, wait)  # noqa: E731
        if held.has_ended("acked", left_run="waiting"):
            self._unchanged(call)
        elif held.is_owner:
            held.run.talk.suspend(held.run, reason, name)
            self._settled(held, call)
        else:
            self._stale(held, call, "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def notice_the_cancellation(self, pick: int) -> None:
        held = self._held(pick)
        call = lambda: settle.stopped(held.claim)  # noqa: E731
        if held.is_owner:
            held.run.talk.settle(held.run, "cancelled", "cancelled")
            self._settled(held, call)
        else:
            self._stale(held, call, "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def hand_back(self, pick: int) -> None:
        held = self._held(pick)
        is_owned = held.entry.token == held.claim.token
        assert settle.hand_back(tokens=[held.claim.token]) == is_owned
        if is_owned:
            held.run.talk.give_back(held.run)
            held.run.talk.is_stale = False

    def _held(self, pick: int) -> Held:
        """Mostly one that is good; else one of the last, which may have been lost."""
        owners = [one for one in self.held if one.is_owner]
        chosen = owners if owners and pick < 9 else self.held[-6:]
        return chosen[-1 - pick % len(chosen)]

    def _settled(self, held: Held, call: Callable[[], Any]) -> None:
        call()
        held.run.talk.is_stale = False

    def _stale(self, held: Held, call: Callable[[], Any], *ends: str, left_run: str | None = None) -> None:
        """Refused, or told again that it has won; nothing changes."""
        if held.has_ended(*ends, left_run=left_run):
            self._unchanged(call)
        else:
            self._refused(LeaseLost, call)

    def _unchanged(self, call: Callable[[], Any]) -> Any:
        with compare.nothing_changes():
            return call()

    def _refused(self, error: type[BaseException], call: Callable[[], Any]) -> None:
        with compare.nothing_changes(), pytest.raises(error):
            call()

    # Operators.

    @property
    def dead(self) -> list[tuple[Intent, Entry]]:
        return [(run, one) for run in self.runs for one in run.entries if one.status == "dead_letter"]

    @precondition(lambda self: self.dead)
    @rule(pick=PICK, acts=st.sampled_from(("replay", "replay", "discard")))
    def deal_with_a_dead_letter(self, pick: int, acts: str) -> None:
        dead = self.dead
        run, entry = dead[-1 - pick % len(dead)]
        assert entry.id is not None
        dispatch_id = entry.id
        call = (
            (lambda: replay.one(dispatch_id=dispatch_id, by="op"))
            if acts == "replay"
            else (lambda: replay.discard(dispatch_id=dispatch_id, by="op"))
        )
        if entry.resolved:
            self._refused(AlreadyResolved, call)
        elif acts == "replay" and self._is_taken(run.key):
            self._refused(DuplicateKey, call)
        else:
            call()
            if acts == "replay":
                run.talk.replay(run, entry)
            entry.resolved = True
            run.talk.is_stale = False

    @precondition(lambda self: self.runs)
    @rule(pick=PICK)
    def start_it_now(self, pick: int) -> None:
        run = self._run(pick)
        assert run.id is not None
        run_id, queued = run.id, run.queued
        call = lambda: tick.run_now(run_id=run_id)  # noqa: E731
        if queued is None:
            self._refused(NotScheduled, call)
        else:
            assert call().changed == queued.later
            queued.later = False
            run.talk.is_stale = False

    # The clock, and who looks at it.

    @precondition(lambda self: any(run.queued and run.queued.later for run in self.runs))
    @rule(pick=PICK)
    def hours_pass(self, pick: int) -> None:
        """What a thread had scheduled, or let back off, has come due; nobody has looked."""
        talk = self._talk(pick)
        Dispatch.objects.queued().filter(thread_id=talk.id, available_at__gt=Now()).update(
            available_at=Now() - timedelta(milliseconds=1)
        )
        Thread.objects.filter(pk=talk.id, wakes_at__gt=Now()).update(wakes_at=Now() - timedelta(milliseconds=1))
        for run in talk.runs:
            if run.queued and run.queued.later:
                run.queued.later, talk.is_stale = False, True

    @precondition(lambda self: any(one.is_owner for one in self.held))
    @rule(pick=PICK)
    def a_worker_dies(self, pick: int) -> None:
        owners = [one for one in self.held if one.entry.token == one.claim.token]
        held = owners[pick % len(owners)]
        scene.expire_lease(held.claim)
        held.entry.is_expired = True

    @precondition(lambda self: any(run.status == "waiting" for run in self.runs))
    @rule(pick=PICK)
    def patience_ends(self, pick: int) -> None:
        waiting = [run for run in self.runs if run.status == "waiting"]
        run = waiting[pick % len(waiting)]
        Run.objects.filter(pk=run.id).update(wait_until=Now() - timedelta(seconds=1))
        run.is_overdue = True

    @precondition(lambda self: any(talk.is_stale for talk in self.talks) or any(run.is_overdue for run in self.runs))
    @rule()
    def tick(self) -> None:
        waking = set(Thread.objects.waking().values_list("pk", flat=True))
        assert tick.promote() == len(waking)
        for talk in self.talks:
            talk.is_stale = talk.is_stale and talk.id not in waking
        overdue = [run for run in self.runs if run.status == "waiting" and run.is_overdue and run.live is None]
        assert tick.expire_waits() == len(overdue)
        for run in overdue:
            run.talk.end(run, "stopped")
            run.talk.is_stale = False

    @precondition(lambda self: any(run.live and run.live.is_expired for run in self.runs))
    @rule()
    def sweep(self) -> None:
        lost = [run for run in self.runs if run.live and run.live.status == "claimed" and run.live.is_expired]
        assert recover.reclaim() == len(lost)
        for run in lost:
            run.talk.lose(run)
            run.talk.is_stale = False

    @precondition(lambda self: any(run.status == "done" and run.entries for run in self.runs))
    @rule(pick=PICK, days=st.sampled_from((2, 40)))
    def prune(self, pick: int, days: int) -> None:
        """Days after what a run did was over."""
        done = [run for run in self.runs if run.status == "done" and run.entries]
        run = done[pick % len(done)]
        old = Dispatch.objects.filter(run_id=run.id)
        old.update(completed_at=Now() - timedelta(days=days))
        for one in run.entries:
            one.days_old = days
        gone = [
            (run, one)
            for run in done
            for one in run.entries
            if one.days_old == 40 or (one.days_old == 2 and (one.status != "dead_letter" or one.resolved))
        ]
        assert prune.batch() == len(gone)
        for run, one in gone:
            run.entries.remove(one)
            one.id = None

    def _everything_ends(self) -> None:
        """Whatever was accepted comes to its end, in a bounded number of rounds, and only then."""
        for _ in range(200):
            open_runs = [run for run in self.runs if run.status != "done"]
            if not open_runs:
                return
            for place in range(len(self.talks)):
                self.hours_pass(place)
            self.tick()
            self._claim(AGENTS, 4)
            compare.check(self.talks)
            for held in [one for one in self.held if one.is_owner]:
                if held.is_owner:
                    self._finished(held, settle.complete(held.claim, output="end"), "end")
            compare.check(self.talks)
            for run in self.runs:
                if run.status == "waiting" and run.live is None and run.id is not None:
                    cancel.run(scope=scene.SCOPE, run_id=run.id)
                    run.talk.cancel(run)
            compare.check(self.talks)
        raise AssertionError("not everything comes to an end")
