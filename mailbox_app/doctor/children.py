"""Child runs whose end their parent has not heard of, or which their parent's has not reached."""

from mailbox_app.doctor.findings import REPORT
from mailbox_app.doctor.walk import Look

LOOKS = (
    Look(
        "ended_children_without_dispatch",
        "A run waits for children that have all ended, but nothing is queued, or on its way, by which it would go on.",
        "run {run_id} of thread {thread_id} waits for {children} runs, all of which have ended, and no dispatch of it "
        "is queued",
        f"It goes on no more, and its wait expires. Cancel it, and submit again what was asked. {REPORT}",
        sql="""
            SELECT r.thread_id, r.id AS run_id, jsonb_array_length(r.waiting->'child_run_ids') AS children
            FROM mailbox_run AS r
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND r.status = 'waiting'
                AND r.waiting->>'reason' = 'background_tasks'
                AND NOT EXISTS (SELECT FROM mailbox_dispatch AS d WHERE d.run_id = r.id AND d.status = 'queued')
                AND NOT EXISTS (
                    SELECT FROM jsonb_array_elements_text(r.waiting->'child_run_ids') AS awaited (id)
                    JOIN mailbox_run AS child ON child.id = awaited.id::uuid
                    WHERE child.status <> 'done'
                )
                AND NOT EXISTS (
                    SELECT FROM mailbox_outbox AS o
                    WHERE o.target_thread_id = r.thread_id AND o.kind = 'wake' AND o.status = 'pending'
                )
        """,
    ),
    Look(
        "child_outlives_parent",
        "A run was cancelled, but a child of it that was to end with it goes on, and nobody is about to stop it.",
        "run {run_id} of thread {thread_id} is {status}, but its parent {parent_id} was cancelled",
        f"Cancel it (`cancel.run`, POST /v1/runs/{{id}}/cancel, the admin). {REPORT}",
        sql="""
            SELECT child.thread_id, child.id AS run_id, child.status, parent.id AS parent_id
            FROM mailbox_run AS child JOIN mailbox_run AS parent ON parent.id = child.parent_run_id
            WHERE child.thread_id = ANY(%(threads)s::uuid[]) AND child.status <> 'done'
                AND parent.status = 'done' AND parent.termination->>'type' = 'cancelled'
                AND NOT child.activation ? 'detached'
                AND NOT EXISTS (
                    SELECT FROM mailbox_outbox AS o
                    WHERE o.target_thread_id = child.thread_id AND o.kind = 'cancel' AND o.status = 'pending'
                )
                AND NOT EXISTS (
                    SELECT FROM mailbox_dispatch AS d
                    WHERE d.run_id = child.id AND d.status = 'claimed' AND d.cancel_requested_at IS NOT NULL
                )
        """,
    ),
)
