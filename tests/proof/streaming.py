"""Streams in any order against the table: clients that come, are dropped anywhere and come back, whatever fails meanwhile.

Everything is as in production: a server with its hub, PostgreSQL and Redis, clients on sockets. The test itself is the
worker, the callers and the clock; it reads its clients' sockets as far as a rule says, and no further.
"""

import contextlib
import json
import time
import uuid
from datetime import timedelta
from typing import Any

import redis
from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.errors import Cancelled
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Event, Run, Thread
from mailbox_app.operations import cancel, checkpoint, interrupt, prune, recover, resume, settle, threads
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.operations import scene
from tests.proof.followers import Follower, Ledger, Spoken
from tests.streams.served import PATIENCE_SECONDS, Server, serving

PICK = st.integers(0, 11)
# The last is more than a page, and more than a feed keeps.
COUNT = st.sampled_from((1, 1, 1, 2, 5, 130))
CURSOR = st.sampled_from(("all", "all", "middle", "head", "beyond"))
# What `streaming` changes: notices are made up for soon, and a feed keeps little.
SETTINGS = {
    "wait_poll_seconds": 0.05,
    "stream_poll_seconds": 0.1,
    "broker_retry_seconds": 0.1,
    "stream_heartbeat_seconds": 0.2,
    "stream_buffer_entries": 7,
    "lease_seconds": 3600.0,
}
MOST_FOLLOWERS = 6


class Holding:
    """A claim the test holds as its worker, and what was said live in it."""

    def __init__(self, claim: Claim) -> None:
        self.claim, self.live = claim, LiveText(claim)
        self.spoken = Spoken(claim.thread_id, claim.run_id, claim.fence, claim.attempt)
        self.uses = 0

    def entry(self, verb: str) -> checkpoint.Record:
        self.uses += 1
        return scene.entry(f"{self.claim.fence}", verb=verb, n=self.uses)


class Streaming(RuleBasedStateMachine):
    """All that callers, workers, clients and trouble may do."""

    # Of the test, for all its examples.
    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.held, self.followers = Ledger(), list[Holding](), list[Follower]()
        self.token = make.token(scope=scene.SCOPE)[1]
        self._servers = contextlib.ExitStack()
        self.server: Server = self._servers.enter_context(serving())

    @property
    def threads(self) -> list[uuid.UUID]:
        return [one for one in self.ledger.events if one not in self.ledger.deleted]

    @invariant()
    def the_table_has_no_gap(self) -> None:
        self.ledger.read()

    # What callers and workers do

    @precondition(lambda self: len(self.ledger.events) < 3)
    @rule()
    def begin_a_thread(self) -> None:
        self.ledger.events[scene.post().thread_id] = []

    @precondition(lambda self: self.threads)
    @rule(pick=PICK)
    def submit(self, pick: int) -> None:
        scene.post(thread_id=self._thread(pick))

    @rule()
    def claim(self) -> None:
        found = scene.take()
        if found is not None:
            self.held.append(Holding(found))
            self.held[-1].spoken.is_whole = self.redis.is_running
            self.ledger.spoken.append(self.held[-1].spoken)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, count=COUNT, visibility=st.sampled_from(("public", "public", "internal")), is_told=st.booleans())
    def emit(self, pick: int, count: int, visibility: str, is_told: bool) -> None:
        one = self._held(pick)
        with contextlib.nullcontext() if is_told else channel.silenced():
            for number in range(count):
                given = {"key": None, "visibility": visibility}
                checkpoint.emit_event(one.claim, one.entry("emit"), "Told", {"number": number}, **given)  # type: ignore[arg-type]

    @precondition(lambda self: self.held)
    @rule(pick=PICK, count=st.integers(1, 3))
    def speak(self, pick: int, count: int) -> None:
        one = self._held(pick)
        for _ in range(count):
            one.uses += 1
            text = f"{one.claim.fence}:{one.uses}ü; "
            # First: what is not noted yet must not be heard.
            one.spoken.text += text
            one.live.delta(text)

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def say(self, pick: int) -> None:
        one = self._held(pick)
        checkpoint.say(one.claim, one.entry("say"), one.spoken.text or "said")
        one.spoken.closed = len(one.spoken.text)
        one.live.close()

    @precondition(lambda self: self.held)
    @rule(pick=PICK, how=st.sampled_from(("ends", "ends", "fails", "is buried", "waits", "waits", "is lost")))
    def leave(self, pick: int, how: str) -> None:
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

    @rule(pick=PICK)
    def go_on(self, pick: int) -> None:
        waiting = list(self._runs().filter(status="waiting").order_by("pk"))
        if waiting:
            resume.run(scope=scene.SCOPE, run_id=waiting[pick % len(waiting)].pk, payload=1)

    @precondition(lambda self: self.threads)
    @rule(pick=PICK, everything=st.booleans())
    def stop(self, pick: int, everything: bool) -> None:
        runs = list(self._runs().exclude(status="done").order_by("pk"))
        if everything:
            interrupt.thread(scope=scene.SCOPE, thread_id=self._thread(pick))
        elif runs:
            cancel.run(scope=scene.SCOPE, run_id=runs[pick % len(runs)].pk)
        self._notice_stops()

    @precondition(lambda self: self.threads)
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

    # What clients do

    @precondition(lambda self: self.ledger.events and len(self.followers) < MOST_FOLLOWERS)
    @rule(pick=PICK, run=st.booleans(), begins=CURSOR)
    def open(self, pick: int, run: bool, begins: str) -> None:
        thread_id = list(self.ledger.events)[pick % len(self.ledger.events)]
        runs = list(Run.objects.filter(thread_id=thread_id).order_by("-order").values_list("pk", flat=True))
        head = len(self.ledger.events[thread_id])
        asked = {"all": 0, "middle": head // 2, "head": head, "beyond": head + 1_000_000}[begins]
        run_id = runs[pick % len(runs)] if run and runs else None
        self._join(Follower(self.ledger, self.token, thread_id, run_id, asked=asked))

    @precondition(lambda self: self.threads and len(self.followers) < MOST_FOLLOWERS)
    @rule(pick=PICK)
    def post(self, pick: int) -> None:
        thread_id = self._thread(pick)
        body = {"thread_id": str(thread_id), "agent": "echo", "messages": [{"content": "Hello"}]}
        self._join(Follower(self.ledger, self.token, thread_id, posted={"body": body, "key": str(uuid.uuid4())}))

    @precondition(lambda self: self.followers)
    @rule(pick=PICK, most=st.sampled_from((1, 40, 300, 3_000, 100_000)), leaves=st.booleans())
    def read(self, pick: int, most: int, leaves: bool) -> None:
        """Some bytes, which may end in the middle of an event; and leave there."""
        one = self.followers[pick % len(self.followers)]
        one.read(most, seconds=0.05)
        if leaves:
            one.drop()

    @precondition(lambda self: self.followers)
    @rule(pick=PICK, by_header=st.booleans())
    def come_back(self, pick: int, by_header: bool) -> None:
        """Also where all was told: that is what 204 is for."""
        one = self.followers[pick % len(self.followers)]
        if not one.gone:
            one.connect(self.port, by_header=by_header)

    @precondition(lambda self: self.threads)
    @rule(pick=PICK, run=st.booleans(), limit=st.integers(1, 60), share=st.floats(0.0, 1.2))
    def page(self, pick: int, run: bool, limit: int, share: float) -> None:
        """What is paged is what is streamed."""
        thread_id = self._thread(pick)
        cursor = int(share * len(self.ledger.events[thread_id]))
        runs = list(Run.objects.filter(thread_id=thread_id).order_by("-order").values_list("pk", flat=True))
        run_id = runs[pick % len(runs)] if run and runs else None
        path = f"/threads/{thread_id}/events" if run_id is None else f"/runs/{run_id}/events"
        answer = make.api(secret=self.token).get(path, cursor=cursor, limit=limit)
        pruned = self.ledger.pruned[thread_id]
        if 0 < cursor < pruned:
            assert answer.status_code == 410
            return
        expected = [one.cursor for one in self.ledger.past(max(cursor, pruned), thread_id, run_id)]
        assert [item["cursor"] for item in answer.json()["items"]] == expected[:limit]

    @precondition(lambda self: self.followers)
    @rule()
    def everybody_catches_up(self) -> None:
        """Who has left comes back, and in the end nobody lacks anything."""
        self.ledger.read()
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        waiting = list(self.followers)
        while waiting := [one for one in waiting if not one.has_heard_all()]:
            assert time.monotonic() < give_up_at, [(vars(one), one.missing) for one in waiting]
            for one in waiting:
                if not one.is_connected:
                    one.connect(self.port)
                one.read(seconds=0.02)

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

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def _thread(self, pick: int) -> uuid.UUID:
        return self.threads[pick % len(self.threads)]

    def _held(self, pick: int) -> Holding:
        return self.held[pick % len(self.held)]

    def _runs(self) -> Any:
        return Run.objects.filter(thread_id__in=self.threads)

    def _join(self, follower: Follower) -> None:
        self.ledger.read()
        follower.connect(self.port)
        self.followers.append(follower)

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
