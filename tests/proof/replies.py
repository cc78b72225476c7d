"""What each verb of a conversation comes to, by the oracle (`dialogue.py`): who is refused, who reads, who ends."""

from copy import deepcopy
from dataclasses import replace

from mailbox_app import errors
from tests.proof.dialogue import (
    GONE_ON,
    MOST_ATTEMPTS,
    MOST_LOST,
    MOST_TURNS,
    RATE_LIMIT,
    TOOL_PERMISSION,
    USER_INPUT,
    Asked,
    Dialogue,
    How,
    Reader,
    Said,
)

# A run that interrupts and could not come next is refused, where that is built.
REFUSES_WHAT_IS_BARRED = hasattr(errors, "DeliveryBlockedByBarrier")


class Talk(Dialogue):
    """A thread, and what is done to it."""

    def say(self, texts: list[str], how: How) -> "Reader | str":
        """The run that will read it; or by which code it is refused."""
        if how.word == "reject" and self.open is not None:
            return "active_run_conflict"
        if any(one is not None and one is not self.open for one in (how.expected, how.target)):
            return "active_run_conflict"
        if how.word == "interrupt" and REFUSES_WHAT_IS_BARRED and self._is_barred(texts, how):
            return "delivery_blocked_by_barrier"
        if how.word == "interrupt":
            unread = self.stop(holds=False)
            run = self.queue(texts, how)
            for one, _ in unread:
                one.owner = run
                self.told["MessageRequeued", one] += 1
            self.revision += bool(unread)
            return run
        run = self.open
        if run is not None and (how.word == "steer" or how.posted):
            if how.agent not in ("", run.agent):
                if how.expected is not None or how.target is not None:
                    return "active_run_conflict"
            elif how.word == "steer" or (run.takes_input and not how.own_run):
                if how.boundary == "resume_input" and not run.takes_input:
                    return "conflict"
                self.feed(run, texts, how, how.boundary)
                return run
        joined = self.join(texts, how) if how.posted and how.is_plain else None
        return joined or self.queue(texts, how)

    def _is_barred(self, texts: list[str], how: How) -> bool:
        """Whether, all that stops being gone, nobody would come to its messages: a barrier in front of them stays."""
        ghost = deepcopy(self)
        unread = ghost.stop(holds=False)
        run = ghost.queue(texts, replace(how, barrier=False))
        own = ghost.said[-len(texts) :]
        for one, _ in unread:
            one.owner = run
        ghost.said = [one for one in ghost.said if one.owner is not None]
        while read := ghost.would_read(run, "new_run"):
            if any(one in own for one in read):
                return False
            for one in read:
                one.state = "committed"
        return True

    def tell_run(self, run: Reader, texts: list[str]) -> str:
        if self.open is not run:
            return "active_run_conflict"
        self.feed(run, texts, How(), "next_step")
        return ""

    # The pending zone.

    def edit(self, one: Said, text: str) -> None:
        if one.text != text:
            one.text = text
            one.revision += 1
            self.revision += 1
            self.told["MessageEdited", one] += 1

    def withdraw(self, one: Said) -> tuple[Reader | None, Reader | None]:
        """The run that has ended with it, and the one that goes on waiting."""
        self.retract(one, "withdrawn")
        self.revision += 1
        run, cancelled, waiting = one.owner, None, None
        if run is not None and run.status == "created" and not any(left.owner is run for left in self.pending()):
            anybodys = [left for left in self.pending() if self.may_read(left, run, "new_run")]
            if not anybodys or any(other.status != "done" for other in self.readers if other is not run):
                self.drop(run, "cancelled", "messages_retracted")
                cancelled = run
        run = self.open
        if (
            run is not None
            and run.takes_input
            and run.live
            and not one.held
            and self.may_read(one, run, "resume_input")
        ):
            waiting = None if any(self.may_read(left, run, "resume_input") for left in self.pending()) else run
        if waiting is not None:
            waiting.activations[-1] = "cancelled"
        return cancelled, waiting

    def reorder(self, wanted: list[Said]) -> list[Said]:
        """Those that stand somewhere else than before."""
        last = max(one.position for one in wanted)
        rows = sorted(
            (one for one in self.said if one.state == "pending" and one.position <= last), key=lambda one: one.position
        )
        places = [one.position for one in rows]
        order = [*wanted, *(one for one in rows if one not in wanted)]
        moved = [one for one, place in zip(order, places, strict=True) if one.position != place]
        for one, place in zip(order, places, strict=True):
            one.position = place
        for one in moved:
            one.revision += 1
        if moved:
            self.revision += 1
            for run in [run for run in self.queued() if run.order <= last]:
                own = [one.position for one in self.pending() if one.owner is run]
                run.order = min(own, default=run.order)
        return moved

    def release(self, wanted: list[Said] | None) -> list[Said]:
        found = [one for one in self.pending(held=True) if wanted is None or one in wanted]
        lost: dict[Reader | None, list[Said]] = {}
        for one in found:
            lost.setdefault(one.owner, []).append(one)
        for run, messages in lost.items():
            assert run is not None
            self.requeue(run, messages)
        return found

    # Stopping.

    def stop(self, *, holds: bool) -> list[tuple[Said, Reader]]:
        """Interrupt: what the runs that stop have not read, each with the run that would have."""
        run = self.open
        has_answers = run is not None and run.status == "waiting" and run.live == "queued" and not run.goes_on_by_itself
        superseded = [one for one in self.queued() if not one.later]
        stopping = list(superseded)
        if run is not None and not has_answers:
            if run.live == "queued":
                superseded.append(run)
            stopping.append(run)
        first = run or min(superseded, key=lambda one: one.order, default=None)
        unread = []
        for one in self.pending() if stopping else []:
            reader = first if one.owner is None else one.owner
            if reader in stopping and reader is not None and self.may_read(one, reader, "new_run"):
                unread.append((one, reader))
        is_asked = run is not None and not has_answers and run.live == "claimed" and not run.is_to_stop
        ends_wait = run is not None and not has_answers and run.status == "waiting" and not run.live
        if not (superseded or is_asked or ends_wait or (holds and unread)):
            return unread
        self.epoch += 1
        for one in superseded:
            self.drop(one, "superseded", "interrupted")
        if run is not None and ends_wait:
            self.drop(run, "", "interrupted")
        if run is not None and is_asked:
            run.is_to_stop = True
        if holds:
            for message, reader in unread:
                message.held, message.owner = True, reader
            self.revision += bool(unread)
        return unread

    def cancel(self, run: Reader, by: str | None) -> str:
        if run.status == "done":
            return "already_done"
        if run.live == "claimed":
            run.is_to_stop = True
            return "requested"
        others: list[Said] = []
        if self.open is run:
            others = [one for one in self.pending() if one.owner is None]
        elif run.status == "created" and run.posted is not None and by in run.posted:
            others = [one for one in self.pending() if one.owner is run and one not in run.posted[by or ""]]
        own = [one for one in self.said if one.state == "pending" and one.owner is run and one not in others]
        for one in own:
            self.retract(one, "run_cancelled", is_told=False)
        self.revision += bool(own)
        self.drop(run, "cancelled", "")
        self.requeue(run, others)
        return "cancelled"

    def clear(self) -> list[Reader]:
        """Cancel the thread: the runs that have ended by it."""
        going = [run for run in self.readers if run.status != "done"]
        ended = [run for run in going if run.live != "claimed"]
        for run in going:
            run.is_to_stop = run.is_to_stop or run.live == "claimed"
        unread = self.pending() if going else []
        for one in unread:
            self.retract(one, "run_cancelled", is_told=False)
        self.revision += bool(unread)
        for run in sorted(ended, key=lambda one: one.order):
            self.cancel(run, None)
        return ended

    # What workers do.

    def claim(self) -> tuple[Reader, list[Said]]:
        run = self.head()
        assert run is not None
        if run.status == "created":
            read = self.commit(run, self.would_read(run, "new_run"), "start")
            assert read, "a run that may start has something to read"
        elif run.takes_input:
            said = [one for one in self.pending() if self.may_read(one, run, "resume_input")]
            read = self.commit(run, said, "resume")
            assert read, "what it goes on with is there"
        else:
            read = []
        run.activations[-1], run.status, run.waits, run.waited = "claimed", "running", "", []
        run.goes_on_by_itself = run.is_overdue = False
        self.open = self.latest = run
        return run, read

    def reach(self, run: Reader) -> list[Said]:
        return self.commit(run, self.would_read(run, "next_step"), "checkpoint")

    def finish(self, run: Reader) -> list[Said]:
        """What its next turn begins with; nothing if it has ended."""
        for ticket in run.asked:
            if ticket.status == "open":
                ticket.status = "cancelled"
        following = self.would_read(run, "on_natural_end") if run.turn < MOST_TURNS and not run.is_to_stop else []
        if following:
            run.turn += 1
            run.failures = run.losses = 0
            return self.commit(run, following, "start")
        self.settle(run, "acked", "natural_end")
        return []

    def fail(self, run: Reader) -> None:
        if run.is_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        run.failures += 1
        if run.failures >= MOST_ATTEMPTS:
            self.bury(run, "boom")
        else:
            run.activations[-1] = "queued"

    def lose(self, run: Reader) -> None:
        if run.is_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        run.losses += 1
        if run.losses >= MOST_LOST:
            self.bury(run, "lost")
        else:
            run.activations[-1] = "queued"

    def suspend(self, run: Reader, reason: str, name: str, tickets: list[Asked]) -> None:
        if run.is_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        run.activations[-1], run.status, run.waits, run.wait_name = "acked", "waiting", reason, name
        run.waited, run.failures, run.losses = list(tickets), 0, 0
        goes_on = False
        if reason == USER_INPUT:
            goes_on = self._gather(run)
        elif reason == TOOL_PERMISSION:
            goes_on = all(ticket.status != "open" for ticket in tickets)
        elif name in run.stored:
            run.stored.remove(name)
            goes_on = True
        elif reason == RATE_LIMIT:
            run.goes_on_by_itself = run.later = goes_on = True
        if goes_on:
            run.activations.append("queued")

    def _gather(self, run: Reader) -> bool:
        found = [
            one for one in self.unread(run) if one.boundary == "next_step" and self.may_read(one, run, "next_step")
        ]
        joined = next(
            (one for one in self.queued() if one.posted is not None and one.agent == run.agent and not one.later), None
        )
        theirs = [] if joined is None else [one for one in self.pending() if one.owner is joined]
        for one in [*found, *theirs]:
            one.falls_back = one.falls_back if one.target is run else True
            one.owner, one.boundary, one.target = None, "resume_input", run
        for one in theirs:
            self.told["MessageRequeued", one] += 1
        if joined is not None:
            self.drop(joined, "cancelled", "joined")
        self.revision += bool(found or theirs)
        return bool(found or theirs)

    # What others bring.

    def go_on(self, run: Reader) -> bool:
        """After an answer: whether the run's one activation was queued for it."""
        if run.waits != TOOL_PERMISSION or run.live or any(ticket.status == "open" for ticket in run.waited):
            return False
        run.activations.append("queued")
        return True

    def resume(self, run: Reader, name: str) -> str:
        if run.status == "done":
            return "conflict"
        if run.waits in GONE_ON and run.wait_name == name:
            if not run.live:
                run.activations.append("queued")
                return "resumed"
            if run.goes_on_by_itself:
                run.goes_on_by_itself = run.later = False
                return "resumed"
        run.stored.append(name)
        return "stored"
