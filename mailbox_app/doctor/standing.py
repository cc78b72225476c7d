"""Half states: threads, runs and dispatches that contradict each other. Each check is one statement over a batch."""

from mailbox_app.doctor.findings import REPORT
from mailbox_app.doctor.walk import Look

_DISPATCH_BY_HAND = (
    "Cancel the run (`cancel.run`, POST /v1/runs/{id}/cancel, the admin) if it is not done; its messages tell what "
    "was asked, to be submitted again."
)

LOOKS = (
    Look(
        "claim_not_active",
        "A dispatch is claimed, but its thread does not name its run as the active one.",
        "dispatch {dispatch_id} of run {run_id} is claimed by {worker}, but the active run of thread {thread_id} is "
        "{active}",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, d.id AS dispatch_id, d.run_id, d.claimed_by AS worker, t.active_run_id AS active
            FROM mailbox_dispatch AS d JOIN mailbox_thread AS t ON t.id = d.thread_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status = 'claimed'
                AND t.active_run_id IS DISTINCT FROM d.run_id
        """,
    ),
    Look(
        "active_run_not_claimed",
        "A thread names an active run that no dispatch has claimed: nothing else on it starts.",
        "thread {thread_id} names {run_id} as its active run, but no dispatch of it is claimed",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, t.active_run_id AS run_id FROM mailbox_thread AS t
            WHERE t.id = ANY(%(threads)s::uuid[]) AND t.active_run_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM mailbox_dispatch AS d
                WHERE d.thread_id = t.id AND d.status = 'claimed' AND d.run_id = t.active_run_id
            )
        """,
    ),
    Look(
        "open_run_not_named",
        "A run is running or waiting, but its thread does not name it as its open run.",
        "run {run_id} is {status}, but the open run of thread {thread_id} is {named}",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, r.id AS run_id, r.status, t.open_run_id AS named
            FROM mailbox_run AS r JOIN mailbox_thread AS t ON t.id = r.thread_id
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status IN ('running', 'waiting')
                AND t.open_run_id IS DISTINCT FROM r.id
        """,
    ),
    Look(
        "open_run_wrong",
        "A thread names an open run that is not open, or not its own: nothing on it starts.",
        "thread {thread_id} names {run_id} as its open run, which is {status}",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, t.open_run_id AS run_id,
                CASE WHEN r.id IS NULL THEN 'no run of it' ELSE r.status END AS status
            FROM mailbox_thread AS t LEFT JOIN mailbox_run AS r ON r.id = t.open_run_id AND r.thread_id = t.id
            WHERE t.id = ANY(%(threads)s::uuid[]) AND t.open_run_id IS NOT NULL
                AND (r.id IS NULL OR r.status NOT IN ('running', 'waiting'))
        """,
    ),
    Look(
        "latest_run_wrong",
        "A thread's latest run is not one of its own, or is not named although it has runs.",
        "thread {thread_id} names {run_id} as its latest run, and has {runs} runs, none of that id",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, t.latest_run_id AS run_id,
                (SELECT count(*) FROM mailbox_run AS r WHERE r.thread_id = t.id) AS runs
            FROM mailbox_thread AS t
            WHERE t.id = ANY(%(threads)s::uuid[]) AND CASE
                WHEN t.latest_run_id IS NULL THEN EXISTS (SELECT FROM mailbox_run AS r WHERE r.thread_id = t.id)
                ELSE NOT EXISTS (SELECT FROM mailbox_run AS r WHERE r.thread_id = t.id AND r.id = t.latest_run_id)
            END
        """,
    ),
    Look(
        "state_run_wrong",
        "The run whose state the next one starts with is not the thread's own, or never started.",
        "thread {thread_id} names {run_id} as the run whose state is inherited, which is {status}",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, t.state_run_id AS run_id,
                CASE WHEN r.id IS NULL THEN 'no run of it' ELSE 'not started' END AS status
            FROM mailbox_thread AS t LEFT JOIN mailbox_run AS r ON r.id = t.state_run_id AND r.thread_id = t.id
            WHERE t.id = ANY(%(threads)s::uuid[]) AND t.state_run_id IS NOT NULL
                AND (r.id IS NULL OR r.started_at IS NULL)
        """,
    ),
    Look(
        "run_without_dispatch",
        "A run is created or running, but nothing is queued or claimed by which it would go on.",
        "run {run_id} of thread {thread_id} is {status}, but no dispatch of it is queued or claimed",
        f"It would stay so for ever. {_DISPATCH_BY_HAND}",
        sql="""
            SELECT r.thread_id, r.id AS run_id, r.status FROM mailbox_run AS r
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status IN ('created', 'running') AND NOT EXISTS (
                SELECT FROM mailbox_dispatch AS d WHERE d.run_id = r.id AND d.status IN ('queued', 'claimed')
            )
        """,
    ),
    Look(
        "claimed_run_not_running",
        "A dispatch is claimed, but its run is not running.",
        "dispatch {dispatch_id} of thread {thread_id} is claimed, but its run {run_id} is {status}",
        REPORT,
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, d.run_id, r.status
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status = 'claimed'
                AND r.status NOT IN ('running', 'done')
        """,
    ),
    Look(
        "done_run_has_dispatch",
        "A run is done, but a dispatch of it is still queued or claimed.",
        "run {run_id} of thread {thread_id} is done, but its dispatch {dispatch_id} is {status}",
        REPORT,
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, d.run_id, d.status
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status IN ('queued', 'claimed') AND r.status = 'done'
        """,
    ),
    Look(
        "done_dispatch_run_goes_on",
        "A dispatch says that it ended its run, but the run is not done.",
        "dispatch {dispatch_id} of thread {thread_id} is {ended} and ended run {run_id}, which is {status}",
        REPORT,
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, d.run_id, d.status AS ended, r.status
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status NOT IN ('queued', 'claimed')
                AND (d.run_status = 'done' OR d.status = 'dead_letter') AND r.status <> 'done'
        """,
    ),
    Look(
        "timed_wait_without_dispatch",
        "A run waits until a time, but nothing is queued by which it would go on then.",
        "run {run_id} of thread {thread_id} goes on at {resume_at}, but no dispatch of it is queued",
        "Resume it (`resume.run`, POST /v1/runs/{id}/resume), or its wait expires.",
        sql="""
            SELECT r.thread_id, r.id AS run_id, r.resume_at FROM mailbox_run AS r
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status = 'waiting' AND r.resume_at IS NOT NULL
                AND NOT EXISTS (SELECT FROM mailbox_dispatch AS d WHERE d.run_id = r.id AND d.status = 'queued')
        """,
    ),
    Look(
        "answered_wait_without_dispatch",
        "A run waits for answers that have all come, but nothing is queued by which it would go on.",
        "run {run_id} of thread {thread_id} waits for answers, none of its questions is open, and no dispatch of it is "
        "queued",
        f"It goes on no more, and its wait expires. {_DISPATCH_BY_HAND}",
        sql="""
            SELECT r.thread_id, r.id AS run_id FROM mailbox_run AS r
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status = 'waiting'
                AND r.waiting->>'reason' = 'tool_permission'
                AND NOT EXISTS (SELECT FROM mailbox_dispatch AS d WHERE d.run_id = r.id AND d.status = 'queued')
                AND NOT EXISTS (
                    SELECT FROM mailbox_ticket AS k
                    WHERE k.run_id = r.id AND k.status = 'open' AND r.waiting->'ticket_ids' ? k.ticket_id
                )
        """,
    ),
    Look(
        "row_off_thread",
        "A dispatch or a message belongs to another thread than its run.",
        "{kind} {row_id} is of thread {thread_id}, but its run {run_id} is of thread {other}",
        REPORT,
        sql="""
            SELECT 'dispatch' AS kind, d.id AS row_id, d.thread_id, d.run_id, r.thread_id AS other
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND r.thread_id <> d.thread_id
            UNION ALL
            SELECT 'message', m.id, m.thread_id, m.run_id, r.thread_id
            FROM mailbox_message AS m JOIN mailbox_run AS r ON r.id = m.run_id
            WHERE m.thread_id = ANY(%(threads)s::uuid[]) AND r.thread_id <> m.thread_id
        """,
    ),
    Look(
        "scope_crossed",
        "A run or a message has another scope than its thread: one tenant sees what is another's.",
        "{kind} {row_id} has the scope {scope!r}, its thread {thread_id} the scope {other!r}",
        REPORT,
        sql="""
            SELECT 'run' AS kind, r.id AS row_id, r.thread_id, r.scope, t.scope AS other
            FROM mailbox_run AS r JOIN mailbox_thread AS t ON t.id = r.thread_id
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.scope <> t.scope
            UNION ALL
            SELECT 'message', m.id, m.thread_id, m.scope, t.scope
            FROM mailbox_message AS m JOIN mailbox_thread AS t ON t.id = m.thread_id
            WHERE m.thread_id = ANY(%(threads)s::uuid[]) AND m.scope <> t.scope
        """,
    ),
    Look(
        "dispatch_agent_wrong",
        "A dispatch names another agent than its run: a worker of that other one claims it.",
        "dispatch {dispatch_id} of thread {thread_id} is for agent {agent!r}, its run {run_id} for {other!r}",
        REPORT,
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, d.run_id, d.agent, r.agent AS other
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.agent <> r.agent
        """,
    ),
    Look(
        "deleted_thread_busy",
        "A thread is deleted, but a run of it is not done: no worker takes it any more.",
        "thread {thread_id} was deleted at {deleted_at}, but its run {run_id} is {status}",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, t.deleted_at, r.id AS run_id, r.status
            FROM mailbox_thread AS t JOIN mailbox_run AS r ON r.thread_id = t.id
            WHERE t.id = ANY(%(threads)s::uuid[]) AND t.deleted_at IS NOT NULL AND r.status <> 'done'
        """,
    ),
    Look(
        "replayed_but_unresolved",
        "A dead letter was replayed, but does not say so: it could be replayed twice.",
        "dead letter {dispatch_id} of thread {thread_id} is unresolved, but run {run_id} is its replay",
        "Discard it (`replay.discard`, POST /v1/dead-letters/{id}/discard).",
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, again.id AS run_id
            FROM mailbox_dispatch AS d JOIN mailbox_run AS again ON again.replay_of_id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status = 'dead_letter' AND d.resolution = ''
        """,
    ),
    Look(
        "ticket_open_after_end",
        "A question is open, but the run that asked it is done: an answer would wake nobody.",
        "ticket {ticket_id} is open, but its run {run_id} of thread {thread_id} is done",
        REPORT,
        sql="""
            SELECT r.thread_id, k.id AS ticket_id, r.id AS run_id
            FROM mailbox_ticket AS k JOIN mailbox_run AS r ON r.id = k.run_id
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND k.status = 'open' AND r.status = 'done'
        """,
    ),
)
