"""What operators, the clock and whoever looks at it may do."""

from datetime import timedelta

from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mailbox_app.errors import (
    AlreadyResolved,
    DuplicateKey,
    NotScheduled,
)
from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import prune, recover, replay, tick
from tests.operations import scene
from tests.proof.oracle import Entry, Intent
from tests.proof.stage import PICK, Stage


class Keepers(Stage):
    """Deal with dead letters, let time pass, tick, sweep and prune."""

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

    @precondition(lambda self: any(talk.is_active for talk in self.talks))
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
