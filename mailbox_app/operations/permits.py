"""Take the permits of a claim, and let others start with what comes back.

A claim takes a permit of each limit that counts its run, and whatever ends the claim gives them back in the same
statement (`Thread.move`). Nobody waits for a permit: one that another claim is taking just now is passed over.

What finds its agent's limit reached stays due, in a lane that nobody looks at until a permit is free or a start in the
bucket (`candidates.UNLIMITED`). What finds its scope's limit reached is blocked, and with it what else of that scope
stands in front, so that the work of others is found without a look at any of it. Whoever gives a permit back makes the
first of these due. That cannot miss one that is blocked at the same moment: each commits first, and looks afterwards.
Should it end before it has looked, the due tick does.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, Limit, LimitKind, Permit, Thread, ask
from mailbox_app.operations import candidates
from mailbox_app.operations.candidates import Runnable
from mailbox_app.telemetry import after_commit, observe

# Of each limit, so many permits that nobody else takes or gives back just now.
_FREE = """
    SELECT wanted.limit_id, permit.id
    FROM unnest(%(limits)s::uuid[], %(numbers)s::int[]) AS wanted (limit_id, number)
    CROSS JOIN LATERAL (
        SELECT id FROM mailbox_permit
        WHERE limit_id = wanted.limit_id AND dispatch_id IS NULL AND NOT is_retired
        LIMIT wanted.number
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS permit
"""

# What else of these scopes stands in front of a worker's lanes: it waits in its place, unless somebody holds it. The
# row is looked at again under its lock, and its lock is the fence; what it said of its head goes on to be said.
_BLOCK = (
    candidates.CANDIDATES
    + """
    UPDATE mailbox_thread AS kept
    SET blocked_reason = 'scope_limit', blocked_priority = kept.due_priority, blocked_since = kept.due_at,
        due_at = NULL, due_priority = NULL, due_queue = NULL, due_agent = NULL, due_version = NULL
    FROM (
        SELECT mailbox_thread.id
        FROM candidate JOIN mailbox_thread ON mailbox_thread.id = candidate.id
        WHERE mailbox_thread.scope = ANY(%(scopes)s) AND (mailbox_thread.due_at IS NULL) IS FALSE
        FOR NO KEY UPDATE OF mailbox_thread SKIP LOCKED
    ) AS found
    WHERE kept.id = found.id
    RETURNING kept.id
"""
)
_BLOCKED_AT_ONCE = 512

# How many more of a scope may start, counted up to a number; null where nothing limits it.
_ROOM = """
    (
        SELECT (
            SELECT count(*) FROM (
                SELECT FROM mailbox_permit
                WHERE limit_id = bound.id AND dispatch_id IS NULL AND NOT is_retired LIMIT %(limit)s
            ) AS free
        )
        FROM mailbox_limit AS bound
        WHERE bound.kind = 'scope' AND bound.name = asked.scope AND bound.most IS NOT NULL
    )
"""
_ROOM_OF_SCOPES = f"SELECT asked.scope, {_ROOM} FROM unnest(%(scopes)s::text[]) AS asked (scope)"

# The same of the next scopes that have blocked threads, one hop each.
_SCOPES = f"""
    WITH RECURSIVE asked AS (
        (
            SELECT scope, 1 AS nth FROM mailbox_thread
            WHERE blocked_reason = 'scope_limit' AND scope > %(after)s ORDER BY scope LIMIT 1
        )
        UNION ALL
        SELECT following.scope, nth + 1
        FROM asked CROSS JOIN LATERAL (
            SELECT scope FROM mailbox_thread
            WHERE blocked_reason = 'scope_limit' AND scope > asked.scope ORDER BY scope LIMIT 1
        ) AS following
        WHERE nth < %(limit)s
    )
    SELECT asked.scope, {_ROOM} FROM asked
"""

# Permits that nobody gives back any more. There must be none: whatever ends a claim does.
LOST = """
    SELECT permit.id AS permit_id, bound.kind, bound.name, permit.dispatch_id,
        coalesce(dispatch.status, 'gone') AS status
    FROM mailbox_permit AS permit JOIN mailbox_limit AS bound ON bound.id = permit.limit_id
    LEFT JOIN mailbox_dispatch AS dispatch ON dispatch.id = permit.dispatch_id
    WHERE permit.dispatch_id IS NOT NULL
        AND (dispatch.status = 'claimed' AND dispatch.permit_ids @> to_jsonb(permit.id::text)) IS NOT TRUE
    ORDER BY permit.id
"""
# Only as they were found: one that has come back meanwhile may have been taken again.
_RECOVER = f"""
    UPDATE mailbox_permit AS kept SET dispatch_id = NULL
    FROM ({LOST}) AS lost WHERE kept.id = lost.permit_id AND kept.dispatch_id = lost.dispatch_id
    RETURNING kept.id
"""

_FIRST_BLOCKED = """
    SELECT id FROM mailbox_thread
    WHERE scope = %(scope)s AND blocked_reason = 'scope_limit'
    ORDER BY blocked_priority, blocked_since, id LIMIT %(limit)s
"""

# How far this process has looked, by what for.
_looked_until: dict[str, str] = {}


class Allowance:
    """What one claim may start of the heads of these threads, which it holds.

    `limits`: the ids of those that count a head, the agent's first, by dispatch. The permits nobody else takes just now
    are locked at once, as many as could be wanted; so are the buckets of starts, in the order of their ids. What is not
    used is free again with the commit.
    """

    def __init__(self, threads: Sequence[Thread], limits: Mapping[uuid.UUID, Sequence[uuid.UUID]]) -> None:
        self._threads, self._limits = threads, limits
        # Scopes whose limit has kept a head from starting.
        self.exhausted: set[str] = set()
        self._found: dict[uuid.UUID, Limit] = {}
        self._free: dict[uuid.UUID, list[uuid.UUID]] = {}
        self._starts: dict[uuid.UUID, int] = {}
        self._started: Counter[uuid.UUID] = Counter()
        if limits:
            self._look(Counter(limit_id for ids in limits.values() for limit_id in ids))

    def _look(self, wanted: Counter[uuid.UUID]) -> None:
        limits = Limit.objects.filter(pk__in=wanted)
        self._found = {limit.pk: limit for limit in limits}
        if any(limit.starts is not None for limit in self._found.values()):
            for limit in limits.filter(starts__isnull=False).order_by("pk").select_for_update(no_key=True):
                self._found[limit.pk] = limit
                self._starts[limit.pk] = limit.starts_left(self._threads[0].locked_at)
        self._free = {limit.pk: [] for limit in self._found.values() if limit.most is not None}
        if self._free:
            numbers = [wanted[limit_id] for limit_id in self._free]
            for limit_id, permit_id in ask(_FREE, {"limits": list(self._free), "numbers": numbers}):
                self._free[limit_id].append(permit_id)

    def admit(self, head: Dispatch) -> list[uuid.UUID] | None:
        """The permits with which it may start, none where nothing limits it; None: it may not."""
        limits = [self._found[limit_id] for limit_id in self._limits.get(head.pk, ()) if limit_id in self._found]
        for limit in limits:
            if self._starts.get(limit.pk) == 0 or self._free.get(limit.pk) == []:
                if limit.kind == LimitKind.SCOPE:
                    self.exhausted.add(limit.name)
                return None
        for limit in limits:
            if limit.pk in self._starts:
                self._starts[limit.pk] -= 1
                self._started[limit.pk] += 1
        return [self._free[limit.pk].pop(0) for limit in limits if limit.pk in self._free]

    def write(self) -> None:
        """Have the fence write down what was taken from the buckets."""
        for limit_id, number in self._started.items():
            limit, thread = self._found[limit_id], self._threads[0]
            thread.change(limit, full_at=limit.full_after(number, thread.locked_at))


def hold(thread: Thread, dispatch: Dispatch, permit_ids: Sequence[uuid.UUID]) -> dict[str, Any]:
    """Have the fence give the dispatch these permits; returns what is to be written on the dispatch."""
    if not permit_ids:
        return {}
    for permit_id in permit_ids:
        thread.change(Permit(pk=permit_id), dispatch_id=dispatch.pk)
    return {"permit_ids": [str(permit_id) for permit_id in permit_ids]}


def block(scopes: Collection[str], *, queue: str, runnable: Runnable, without: Collection[uuid.UUID]) -> int:
    """Block what else of these scopes stands in front of the lanes of this worker; returns how many threads.

    In the claim's transaction; after its commit, `unblock` must look whether a permit came back meanwhile.
    """
    lanes = candidates.lanes(queue, runnable)
    return len(ask(_BLOCK, lanes | {"scopes": list(scopes), "width": _BLOCKED_AT_ONCE, "without": list(without)}))


def unblock(scopes: Collection[str]) -> int:
    """Make due the first blocked threads of these scopes, as many as have room; returns how many.

    In transactions of its own: to be called after a commit. A thread somebody holds is left out: its holder judges it.
    """
    rooms = ask(_ROOM_OF_SCOPES, {"scopes": list(scopes), "limit": conf.batch_size})
    return sum(_unblock(scope, conf.batch_size if room is None else room) for scope, room in rooms)


def tell(*threads: Thread) -> None:
    """As `hints.tell`; and let others start with what permits were given back under the fence of these threads.

    Lost with the process: the due tick makes blocked threads due, the sweep wakes workers for what is due.
    """
    hints.tell(*threads)
    given_back = [permit_id for thread in threads for permit_id in thread.given_back]
    if given_back:
        after_commit(_pass_on, given_back)


def let_start(kind: str, name: str) -> None:
    """Let start what a limit has kept, now that there is room; after a commit."""
    if kind == LimitKind.SCOPE:
        unblock([name])
    else:
        _wake({name})


def unblock_some() -> int:
    """Make due blocked threads whose scope has room, for who gave a permit back and ended before it told.

    One window of the scopes that have any, and of each as many threads as have room; returns how many.
    """
    return sum(_unblock(scope, room) for scope, room in _look("limited") if room)


def release_some() -> int:
    """Make due blocked threads whose scope is limited no more, a batch of each; returns how many."""
    return sum(_unblock(scope, conf.batch_size) for scope, room in _look("unlimited") if room is None)


def recover() -> int:
    """Free permits that are held by what executes no more; returns how many. There must be none: a find is told."""
    found = ask(_RECOVER, {})
    for (permit_id,) in found:
        observe("permit.recovered", level=logging.ERROR, permit_id=permit_id)
    return len(found)


def refill() -> None:
    """Wake workers for agents whose bucket has a start again, and work that waits for it; for the tick."""
    _wake(set(Limit.objects.filter(starts__isnull=False).values_list("name", flat=True)))


def _wake(agents: Collection[str]) -> None:
    """Wake a worker for each queue on which work of these agents may start."""
    if agents:
        for queue in sorted({queue for queue, agent in candidates.due_lanes() if agent in agents}):
            hints.wake(queue)


def _pass_on(permit_ids: Sequence[uuid.UUID]) -> None:
    limits = Limit.objects.filter(permits__in=permit_ids).values_list("kind", "name").distinct()
    for kind, name in limits.order_by("kind", "name"):
        let_start(kind, name)


def _look(purpose: str) -> list[tuple[str, int | None]]:
    """The next scopes that have blocked threads, with their room; the look after that goes on where this one ended."""
    looked_at = ask(_SCOPES, {"after": _looked_until.get(purpose, ""), "limit": conf.batch_size})
    _looked_until[purpose] = looked_at[-1][0] if len(looked_at) == conf.batch_size else ""
    return looked_at


def _unblock(scope: str, limit: int) -> int:
    found = [pk for (pk,) in ask(_FIRST_BLOCKED, {"scope": scope, "limit": limit})] if limit else []
    if not found:
        return 0
    with Thread.objects.fence_some(found) as threads:
        pass  # leaving the fence judges each thread again
    hints.tell(*threads)
    return len(threads)
