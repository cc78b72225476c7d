"""Which due threads a worker can take: it looks only at the lanes it can run, whatever waits beside them.

Lanes of a paused agent or queue are no lanes, nor are those of an agent whose limit is reached: who asks what is due is
not told of them.
"""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mailbox_app import catalogue
from mailbox_app.models import Thread, ask, columns, loader
from mailbox_app.operations import gate

# Sorts after any version: a worker whose agent's version is not known here takes all.
_ANY_VERSION = "\x7f"

# Nothing is paused: the two probes are of one small unique index.
UNPAUSED = """
    NOT EXISTS (SELECT FROM mailbox_pause WHERE kind = 'queue' AND name = {queue})
    AND NOT EXISTS (SELECT FROM mailbox_pause WHERE kind = 'agent' AND name = {agent})
"""
# Its limit leaves room for one more: there is a start in the bucket (a thousandth may be wanting, for what is rounded),
# and a permit that is free. Not asked for with EXISTS: that could be answered from all limits and permits there are.
UNLIMITED = """
    (
        SELECT bound.id FROM mailbox_limit AS bound
        WHERE bound.kind = 'agent' AND bound.name = {agent} AND (
            bound.full_at > statement_timestamp()
                + make_interval(secs => bound.seconds * (1 - 0.999 / bound.starts))
            OR bound.most IS NOT NULL AND (
                SELECT id FROM mailbox_permit
                WHERE limit_id = bound.id AND dispatch_id IS NULL AND NOT is_retired LIMIT 1
            ) IS NULL
        )
    ) IS NULL
"""
STARTABLE = f"{UNPAUSED} AND {UNLIMITED}"

# The ORM has neither LATERAL nor loose index scans. One lane is one version of one agent on this queue: the recursion
# hops from each lane to the next by index, and each lane is one index range. No sort over the backlog: the cost depends
# neither on it nor on the work of agents and versions this worker cannot run.
_LANES = """
    WITH RECURSIVE lane AS (
        SELECT runnable.agent, runnable.newest, runnable.accepted, (
            SELECT due_version FROM mailbox_thread
            WHERE due_queue = %(queue)s AND due_agent = runnable.agent AND due_at IS NOT NULL
            ORDER BY due_version LIMIT 1
        ) AS version
        FROM ROWS FROM (unnest(%(agents)s::text[]), unnest(%(newest)s::text[]), unnest(%(accepted)s::text[]))
            AS runnable (agent, newest, accepted)
        WHERE {startable}
        UNION ALL
        SELECT lane.agent, lane.newest, lane.accepted, (
            SELECT due_version FROM mailbox_thread
            WHERE due_queue = %(queue)s AND due_agent = lane.agent AND due_at IS NOT NULL
                AND due_version > lane.version
            ORDER BY due_version LIMIT 1
        )
        FROM lane WHERE lane.version IS NOT NULL
    )
""".replace("{startable}", STARTABLE.format(queue="%(queue)s", agent="runnable.agent"))
# Candidates: the first of each lane, then the first of all.
CANDIDATES = (
    _LANES
    + """
    , candidate AS MATERIALIZED (
        SELECT head.id, head.due_priority, head.due_at
        FROM lane
        CROSS JOIN LATERAL (
            SELECT id, due_priority, due_at
            FROM mailbox_thread
            WHERE due_queue = %(queue)s AND due_agent = lane.agent AND due_version = lane.version
                AND due_at IS NOT NULL AND id <> ALL(%(without)s::uuid[])
            ORDER BY due_priority, due_at, id
            LIMIT %(width)s
        ) AS head
        WHERE lane.version = ''
            OR CASE WHEN lane.accepted IS NULL THEN lane.version <= lane.newest
                ELSE lane.version = ANY(string_to_array(lane.accepted, E'\n')) END
        ORDER BY head.due_priority, head.due_at, head.id
        LIMIT %(width)s
    )
"""
)
# Of these, those that nobody holds. Each row is looked at again under its lock: what is no longer due by then is left
# out. One row comes back even if none could be locked. Said so that no index fits: else, while statistics are old, all
# that is due may be read to find these few among it. Agents and queues that were paused meanwhile are left out by the
# next statement, which is younger than the gate taken here.
LOCK = (
    CANDIDATES
    + f"""
    SELECT (SELECT count(*) FROM candidate), clock_timestamp(), pg_advisory_xact_lock_shared({gate.GATE}), {{columns}}
    FROM (SELECT) AS one
    LEFT JOIN (
        SELECT mailbox_thread.*
        FROM candidate JOIN mailbox_thread ON mailbox_thread.id = candidate.id
        WHERE mailbox_thread.due_queue IS NOT DISTINCT FROM %(queue)s AND (mailbox_thread.due_at IS NULL) IS FALSE
            AND mailbox_thread.deleted_at IS NULL
        ORDER BY candidate.due_priority, candidate.due_at, candidate.id
        LIMIT %(limit)s
        FOR NO KEY UPDATE OF mailbox_thread SKIP LOCKED
    ) AS thread ON TRUE
"""
)


# The same hops, over every queue and agent that has due work.
_DUE_LANES = """
    WITH RECURSIVE lane AS (
        (
            SELECT due_queue, due_agent FROM mailbox_thread WHERE due_at IS NOT NULL
            ORDER BY due_queue, due_agent LIMIT 1
        )
        UNION ALL
        SELECT following.due_queue, following.due_agent
        FROM lane CROSS JOIN LATERAL (
            SELECT due_queue, due_agent FROM mailbox_thread
            WHERE due_at IS NOT NULL AND (due_queue, due_agent) > (lane.due_queue, lane.due_agent)
            ORDER BY due_queue, due_agent LIMIT 1
        ) AS following
    )
"""
_STARTABLE_LANE = STARTABLE.format(queue="lane.due_queue", agent="lane.due_agent")
DUE_LANES = f"{_DUE_LANES} SELECT due_queue, due_agent FROM lane WHERE {_STARTABLE_LANE}"

# How much is due on each queue, counted up to a number. In the order of an index: the first rows without one could be
# looked for in the whole table.
DUE_QUEUES = f"""
    {_DUE_LANES}
    SELECT lane.due_queue, least(sum(found.number), %(most)s)::int
    FROM lane CROSS JOIN LATERAL (
        SELECT count(*) AS number
        FROM (
            SELECT FROM mailbox_thread
            WHERE due_queue = lane.due_queue AND due_agent = lane.due_agent AND due_at IS NOT NULL
            ORDER BY due_queue, due_agent LIMIT %(most)s
        ) AS due
    ) AS found
    WHERE {_STARTABLE_LANE}
    GROUP BY lane.due_queue ORDER BY lane.due_queue
"""

HAS_DUE = f"""
    WITH RECURSIVE lane AS (
        (
            SELECT due_queue, due_agent FROM mailbox_thread WHERE due_queue = %(queue)s AND due_at IS NOT NULL
            ORDER BY due_queue, due_agent LIMIT 1
        )
        UNION ALL
        SELECT following.due_queue, following.due_agent
        FROM lane CROSS JOIN LATERAL (
            SELECT due_queue, due_agent FROM mailbox_thread
            WHERE due_queue = lane.due_queue AND due_agent > lane.due_agent AND due_at IS NOT NULL
            ORDER BY due_queue, due_agent LIMIT 1
        ) AS following
    )
    SELECT due_agent FROM lane WHERE {_STARTABLE_LANE} LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """What a worker can run: runs of its agents not started yet, and started ones of versions they accept."""

    agents: list[str]
    newest: list[str]
    accepted: list[list[str] | None]

    @classmethod
    def of(cls, agents: Collection[str]) -> "Runnable":
        names = list(agents)
        specs = [catalogue.find(name) for name in names]
        return cls(
            agents=names,
            newest=[_ANY_VERSION if spec is None else catalogue.version_key(spec.version) for spec in specs],
            accepted=[None if spec is None else catalogue.accepted_keys(spec) for spec in specs],
        )

    def takes(self, agent: str | None, version: str | None) -> bool:
        """Whether the worker can go on with a run of this agent that was started by this version (blank: by none)."""
        if agent not in self.agents or version is None:
            return False
        place = self.agents.index(agent)
        accepted = self.accepted[place]
        return version == "" or (version <= self.newest[place] if accepted is None else version in accepted)


def lock(
    *, queue: str, runnable: Runnable, limit: int, width: int, without: Collection[uuid.UUID] = ()
) -> tuple[list[Thread], int]:
    """Lock up to `limit` of the first `width` due threads whose heads can be run, in the order in which they should be.

    Threads that somebody holds are passed over. Returns the locked ones and how many there were to choose from.
    """
    params = lanes(queue, runnable) | {"limit": limit, "width": width, "without": list(without)}
    threads, count = [], 0
    for count, clock, _, *values in ask(LOCK.replace("{columns}", columns(Thread, "thread")), params):  # noqa: B007
        if any(value is not None for value in values):
            thread = loader(Thread)(values)
            thread.locked_at = clock
            threads.append(thread)
    return threads, count


def are_due(*, queue: str, agents: Collection[str]) -> bool:
    """Whether the queue has due work that these agents can run."""
    if not agents:
        return False
    params = lanes(queue, Runnable.of(agents)) | {"width": 1, "without": []}
    return bool(ask(f"{CANDIDATES} SELECT id FROM candidate", params))


def has_due(queue: str) -> bool:
    """Whether the queue has due work that may start, for whomever."""
    return bool(ask(HAS_DUE, {"queue": queue}))


def due_lanes() -> list[tuple[str, str]]:
    """Every (queue, agent) that has due work which may start, whatever waits there."""
    return [(queue, agent) for queue, agent in ask(DUE_LANES, {})]


def due_queues(*, most: int) -> dict[str, int]:
    """How many threads are due and may start on each queue that has any, counted up to `most`."""
    return dict(ask(DUE_QUEUES, {"most": most}))


def lanes(queue: str, runnable: Runnable) -> dict[str, Any]:
    """The parameters of the statement that name the lanes."""
    accepted = [None if keys is None else "\n".join(keys) for keys in runnable.accepted]
    return {"queue": queue, "agents": runnable.agents, "newest": runnable.newest, "accepted": accepted}
