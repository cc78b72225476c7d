"""Streams in any order against the table: clients come, are dropped anywhere and come back, whatever fails meanwhile.

Everything is as in production: a server with its hub, PostgreSQL and Redis, clients on sockets. The test itself is the
worker, the callers and the clock; it reads its clients' sockets as far as a rule says, and no further.
"""

import json
from datetime import timedelta
from typing import Any

import redis
from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.errors import Cancelled
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Event, Run, Thread
from mailbox_app.operations import cancel, checkpoint, interrupt, prune, recover, resume, settle, threads
from mailbox_app.operations import emit as events
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.proof.followers import Follower, Spoken
from tests.proof.watching import MOST_FOLLOWERS, PICK, Watching
from tests.streams.served import serving

# A crowd is more than a page, and more than a feed keeps.
COUNT = st.sampled_from((1, 1, 1, 2, 5))
ACT = st.tuples(st.sampled_from(("speak", "speak", "emit", "emit", "say")), COUNT) | st.just(("crowd", 130))
HOW = st.sampled_from(("ends", "ends", "fails", "is buried", "waits", "waits", "is lost"))
# Notices that are lost are made up for soon, a stall of the machine loses none, and a feed keeps little.
SETTINGS = {
    "wait_poll_seconds": 0.05,
    "stream_poll_seconds": 0.1,
    "broker_retry_seconds": 0.1,
    "broker_timeout_seconds": 10.0,
    "stream_heartbeat_seconds": 0.2,
    "stream_buffer_entries": 7,
    "lease_seconds": 3600.0,
}


class Holding:
    """A claim the test holds as its worker, and what was said live in it."""

    def __init__(self, claim: Claim) -> None:
        self.claim, self.live = claim, LiveText(claim)
        self.spoken = Spoken(claim.thread_id, claim.run_id, claim.fence, claim.attempt)
        self.uses = 0

    def entry(self, verb: str) -> checkpoint.Record:
        self.uses += 1
        return scene.entry(f"{self.claim.fence}", verb=verb, n=self.uses)


class Streaming(Watching):
    """All that callers, workers, clients and trouble may do."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Holding] = []

    # What callers and workers do

    @initialize()
    def begin(self) -> None:
        self.begin_a_thread()

    @precondition(lambda self: len(self.ledger.events) < 3)
    @rule()
    def begin_a_thread(self) -> None:
        """With a run that is being executed, and somebody who looks on."""
        thread_id = scene.post().thread_id
        self.ledger.events[thread_id] = []
        self.claim()
        if len(self.followers) < MOST_FOLLOWERS:
            self._join(Follower(self.ledger, self.token, thread_id))

    @precondition(lambda self: self.threads)
    @rule(pick=PICK)
    def submit(self, pick: int) -> None:
        scene.post(thread_id=self._thread(pick))
        self.claim()

    @rule()
    def claim(self) -> None:
        """Whoever is executed begins to speak."""
        found = scene.take()
        if found is not None:
            self.held.append(Holding(found))
            self.held[-1].spoken.is_whole = self.redis.is_running
            self.ledger.spoken.append(self.held[-1].spoken)
            self._speak(self.held[-1], 2)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, acts=st.lists(ACT, min_size=1, max_size=5))
    def work(self, pick: int, acts: list[tuple[str, int]]) -> None:
        """Speak, say and emit."""
        one = self._held(pick)
        for act, count in acts:
            getattr(self, f"_{act}")(one, count)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, acts=st.lists(ACT, min_size=1, max_size=3))
    def work_while_notices_are_lost(self, pick: int, acts: list[tuple[str, int]]) -> None:
        self._held(pick).spoken.is_whole = False
        with channel.silenced():
            self.work(pick, acts)

    @precondition(lambda self: self.held and self.followers)
    @rule(pick=PICK, acts=st.lists(ACT, min_size=1, max_size=4))
    def work_while_all_listen(self, pick: int, acts: list[tuple[str, int]]) -> None:
        for act in acts:
            self.work(pick, [act])
            self.everybody_catches_up()

    @precondition(lambda self: self.held and self.followers)
    @rule(pick=PICK, counts=st.lists(COUNT, min_size=1, max_size=3), is_said=st.booleans())
    def speak_while_all_listen(self, pick: int, counts: list[int], is_said: bool) -> None:
        self.work_while_all_listen(pick, [("speak", count) for count in counts])
        if is_said:
            self.work(pick, [("say", 1)])

    def _emit(self, one: Holding, count: int) -> None:
        for number in range(count):
            one.uses += 1
            visibility = "internal" if number % 3 == 1 else "public"
            scene.emit(
                one.claim, "Told", {"number": number}, n=1_000 * one.claim.fence + one.uses, visibility=visibility
            )

    def _crowd(self, one: Holding, count: int) -> None:
        """In one transaction."""
        run = Run.objects.get(pk=one.claim.run_id)
        with Thread.objects.fence(run.thread_id) as thread:
            for number in range(count):
                events.of_run(thread, "Told", run, number=number)

    def _speak(self, one: Holding, count: int) -> None:
        for _ in range(count):
            one.uses += 1
            text = f"{one.claim.fence}:{one.uses}ü; "
            # First: what is not noted yet must not be heard.
            one.spoken.text += text
            one.live.delta(text)

    def _say(self, one: Holding, count: int) -> None:
        checkpoint.say(one.claim, one.entry("say"), one.spoken.text or "said")
        one.spoken.closed = len(one.spoken.text)
        one.live.close()

    @precondition(lambda self: self.held)
    @rule(
        pick=PICK,
        how=st.sampled_from(("ends", "ends", "fails", "is buried", "waits", "waits", "is lost")),
        is_next=st.booleans(),
    )
    def leave(self, pick: int, how: str, is_next: bool) -> None:
        """`is_next`: who comes next is executed at once."""
        one = self._held(pick)
        self._let_go(one)
        match how:
            case "ends":
                settle.complete(one.claim, output=one.spoken.text)
            case "fails":
                settle.nack(one.claim, code="transient", message="no", retry_after=0)
            case "is buried":
                settle.dead_letter(one.claim, code="permanent", message="no")
            case "waits":
                entry = {"name": "external_event", "key": "", "n": one.claim.fence, "arguments_hash": "0" * 64}
                settle.suspend(one.claim, scene.wait(entry=entry))
            case "is lost":
                scene.expire_lease(one.claim)
                assert recover.reclaim() == 1
                scene.make_available(one.claim)
        if is_next:
            self.claim()

    @rule(pick=PICK)
    def go_on(self, pick: int) -> None:
        waiting = list(self._runs().filter(status="waiting").order_by("pk"))
        if waiting:
            resume.run(scope=scene.SCOPE, run_id=waiting[pick % len(waiting)].pk, payload=1)

    @precondition(lambda self: self.threads)
    @rule(pick=PICK, everything=st.booleans())
    def stop(self, pick: int, everything: bool) -> None:
        """A run, or all that is going on on a thread."""
        runs = list(self._runs().exclude(status="done").order_by("pk"))
        if everything:
            interrupt.thread(scope=scene.SCOPE, thread_id=self._thread(pick))
        elif runs:
            cancel.run(scope=scene.SCOPE, run_id=runs[pick % len(runs)].pk)
        self._notice_stops()

    @precondition(lambda self: self.threads and not self.ledger.deleted)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        thread_id = self._thread(pick)
        cancel.thread(scope=scene.SCOPE, thread_id=thread_id)
        self._notice_stops()
        threads.delete(scope=scene.SCOPE, thread_id=thread_id)

    @precondition(lambda self: self.threads)
    @rule(pick=PICK, share=st.floats(0.1, 1.0))
    def prune(self, pick: int, share: float) -> None:
        """Retention ends for the oldest events; those of a thread with a dead letter stay."""
        thread_id = self._thread(pick)
        self.ledger.read()
        old = Event.objects.filter(thread_id=thread_id, cursor__lte=int(share * len(self.ledger.events[thread_id])))
        old.update(created_at=Now() - timedelta(seconds=conf.event_retention_seconds + 1))
        prune.batch()

    # What goes wrong

    @precondition(lambda self: self.redis.is_running and self.followers)
    @rule()
    def redis_is_lost(self) -> None:
        self.redis.stop()
        for one in self.held:
            one.spoken.is_whole = False

    @precondition(lambda self: not self.redis.is_running)
    @rule()
    def redis_is_back(self) -> None:
        self.redis.start()
        channel.forget_failures()

    @precondition(lambda self: self.redis.is_running and self.ledger.events)
    @rule(cursors=st.lists(st.sampled_from((1, 2, 5, 1_000, 10**12)), min_size=1, max_size=4))
    def notices_come_that_nobody_sent(self, cursors: list[int]) -> None:
        """Doubled, late, too early."""
        with redis.Redis.from_url(conf.redis_url) as server:
            for cursor in cursors:
                server.publish("mailbox:events", json.dumps({str(one): cursor for one in self.ledger.events}))

    @precondition(lambda self: self.followers)
    @rule()
    def the_server_is_replaced(self) -> None:
        """Without a farewell; its clients find out when they read."""
        self.server.force_exit = True
        self._servers.close()
        self.server = self._servers.enter_context(serving())

    # The end

    def teardown(self) -> None:
        try:
            self._redis_is_there()
            self.everybody_catches_up()
            for one in list(self.held):
                self._let_go(one)
                settle.complete(one.claim, output="end")
            for thread_id in self.threads:
                cancel.thread(scope=scene.SCOPE, thread_id=thread_id)
            self.everybody_catches_up()
        finally:
            for follower in self.followers:
                follower.drop()
            self.server.force_exit = True
            self._servers.close()
            for one in self.held:
                settle.complete(one.claim)
            # Nobody else's worker is to find what a failure has left.
            for row in Thread.objects.filter(pk__in=self.ledger.events, deleted_at=None):
                cancel.thread(scope=scene.SCOPE, thread_id=row.pk)

    # What there is to choose from

    def _held(self, pick: int) -> Holding:
        return self.held[pick % len(self.held)]

    def _runs(self) -> Any:
        return Run.objects.filter(thread_id__in=self.threads)

    def _let_go(self, one: Holding) -> None:
        self.held.remove(one)
        one.spoken.is_whole = False

    def _notice_stops(self) -> None:
        """Whoever is asked to stop does."""
        for one in list(self.held):
            try:
                checkpoint.reach(one.claim)
            except Cancelled:
                self._let_go(one)
                settle.stopped(one.claim)

    def _redis_is_there(self) -> None:
        if not self.redis.is_running:
            self.redis_is_back()


def machine(server: Redis) -> type[Streaming]:
    """The machine with a Redis of its own."""
    return type("Streams", (Streaming,), {"redis": server})
