"""What somebody should have done by now: leases, scheduled work, waits and deliveries whose time has long come."""

from mailbox_app.doctor.walk import Look

_PASS = "The {} does it: start the maintenance worker and beat, or read its log for why it fails."

LOOKS = (
    Look(
        "lease_overdue",
        "A lease ran out, and no sweep has taken the dispatch back.",
        "the lease of {worker} on dispatch {dispatch_id} of run {run_id}, thread {thread_id}, ran out at {lease_until}",
        _PASS.format("sweep"),
        sql="""
            SELECT thread_id, id AS dispatch_id, run_id, claimed_by AS worker, lease_until FROM mailbox_dispatch
            WHERE thread_id = ANY(%(threads)s::uuid[]) AND status = 'claimed'
                AND lease_until < statement_timestamp() - %(grace)s * '1 s'::interval
        """,
    ),
    Look(
        "wake_overdue",
        "Scheduled work has come due, and no tick has promoted it.",
        "thread {thread_id} was to wake at {wakes_at}",
        _PASS.format("due tick"),
        sql="""
            SELECT id AS thread_id, wakes_at FROM mailbox_thread
            WHERE id = ANY(%(threads)s::uuid[]) AND wakes_at < statement_timestamp() - %(grace)s * '1 s'::interval
        """,
    ),
    Look(
        "wait_overdue",
        "A run has waited past the end of its wait.",
        "run {run_id} of thread {thread_id} was to stop waiting at {wait_until}",
        _PASS.format("due tick"),
        sql="""
            SELECT r.thread_id, r.id AS run_id, r.wait_until FROM mailbox_run AS r
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status = 'waiting'
                AND r.wait_until < statement_timestamp() - %(grace)s * '1 s'::interval
                AND NOT EXISTS (
                    SELECT FROM mailbox_dispatch AS d WHERE d.run_id = r.id AND d.status IN ('queued', 'claimed')
                )
        """,
    ),
    Look(
        "question_overdue",
        "A question is open past the time in which it could be answered.",
        "ticket {ticket_id} of run {run_id} of thread {thread_id} could be answered until {expires_at}",
        _PASS.format("due tick"),
        sql="""
            SELECT r.thread_id, r.id AS run_id, k.ticket_id, k.expires_at
            FROM mailbox_ticket AS k JOIN mailbox_run AS r ON r.id = k.run_id
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status <> 'done' AND k.status = 'open'
                AND k.expires_at < statement_timestamp() - %(grace)s * '1 s'::interval
        """,
    ),
    Look(
        "delivery_overdue",
        "What a run sent to another thread is due, first in its line, and not delivered.",
        "outbox row {outbox_id} ({kind}) from thread {thread_id} to thread {target_id} was due at {available_at}, "
        "after {attempts} attempts; last error: {error}",
        _PASS.format("sweep"),
        sql="""
            SELECT o.source_thread_id AS thread_id, o.id AS outbox_id, o.kind, o.target_thread_id AS target_id,
                o.available_at, o.attempt_count AS attempts, coalesce(nullif(o.last_error, ''), 'none') AS error
            FROM mailbox_outbox AS o
            WHERE o.source_thread_id = ANY(%(threads)s::uuid[]) AND o.status = 'pending'
                AND o.available_at < statement_timestamp() - %(grace)s * '1 s'::interval
                AND NOT EXISTS (
                    SELECT FROM mailbox_outbox AS earlier
                    WHERE earlier.status = 'pending' AND earlier.kind = o.kind
                        AND earlier.source_thread_id = o.source_thread_id
                        AND earlier.target_thread_id = o.target_thread_id AND earlier."order" < o."order"
                )
        """,
    ),
)
