"""What must be alive: the passes, and for each queue, agent and version with due work a worker that takes it."""

from collections.abc import Sequence
from typing import Any

from mailbox_app import catalogue
from mailbox_app.conf import conf
from mailbox_app.doctor.findings import Check, Finding
from mailbox_app.doctor.walk import grace_seconds, rows, snapshot
from mailbox_app.models import AgentRegistration
from mailbox_app.operations import recover

# A pass that is sent each interval begins when its worker is free, and lasts a second; workers stand in for one that is
# late, and look for that every now and then.
_SLACK_SECONDS = 5.0

PASS_LATE = Check(
    "pass_late",
    "The due tick, the sweep or gc has not run for more than two intervals.",
    "{name} last began {ago}; it is to run every {every:g} s",
    "Start `celery beat` and a worker of the maintenance queue, or any worker: those stand in for them. "
    "If they run, their log says why the pass fails.",
)
NO_WORKER = Check(
    "no_live_worker",
    "Work is due, and no live worker has its agent on its queue.",
    "work of agent {agent!r} on queue {queue!r} is due since {since}; {workers}",
    "Start a worker that has the agent and serves the queue (`celery worker -Q <queue>`); `manage.py mailbox_agents` "
    "lists those there are.",
)
WORKERS_TOO_OLD = Check(
    "workers_too_old",
    "A run waits for a worker with the version of its agent's code that began it, or a newer one.",
    "work of agent {agent!r} on queue {queue!r}, begun by a version {version!r}, is due since {since}; live workers "
    "have {versions}",
    "Deploy that version again, or a newer one that accepts it; or cancel the run.",
)
NOT_TAKEN = Check(
    "due_work_not_taken",
    "Work is due, live workers have free slots for it, and nothing of its queue was begun or ended lately.",
    "work of agent {agent!r} on queue {queue!r} is due since {since}; {claimed} of {slots} slots of its live workers "
    "are taken",
    "Their signals are lost, or the workers hang: `mailbox_doctor --fix` sends signals; if that does not help, look at "
    "the broker and the workers' logs.",
    fix="Sends the signals a sweep would: as many as the queue has due threads and free slots.",
)
CHECKS = (PASS_LATE, NO_WORKER, WORKERS_TOO_OLD, NOT_TAKEN)

_PASSES = """
    SELECT name, extract(epoch FROM statement_timestamp() - last_started_at)::float8 AS seconds FROM mailbox_maintenance
"""
# From one (queue, agent, version, priority) to the next through the index claims use: the first of each is its oldest.
_LANES = """
    WITH RECURSIVE head AS (
        (SELECT due_queue, due_agent, due_version, due_priority, due_at FROM mailbox_thread
         WHERE due_at IS NOT NULL ORDER BY due_queue, due_agent, due_version, due_priority, due_at LIMIT 1)
        UNION ALL
        SELECT following.* FROM head CROSS JOIN LATERAL (
            SELECT due_queue, due_agent, due_version, due_priority, due_at FROM mailbox_thread
            WHERE due_at IS NOT NULL
                AND (due_queue, due_agent, due_version, due_priority)
                    > (head.due_queue, head.due_agent, head.due_version, head.due_priority)
            ORDER BY due_queue, due_agent, due_version, due_priority, due_at LIMIT 1
        ) AS following
    )
    SELECT due_queue AS queue, due_agent AS agent, due_version AS version, min(due_at) AS since,
        extract(epoch FROM statement_timestamp() - min(due_at))::float8 AS seconds
    FROM head GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
# Whether the queue moves: something of it was claimed, or has ended, within the grace.
_MOVES = """
    SELECT
        (SELECT count(*) FROM mailbox_dispatch WHERE status = 'claimed' AND queue = %(queue)s) AS claimed,
        EXISTS (
            SELECT FROM mailbox_dispatch WHERE status = 'claimed' AND queue = %(queue)s
                AND claimed_at > statement_timestamp() - %(grace)s * '1 s'::interval
        ) OR EXISTS (
            SELECT FROM mailbox_dispatch
            WHERE status IN ('acked', 'cancelled', 'superseded', 'dead_letter') AND queue = %(queue)s
                AND completed_at > statement_timestamp() - %(grace)s * '1 s'::interval
        ) AS moves
"""


def look() -> list[Finding]:
    """Passes that are late, and due work that nobody takes."""
    with snapshot():
        return [*_passes(), *_lanes()]


def fix(findings: Sequence[Finding]) -> None:
    """Send the signals that are missing, if there is due work that nobody takes."""
    missing = [one for one in findings if one.code == NOT_TAKEN.code]
    if missing and recover.signal():
        for one in missing:
            one.is_fixed = True


def _passes() -> list[Finding]:
    every = {"due_tick": conf.due_tick_seconds, "sweep": conf.sweep_seconds, "gc": conf.gc_seconds}
    known = {row["name"]: row["seconds"] for row in rows(_PASSES)}
    found = []
    for name, interval in every.items():
        seconds = known.get(name)
        if seconds is None or seconds > 2 * interval + conf.pass_seconds + _SLACK_SECONDS:
            ago = "never" if seconds is None else f"{seconds:.0f} s ago"
            found.append(PASS_LATE.found(name=name, ago=ago, every=interval))
    return found


def _lanes() -> list[Finding]:
    """One finding a lane at most; what has been due for less than the grace is in motion."""
    live = list(AgentRegistration.objects.live())
    found = []
    for lane in rows(_LANES):
        if lane["seconds"] <= grace_seconds():
            continue
        said = {"queue": lane["queue"], "agent": lane["agent"], "since": lane["since"].isoformat(timespec="seconds")}
        serving = [one for one in live if one.agent == lane["agent"] and lane["queue"] in one.queues]
        if not serving:
            elsewhere = sorted({queue for one in live if one.agent == lane["agent"] for queue in one.queues})
            on = f"live workers have it on {', '.join(elsewhere)} alone" if elsewhere else "no live worker has it"
            found.append(NO_WORKER.found(workers=on, **said))
        elif not any(_takes(one, lane["version"]) for one in serving):
            versions = ", ".join(sorted({one.version for one in serving}))
            found.append(WORKERS_TOO_OLD.found(version=lane["version"], versions=versions, **said))
        else:
            (queue,) = rows(_MOVES, {"queue": lane["queue"], "grace": grace_seconds()})
            slots = AgentRegistration.objects.live().by_queue()[lane["queue"]][1]
            if queue["claimed"] < slots and not queue["moves"]:
                found.append(NOT_TAKEN.found(claimed=queue["claimed"], slots=slots, **said))
    return found


def _takes(registration: Any, version: str) -> bool:
    """Whether the worker goes on with what that version (its key; blank: none yet) has begun."""
    if version == "":
        return True
    accepts = registration.options.get("accepts")
    if accepts is None:
        return version <= catalogue.version_key(registration.version)
    return version in {catalogue.version_key(one) for one in (registration.version, *accepts)}
