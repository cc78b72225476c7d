"""Permits that are not where the claims say: a limit that lets fewer start than it should, or more."""

from mailbox_app.doctor.findings import REPORT, Check, Finding
from mailbox_app.doctor.walk import Look, rows
from mailbox_app.operations import limits, permits

LOOKS = (
    Look(
        "permit_not_its_own",
        "A claimed dispatch names a permit that is not there, or another's: its limit counts one run too few.",
        "dispatch {dispatch_id} of thread {thread_id} names permit {permit_id}, which is held by {holder}",
        f"It is right again when the run has ended. {REPORT}",
        sql="""
            SELECT d.thread_id, d.id AS dispatch_id, named.id AS permit_id,
                coalesce(p.dispatch_id::text, 'nobody') AS holder
            FROM mailbox_dispatch AS d
            CROSS JOIN LATERAL jsonb_array_elements_text(d.permit_ids) AS named (id)
            LEFT JOIN mailbox_permit AS p ON p.id = named.id::uuid
            WHERE d.thread_id = ANY(%(threads)s::uuid[]) AND d.status = 'claimed'
                AND p.dispatch_id IS DISTINCT FROM d.id
        """,
    ),
)

PERMIT_LOST = Check(
    "permit_lost",
    "A permit is held by a dispatch that executes no more, or knows nothing of it: its limit lets one fewer start.",
    "permit {permit_id} of the limit of {kind} {name} is held by dispatch {dispatch_id}, which is {status}",
    "gc frees it within its interval, and logs `permit.recovered`. " + REPORT,
    fix="Frees the permit.",
)
LIMIT_UNFIT = Check(
    "limit_unfit",
    "A limit has another number of permits than it allows runs, and nobody is about to change that.",
    "the limit of {kind} {name} allows {most} runs, and has {permits} permits",
    "Set the limit again (`mailbox_limit`, PUT /v1/limits, the admin), or let `--fix` do it. " + REPORT,
    fix="Has the next due tick bring the permits to their number.",
)
CHECKS = (PERMIT_LOST, LIMIT_UNFIT)

_UNFIT = """
    SELECT bound.id, bound.kind, bound.name, coalesce(bound.most, 0) AS most, (
        SELECT count(*) FROM mailbox_permit WHERE limit_id = bound.id AND NOT is_retired
    ) AS permits
    FROM mailbox_limit AS bound
    WHERE NOT is_settling AND coalesce(bound.most, 0) <> (
        SELECT count(*) FROM mailbox_permit WHERE limit_id = bound.id AND NOT is_retired
    )
    ORDER BY kind, name
"""


def look(*, fix: bool = False) -> list[Finding]:
    """What is wrong with limits and their permits; repaired, if asked for."""
    lost = [PERMIT_LOST.found(**case) for case in rows(permits.LOST)]
    unfit = rows(_UNFIT)
    found = lost + [LIMIT_UNFIT.found(**case) for case in unfit]
    if fix:
        permits.recover()
        limits.refit([case["id"] for case in unfit])
        for one in found:
            one.is_fixed = True
    return found
