"""Names that are unique in a scope, settled before any fence is taken: a thread must not wait for another one."""

import uuid
from collections.abc import Sequence

from django.db import connection

from mailbox_app.models import Thread
from mailbox_app.operations.submission import Submission

# In the order of the hashes, so that two submissions with several keys take them alike. The ORM has no advisory locks.
_RESERVE = """
    SELECT pg_advisory_xact_lock(hash)
    FROM (SELECT DISTINCT hashtextextended(name, 0) AS hash FROM unnest(%(names)s::text[]) AS name ORDER BY 1) AS hashes
"""


def reserve(submissions: Sequence[Submission]) -> None:
    """Wait here, before the fence, for whoever is writing the same unique keys: a thread must not wait for another one.

    The keys' own constraints decide; this lock, held until the transaction ends, only moves the waiting.
    """
    names = [f"mailbox:{one.scope}:{name}" for one in submissions for name in one.unique_names]
    if names:
        with connection.cursor() as cursor:
            cursor.execute(_RESERVE, {"names": names})


def of_threads(scope: str, keys: Sequence[str]) -> dict[str, uuid.UUID]:
    """The threads of these keys, made if they are missing; the rows are not locked yet."""
    # ON CONFLICT DO NOTHING waits for whoever is inserting the same key; the next statement sees the winner's row.
    known = Thread.objects.in_scope(scope).not_deleted().filter(key__in=keys)
    found = dict(known.values_list("key", "pk"))
    if len(found) < len(keys):
        missing = [Thread(scope=scope, key=key) for key in keys if key not in found]
        Thread.objects.bulk_create(missing, ignore_conflicts=True)
        found = dict(known.all().values_list("key", "pk"))
    return {str(key): pk for key, pk in found.items()}
