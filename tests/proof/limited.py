"""Limits set, changed and removed in any order beside claims and every end of one, judged by what they promise.

No claim brings more of an agent or a scope to execute than its limit says; what could start and does not is kept by a
limit that is reached; permits, flags and claims tell one story. As in `machine.py` an example is one transaction, and
what would be done after a commit is left to the tick.
"""

import sys
import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models.functions import Now
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailbox_app.doctor import flags
from mailbox_app.doctor import permits as examined
from mailbox_app.models import Dispatch, Limit, Thread
from mailbox_app.operations import cancel, claim, limits, permits, recover, settle, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import RunStatus
from tests.operations import scene

AGENTS, SCOPES = ("echo", "analyst"), ("acme", "other")
TARGETS = [*(("agent", name) for name in AGENTS), *(("scope", name) for name in SCOPES)]
A_DAY = 86_400.0

Target = tuple[str, str]


def running() -> Counter[Target]:
    """How many runs execute, by what may limit them."""
    counted: Counter[Target] = Counter()
    for agent, scope in Dispatch.objects.claimed().values_list("agent", "run__scope"):
        counted.update([("agent", agent), ("scope", scope)])
    return counted


class Limited(RuleBasedStateMachine):
    """What clients, workers and operators do where limits are."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[tuple[uuid.UUID, str]] = []
        self.held: list[Claim] = []
        # Starts that are left until the bucket is filled again, which only a rule lets happen.
        self.left: dict[str, int] = {}
        self._example = transaction.atomic()
        self._example._from_testcase = True  # type: ignore[attr-defined]
        self._example.__enter__()

    @rule(agent=st.sampled_from(AGENTS), scope=st.sampled_from(SCOPES), priority=st.sampled_from((1, 128)))
    def post(self, agent: str, scope: str, priority: int) -> None:
        posted = scene.post(agent=agent, scope=scope, priority=priority)
        self.threads.append((posted.thread_id, scope))

    @precondition(lambda self: self.threads)
    @rule(pick=st.integers(0, 9), agent=st.sampled_from(AGENTS), is_later=st.booleans())
    def post_to_a_thread(self, pick: int, agent: str, is_later: bool) -> None:
        thread_id, scope = self.threads[pick % len(self.threads)]
        at = {"available_at": scene.database_now() + timedelta(days=1)} if is_later else {}
        scene.post(thread_id=thread_id, agent=agent, scope=scope, **at)

    @rule(of=st.sampled_from(TARGETS), most=st.integers(1, 3))
    def bound_at_once(self, of: Target, most: int) -> None:
        limits.put(kind=of[0], name=of[1], most=most)
        self.left.pop(of[1], None)

    @rule(agent=st.sampled_from(AGENTS), starts=st.integers(1, 4))
    def bound_starts(self, agent: str, starts: int) -> None:
        same = Limit.objects.of("agent", agent).filter(starts=starts, seconds=A_DAY).exists()
        limits.put(kind="agent", name=agent, starts=starts, seconds=A_DAY)
        self.left[agent] = self.left[agent] if same else starts

    @precondition(lambda self: Limit.objects.in_force().exists())
    @rule(pick=st.integers(0, 3))
    def remove(self, pick: int) -> None:
        found = list(Limit.objects.in_force().order_by("kind", "name"))
        limit = found[pick % len(found)]
        limits.remove(kind=limit.kind, name=limit.name)
        self.left.pop(limit.name, None)

    @precondition(lambda self: self.left)
    @rule()
    def a_day_passes(self) -> None:
        Limit.objects.exclude(full_at=None).update(full_at=Now())
        for limit in Limit.objects.filter(starts__isnull=False):
            self.left[limit.name] = limit.starts or 0

    @rule(most=st.sampled_from((1, 2, 8)))
    def claim_some(self, most: int) -> None:
        before = running()
        tokens = [uuid.uuid4() for _ in range(most)]
        taken = claim.due(queue=scene.QUEUE, agents=AGENTS, worker=scene.WORKER, tokens=tokens).claims
        self.held += taken
        after = running()
        for limit in Limit.objects.exclude(most=None):
            target = (limit.kind, limit.name)
            assert after[target] <= max(before[target], limit.most or 0), f"more than {limit} allows"
        for agent, number in Counter(one.agent for one in taken).items():
            if agent in self.left:
                self.left[agent] -= number
                assert self.left[agent] >= 0, f"more starts of {agent} than its bucket held"

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 9), how=st.sampled_from(("complete", "nack", "hand_back", "suspend", "bury", "lose")))
    def end(self, pick: int, how: str) -> None:
        one = self.held.pop(pick % len(self.held))
        if how == "complete":
            settle.complete(one)
        elif how == "nack":
            settle.nack(one, code="x", message="x", retry_after=3600)
        elif how == "hand_back":
            settle.hand_back(tokens=[one.token])
        elif how == "suspend":
            settle.suspend(one, scene.wait())
        elif how == "bury":
            settle.dead_letter(one, code="x", message="x")
        else:
            scene.expire_lease(one)
            assert recover.reclaim() == 1

    @precondition(lambda self: self.threads)
    @rule(pick=st.integers(0, 9))
    def cancel_what_waits(self, pick: int) -> None:
        thread_id, scope = self.threads[pick % len(self.threads)]
        queued = Dispatch.objects.queued().filter(thread_id=thread_id).order_by("order").first()
        if queued is not None:
            cancel.run(scope=scope, run_id=queued.run_id)

    @rule()
    def hours_pass(self) -> None:
        Dispatch.objects.queued().filter(available_at__gt=Now()).update(available_at=Now())
        Thread.objects.filter(wakes_at__isnull=False).update(wakes_at=Now())

    @rule()
    def what_may_start_starts(self) -> None:
        """After a tick, whatever is left is kept by a limit that is reached."""
        self.tick()
        while True:
            before = len(self.held)
            self.claim_some(8)
            self.tick()
            if len(self.held) == before:
                break
        counted, bounds = running(), {(one.kind, one.name): one for one in Limit.objects.in_force()}
        for dispatch in self._due():
            kept = [("agent", dispatch.agent), ("scope", dispatch.run.scope)]
            reached = [bounds[one] for one in kept if one in bounds and counted[one] >= (bounds[one].most or A_DAY)]
            assert reached or self.left.get(dispatch.agent) == 0, f"nothing keeps {dispatch}"

    def _due(self) -> Any:
        """The queued dispatches that are next on their thread, and due."""
        heads: dict[uuid.UUID, Dispatch] = {}
        queued = Dispatch.objects.queued().filter(available_at__lte=Now(), thread__active_run_id=None)
        for one in queued.select_related("run", "thread").order_by("priority", "order"):
            if one.thread.open_run_id in (None, one.run_id):
                heads.setdefault(one.thread_id, one)
        return heads.values()

    def tick(self) -> None:
        tick.promote()
        limits.settle()
        while permits.release_some():
            pass
        permits.unblock_some()

    @invariant()
    def permits_flags_and_claims_tell_one_story(self) -> None:
        assert examined.look() == []
        ids = [thread_id for thread_id, _ in self.threads]
        assert [finding for look in examined.LOOKS for finding in look.at(ids)] == []
        # What time has made due is not in the flag before the next tick.
        current = Thread.objects.filter(pk__in=ids).exclude(wakes_at__lte=Now())
        assert flags.look(list(current.values_list("pk", flat=True))) == []
        assert recover.repair() == 0

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._everything_ends()
                with connection.cursor() as cursor:
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        finally:
            transaction.set_rollback(True)
            self._example.__exit__(None, None, None)

    def _everything_ends(self) -> None:
        """Under the limits that stand, and nobody but the tick to tell that there is room."""
        for _ in range(200):
            self.hours_pass()
            self.a_day_passes()
            self.tick()
            for run_id, scope in Dispatch.objects.filter(run__status=RunStatus.WAITING).values_list(
                "run_id", "run__scope"
            ):
                cancel.run(scope=scope, run_id=run_id)
            self.claim_some(8)
            while self.held:
                settle.complete(self.held.pop())
            if not Dispatch.objects.queued().exists():
                break
        else:
            raise AssertionError("not everything comes to an end")
        self.tick()
        bounded = Limit.objects.exclude(most=None).with_held()
        assert all(one.held == 0 and one.permits.count() == one.most for one in bounded)
