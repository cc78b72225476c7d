"""What stands at the head of threads: which of their queued dispatches can start now, and what its run would read."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailbox_app.models import Dispatch, Message, Run, Thread, columns, loader, read
from mailbox_app.models.ready import PAST_BARRIER
from mailbox_app.operations import candidates, freeze
from mailbox_app.states import RunStatus

# What the heads of these threads are now, which need not be what their flags said; none where it is paused by now. And
# the limits that count them, the agent's first: mostly there are none.
_HEADS_OF = """
    SELECT {columns},
        (SELECT id FROM mailbox_limit WHERE kind = 'agent' AND name = dispatch.agent),
        (SELECT id FROM mailbox_limit WHERE kind = 'scope' AND name = run.scope)
    FROM unnest(%(threads)s::uuid[], %(open)s::uuid[]) AS thread (id, open_run_id)
    CROSS JOIN LATERAL (
        (
            SELECT dispatch.* FROM mailbox_dispatch AS dispatch {which}
                dispatch.thread_id = thread.id AND dispatch.status = 'queued' AND thread.open_run_id IS NULL
                AND dispatch.available_at <= statement_timestamp()
            ORDER BY dispatch.priority, dispatch."order", dispatch.id
            LIMIT 1
        )
        UNION ALL
        -- An open run's own, of which there is one: whatever else waits on its thread is not read.
        SELECT * FROM mailbox_dispatch
        WHERE run_id = thread.open_run_id AND status = 'queued' AND available_at <= statement_timestamp()
    ) AS dispatch
    JOIN mailbox_run AS run ON run.id = dispatch.run_id
    WHERE """ + candidates.UNPAUSED.format(queue="dispatch.queue", agent="dispatch.agent")
HEADS = _HEADS_OF.replace("{which}", "WHERE")
# The same where a barrier is pending.
PAST = _HEADS_OF.replace("{which}", f"{PAST_BARRIER} AND")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads with their runs, by thread; the limits that count them, by dispatch; what those that would start have
    before them (`freeze.unread`), by thread."""

    dispatches: dict[uuid.UUID, Dispatch]
    limits: dict[uuid.UUID, list[uuid.UUID]]
    unread: dict[uuid.UUID, list[Message]]


def of(threads: Sequence[Thread]) -> Heads:
    """The heads of these threads, under their fences."""
    if not threads:
        return Heads(dispatches={}, limits={}, unread={})
    found, limits = _look(threads, HEADS)
    unread = _unread(found.values())
    # Nobody pays for a barrier where none is pending: whoever is about to start has been shown it.
    barred = [thread for thread in threads if any(message.barrier for message in unread.get(thread.pk, ()))]
    if barred:
        for thread in barred:
            del found[thread.pk]
        past, limits_past = _look(barred, PAST)
        found, limits, unread = found | past, limits | limits_past, unread | _unread(past.values())
    return Heads(dispatches=found, limits=limits, unread=unread)


def _unread(heads: Iterable[Dispatch]) -> dict[uuid.UUID, list[Message]]:
    # A replay reads what its original had read.
    starting = [head.run for head in heads if head.run.status == RunStatus.CREATED and head.run.replay_of_id is None]
    return freeze.unread_by(starting) if starting else {}


def _look(
    threads: Sequence[Thread], statement: str
) -> tuple[dict[uuid.UUID, Dispatch], dict[uuid.UUID, list[uuid.UUID]]]:
    sql = statement.replace("{columns}", f"{columns(Dispatch, 'dispatch')}, {columns(Run, 'run')}")
    params = {"threads": [thread.pk for thread in threads], "open": [thread.open_run_id for thread in threads]}
    found: dict[uuid.UUID, Dispatch] = {}
    limits: dict[uuid.UUID, list[uuid.UUID]] = {}
    for dispatch, *rest, of_agent, of_scope in read(Dispatch, sql, params):
        dispatch.run = loader(Run)(rest)
        found[dispatch.thread_id] = dispatch
        if of_agent or of_scope:
            limits[dispatch.pk] = [limit for limit in (of_agent, of_scope) if limit is not None]
    return found, limits
