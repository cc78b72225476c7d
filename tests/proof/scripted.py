"""What agents do by their script, what becomes of their workers, and what the clock brings."""

import uuid
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mailbox_app.errors import Cancelled
from mailbox_app.models import Dispatch, Run, Thread, Ticket
from mailbox_app.operations import checkpoint, claim, recover, settle, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Suspended
from tests.operations import asking, scene
from tests.proof import compare
from tests.proof.dialogue import RATE_LIMIT, TOOL_PERMISSION, USER_INPUT, Asked, Reader, Said
from tests.proof.replies import Talk
from tests.proof.speakers import LATER_SECONDS, PICK, Speakers

AGENTS = ("echo", "analyst")
SCHEMA = {"type": "object"}
REASONS = (USER_INPUT, USER_INPUT, TOOL_PERMISSION, TOOL_PERMISSION, "external_event", RATE_LIMIT)


class Scripted(Speakers):
    """Workers whose agents read, ask, wait, return and fail."""

    @property
    def holders(self) -> list[tuple[Talk, Reader]]:
        return [one for one in self.readers if one[1].live == "claimed"]

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule()
    def claim_all(self) -> None:
        expected = {talk.id: talk for talk in self.talks if talk.head() is not None}
        tokens = [uuid.uuid4() for _ in range(4)]
        taken = claim.due(agents=AGENTS, tokens=tokens, queue=scene.QUEUE, worker=scene.WORKER)
        assert {one.thread_id for one in taken.claims} == set(expected)
        for one in taken.claims:
            talk = expected[one.thread_id]
            wanted = talk.head()
            run, read = talk.claim()
            assert run is wanted
            assert one.run_id == run.id, "another run goes first"
            turn = self._read_at_start(talk, run)
            assert [message.pk for message in one.messages] == [said.id for said in turn], "it is handed something else"
            self._hand_over(read)
            self.held[run] = one

    @precondition(lambda self: self.holders)
    @rule(pick=PICK)
    def look_at_a_checkpoint(self, pick: int) -> None:
        talk, run, held = self._holder(pick)
        if run.is_to_stop:
            with compare.nothing_changes(), pytest.raises(Cancelled):
                checkpoint.reach(held)
            return
        read = talk.reach(run)
        assert [message.pk for message in checkpoint.reach(held)] == [one.id for one in read]
        self._hand_over(read)

    @precondition(lambda self: self.holders)
    @rule(pick=PICK, output=st.sampled_from((None, "text")))
    def finish(self, pick: int, output: str | None) -> None:
        talk, run, held = self._holder(pick)
        following = settle.complete(held, output=output)
        if output is not None:
            talk.last_seq += 1
            talk.take_order()
        read = talk.finish(run)
        assert (
            [message.pk for message in following.messages if following] == [one.id for one in read]
            if (following is not None)
            else not read
        )
        self._hand_over(read)
        if following is not None:
            self.held[run] = following

    @precondition(lambda self: self.holders)
    @rule(pick=PICK, is_final=st.sampled_from((False, False, True)))
    def fail(self, pick: int, is_final: bool) -> None:
        talk, run, held = self._holder(pick)
        if is_final:
            settle.dead_letter(held, code="boom", message="never")
            talk.bury(run, "boom")
        else:
            settle.nack(held, code="boom", message="it failed", retry_after=0)
            talk.fail(run)

    @precondition(lambda self: any(run.is_to_stop for _, run in self.holders))
    @rule()
    def notice_the_cancellation(self) -> None:
        for talk, run in self.holders:
            if run.is_to_stop:
                settle.stopped(self.held[run])
                talk.settle(run, "cancelled", "cancelled")

    @precondition(lambda self: self.holders)
    @rule(pick=PICK)
    def lose_a_worker(self, pick: int) -> None:
        talk, run, held = self._holder(pick)
        scene.expire_lease(held)
        assert recover.reclaim() == 1
        talk.lose(run)

    @precondition(lambda self: self.holders)
    @rule(
        pick=PICK,
        names=st.lists(st.sampled_from(("one", "two", "three")), min_size=1, max_size=2, unique=True),
        ends=st.booleans(),
    )
    def ask(self, pick: int, names: list[str], ends: bool) -> None:
        _, run, held = self._holder(pick)
        if run.is_to_stop:
            with compare.nothing_changes(), pytest.raises(Cancelled):
                checkpoint.ask(held, [asking.question(held, name) for name in names])
            return
        self._ask(run, held, names, ends)

    @precondition(lambda self: self.holders)
    @rule(pick=PICK, reason=st.sampled_from(REASONS), name=st.sampled_from(("", "a")))
    def wait(self, pick: int, reason: str, name: str) -> None:
        talk, run, held = self._holder(pick)
        name = name if reason == "external_event" else ""
        self.number += 1
        slot = {"name": name or reason, "key": "", "n": self.number, "arguments_hash": "0" * 64}
        tickets: list[Asked] = []
        if reason == TOOL_PERMISSION:
            mine = [one for one in run.asked if one.ticket_id in self._ids_of_turn(held)]
            tickets = mine or ([] if run.is_to_stop else self._ask(run, held, ["one", "two"], ends=False))
            wait = Suspended(reason=reason, name="one", ticket_ids=[one.ticket_id for one in tickets])
        else:
            wait = scene.wait(reason, name=name, entry=slot, seconds=LATER_SECONDS if reason == RATE_LIMIT else None)
        settle.suspend(held, wait)
        talk.suspend(run, reason, name, tickets)

    # The clock.

    @precondition(lambda self: any(ticket.ends and ticket.status == "open" for _, _, ticket in self.asked))
    @rule(pick=PICK)
    def a_question_is_late(self, pick: int) -> None:
        ending = [ticket for _, _, ticket in self.asked if ticket.ends and ticket.status == "open"]
        ticket = ending[pick % len(ending)]
        asking.overdue(ticket.ticket_id)
        ticket.is_late = True

    @precondition(lambda self: any(run.status == "waiting" for _, run in self.readers))
    @rule(pick=PICK)
    def patience_ends(self, pick: int) -> None:
        _, run = self._reader(pick, status="waiting")
        Run.objects.filter(pk=run.id, status="waiting").update(wait_until=Now() - timedelta(seconds=1))
        run.is_overdue = run.status == "waiting"

    @rule()
    def tick(self) -> None:
        """Questions lapse before waits do: who waited for them goes on."""
        late = [one for one in self.asked if one[2].is_late and one[2].status == "open"]
        assert tick.expire_tickets() == len(late)
        for _, _, ticket in late:
            ticket.status = "expired"
        for talk, run, _ in late:
            talk.go_on(run)
        overdue = [(talk, run) for talk, run in self.readers if run.is_overdue and not run.live]
        assert tick.expire_waits() == len(overdue)
        for talk, run in overdue:
            talk.end(run, "stopped", "wait_expired", talk.unread(run))

    @precondition(lambda self: any(run.later for _, run in self.readers))
    @rule()
    def hours_pass(self) -> None:
        came = Now() - timedelta(milliseconds=1)
        Dispatch.objects.queued().filter(available_at__gt=Now()).update(available_at=came)
        Thread.objects.filter(wakes_at__gt=Now()).update(wakes_at=came)
        tick.promote()
        for _, run in self.readers:
            run.later = False

    def _holder(self, pick: int) -> tuple[Talk, Reader, Claim]:
        talk, run = self.holders[pick % len(self.holders)]
        return talk, run, self.held[run]

    def _ask(self, run: Reader, held: Claim, names: list[str], ends: bool) -> list[Asked]:
        schema = {"schema": SCHEMA} if "one" in names else {}
        wanted = [
            asking.question(held, name, expires_in=LATER_SECONDS if ends else None, **(schema if name == "one" else {}))
            for name in names
        ]
        known = {one.ticket_id: one for one in run.asked}
        found = []
        for name, question, row in zip(names, wanted, checkpoint.ask(held, wanted), strict=True):
            ticket = known.get(question.ticket_id)
            if ticket is None:
                ticket = Asked(name, question.ticket_id, name == "one", ends)
                run.asked.append(ticket)
            assert (row.ticket_id, row.status) == (ticket.ticket_id, ticket.status), "asked again, it is as it stands"
            found.append(ticket)
        return found

    def _ids_of_turn(self, held: Claim) -> set[str]:
        return set(Ticket.objects.of_run(held.run_id).filter(turn=held.turn).values_list("ticket_id", flat=True))

    def _read_at_start(self, talk: Talk, run: Reader) -> list[Said]:
        began = [one for one in talk.said if one.owner is run and one.read_turn == run.turn and one.read_at == "start"]
        return sorted(began, key=lambda one: one.seq or 0)

    def _hand_over(self, read: list[Said]) -> None:
        """Nothing is read twice, and nothing that was withdrawn."""
        for one in read:
            assert one.id is not None
            assert one.id not in self.handed
            assert one.state == "committed"
            self.handed.add(one.id)
