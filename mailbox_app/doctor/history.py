"""The log and its numbers: no gap in messages and events, counters ahead of what they count, input that is there.

Each check is one statement over a batch.
"""

from mailbox_app.doctor.findings import REPORT
from mailbox_app.doctor.walk import Look

_RESTORE = "Rows were lost: compare with a backup from before. Nothing here can know what they said."

LOOKS = (
    Look(
        "seq_gap",
        "The committed messages of a thread are not numbered 1, 2, 3 … up to its last number.",
        "thread {thread_id} has {count} committed messages numbered {first} to {last}, and its last number is "
        "{last_seq}",
        _RESTORE,
        sql="""
            SELECT t.id AS thread_id, t.last_seq, m.count, m.first, m.last
            FROM mailbox_thread AS t CROSS JOIN LATERAL (
                SELECT count(DISTINCT seq) AS count, count(*) AS rows, min(seq) AS first, max(seq) AS last
                FROM mailbox_message WHERE thread_id = t.id AND seq IS NOT NULL
            ) AS m
            WHERE t.id = ANY(%(threads)s::uuid[])
                AND (m.count, m.rows, coalesce(m.first, 1), coalesce(m.last, 0))
                    <> (t.last_seq, t.last_seq, 1, t.last_seq)
        """,
    ),
    Look(
        "cursor_gap",
        "The events of a thread are not numbered without a gap from the last pruned one to its last cursor.",
        "thread {thread_id} has {count} events with the cursors {first} to {last}; it has pruned up to {pruned_cursor} "
        "and its last is {last_cursor}",
        _RESTORE,
        sql="""
            SELECT t.id AS thread_id, t.last_cursor, t.pruned_cursor, e.count, e.first, e.last
            FROM mailbox_thread AS t CROSS JOIN LATERAL (
                SELECT count(DISTINCT cursor) AS count, count(*) AS rows, min(cursor) AS first, max(cursor) AS last
                FROM mailbox_event WHERE thread_id = t.id
            ) AS e
            WHERE t.id = ANY(%(threads)s::uuid[])
                AND (e.count, e.rows, coalesce(e.first, t.pruned_cursor + 1), coalesce(e.last, t.pruned_cursor))
                    <> (t.last_cursor - t.pruned_cursor, t.last_cursor - t.pruned_cursor, t.pruned_cursor + 1,
                        t.last_cursor)
        """,
    ),
    Look(
        "counter_behind",
        "A thread's counter is behind what it has numbered: a number would be given twice.",
        "thread {thread_id} has {counter} {value}, but {most} is in use",
        REPORT,
        sql="""
            SELECT t.id AS thread_id, c.counter, c.value, c.most
            FROM mailbox_thread AS t CROSS JOIN LATERAL (
                SELECT 'next_order' AS counter, t.next_order AS value, t.next_order - 1 AS bound, greatest(
                    (SELECT max("order") FROM mailbox_run WHERE thread_id = t.id),
                    (SELECT max(position) FROM mailbox_message WHERE thread_id = t.id),
                    (SELECT max("order") FROM mailbox_outbox WHERE source_thread_id = t.id)
                ) AS most
                UNION ALL
                SELECT 'claim_count', t.claim_count, t.claim_count,
                    (SELECT max(fence) FROM mailbox_dispatch WHERE thread_id = t.id)
                UNION ALL
                SELECT 'epoch', t.epoch, t.epoch, (SELECT max(epoch) FROM mailbox_dispatch WHERE thread_id = t.id)
            ) AS c
            WHERE t.id = ANY(%(threads)s::uuid[]) AND c.most > c.bound
        """,
    ),
    Look(
        "input_lost",
        "A run names input that is not in its thread's log: it could not be replayed.",
        "run {run_id} of thread {thread_id} names {named} messages as its input, of which {there} are committed",
        _RESTORE,
        sql="""
            SELECT r.thread_id, r.id AS run_id, i.named, i.there
            FROM mailbox_run AS r CROSS JOIN LATERAL (
                SELECT count(*) AS named, count(m.id) AS there
                FROM jsonb_array_elements_text(r.input -> 'message_ids') AS named (id)
                LEFT JOIN mailbox_message AS m
                    ON m.id = named.id::uuid AND m.thread_id = r.thread_id AND m.state = 'committed'
            ) AS i
            WHERE r.thread_id = ANY(%(threads)s::uuid[]) AND jsonb_typeof(r.input -> 'message_ids') = 'array'
                AND i.there < i.named
        """,
    ),
    Look(
        "dead_letter_lost_error",
        "A dead letter, or its run, has lost the error of which it died.",
        "dead letter {dispatch_id} of run {run_id} on thread {thread_id} does not say why it failed",
        _RESTORE,
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, d.run_id
            FROM mailbox_dispatch AS d JOIN mailbox_run AS r ON r.id = d.run_id
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status = 'dead_letter' AND d.resolution = ''
                AND (d.error IS NULL OR (r.status = 'done' AND r.error IS NULL))
        """,
    ),
    Look(
        "read_before_start",
        "A message is committed as the input of a run that has not started.",
        "message {message_id} of thread {thread_id} was read by run {run_id}, which has not started",
        REPORT,
        sql="""
            SELECT m.thread_id, m.id AS message_id, r.id AS run_id
            FROM mailbox_message AS m JOIN mailbox_run AS r ON r.id = m.run_id
            WHERE m.thread_id = ANY(%(threads)s::uuid[]) AND m.state = 'committed' AND r.status = 'created'
        """,
    ),
    Look(
        "message_without_reader",
        "A message is pending, nobody holds it, and no run will read it.",
        "message {message_id} of thread {thread_id} is pending, {owner}",
        "It was accepted and will not be answered: submit it again.",
        sql="""
            SELECT m.thread_id, m.id AS message_id, m.run_id, CASE
                WHEN m.run_id IS NULL THEN 'for whoever comes, and no run of the thread is left'
                ELSE 'and run ' || m.run_id || ', which was to read it, is done'
            END AS owner
            FROM mailbox_message AS m
            WHERE m.thread_id = ANY(%(threads)s::uuid[]) AND m.state = 'pending' AND NOT m.held
                AND m.boundary <> 'resume_input' AND (m.target_run_id IS NULL OR m.fallback <> '')
                AND NOT EXISTS (
                    SELECT FROM mailbox_run AS r
                    WHERE r.thread_id = m.thread_id AND r.status <> 'done' AND (m.run_id IS NULL OR r.id = m.run_id)
                )
        """,
    ),
    Look(
        "journal_ahead",
        "A run has records of a turn it has not reached, or of one it has not begun.",
        "run {run_id} of thread {thread_id} is {status} in turn {turn}, but its journal has {entries} records of turn "
        "{journalled}",
        REPORT,
        sql="""
            SELECT r.thread_id, r.id AS run_id, r.status, r.turn, j.turn AS journalled, count(*) AS entries
            FROM mailbox_journalentry AS j JOIN mailbox_run AS r ON r.id = j.run_id
            WHERE r.thread_id = ANY(%(threads)s::uuid[])
                AND (j.turn > r.turn OR (r.started_at IS NULL AND r.replay_of_id IS NULL))
            GROUP BY r.thread_id, r.id, r.status, r.turn, j.turn
        """,
    ),
    Look(
        "end_not_told",
        "A run is done and its event is missing, or its end was told although it is not done, or twice.",
        "run {run_id} of thread {thread_id} is {status}, and {told} events say that it ended",
        "Clients that follow its stream wait, or have stopped. " + REPORT,
        sql="""
            SELECT r.thread_id, r.id AS run_id, r.status, e.told
            FROM mailbox_run AS r JOIN mailbox_thread AS t ON t.id = r.thread_id CROSS JOIN LATERAL (
                SELECT count(*) AS told FROM mailbox_event
                WHERE run_id = r.id AND kind IN ('RunFinished', 'RunErrored', 'RunCancelled', 'RunTerminated')
            ) AS e
            WHERE r.thread_id = ANY(%(threads)s::uuid[])
                AND (e.told > 1 OR (r.status <> 'done' AND e.told > 0)
                    OR (r.status = 'done' AND e.told = 0 AND t.pruned_cursor = 0))
        """,
    ),
)
