"""The server, its clients and what they may do: come, read some bytes, be dropped there, come back, catch up."""

import contextlib
import time
import uuid

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailbox_app.devtools.servers import Redis
from mailbox_app.models import Run
from tests import make
from tests.operations import scene
from tests.proof.followers import Follower, Ledger
from tests.streams.served import PATIENCE_SECONDS, Server, serving

PICK = st.integers(0, 11)
CURSOR = st.sampled_from(("all", "all", "middle", "head", "beyond"))
MOST_FOLLOWERS = 6


class Watching(RuleBasedStateMachine):
    """Clients of one server, and the table by which they are judged."""

    # Of the test, for all its examples.
    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.followers = Ledger(), list[Follower]()
        self.token = make.token(scope=scene.SCOPE)[1]
        self._servers = contextlib.ExitStack()
        self.server: Server = self._servers.enter_context(serving())

    @property
    def threads(self) -> list[uuid.UUID]:
        return [one for one in self.ledger.events if one not in self.ledger.deleted]

    @invariant()
    def the_table_has_no_gap(self) -> None:
        self.ledger.read()

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

    # What there is to choose from

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def _thread(self, pick: int) -> uuid.UUID:
        return self.threads[pick % len(self.threads)]

    def _join(self, follower: Follower) -> None:
        self.ledger.read()
        follower.connect(self.port)
        self.followers.append(follower)
