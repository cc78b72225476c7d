"""`Idempotency-Key`: a creating POST that is repeated is answered, not repeated.

The key's row is written in the transaction of the effect, so there is never one without the other. It is written first:
a repeat that arrives meanwhile waits for that transaction, and then finds the answer or, if the first was refused,
nothing, and goes on itself.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import psycopg.errors
from django.db import OperationalError, connection, transaction
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1.base import Renderer
from mailbox_app.api.v1.errors import Malformed
from mailbox_app.conf import conf
from mailbox_app.errors import IdempotencyKeyReused, RequestInFlight
from mailbox_app.models import IdempotencyKey

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,200}")

# One statement: insert the key, or take over one that has expired. The ORM has no conflict action with a condition, and
# two statements would leave a gap in which two requests both take over. It waits for another's uncommitted row.
_TAKE = f"""
    INSERT INTO {IdempotencyKey._meta.db_table} AS held (scope, key, request_hash, status_code, headers, response)
    VALUES (%(scope)s, %(key)s, %(hash)s, 0, '{{}}', NULL)
    ON CONFLICT (scope, key) DO UPDATE
        SET request_hash = excluded.request_hash, status_code = 0, headers = '{{}}', response = NULL,
            created_at = statement_timestamp()
        WHERE held.created_at < statement_timestamp() - make_interval(secs => %(kept)s)
    RETURNING id
"""
_WAIT = "SELECT current_setting('lock_timeout'), set_config('lock_timeout', %s, true)"
_WAIT_NO_MORE = "SELECT set_config('lock_timeout', %s, true)"


def once(request: Request, *, scope: str, body: Any, act: Callable[[], Response]) -> HttpResponseBase:
    """Answer with `act()`, or with what it answered the first time this key was sent. Without a key: just `act()`.

    A refusal is an exception from `act`: it takes the key with it.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return act()
    if not _VISIBLE_ASCII.fullmatch(key):
        raise Malformed(
            "malformed_idempotency_key", f"{HEADER} must be 1 to 200 visible ASCII characters", field=HEADER
        )
    digest = _hash(request, body)
    with transaction.atomic():
        taken = _take(scope, key, digest)
        if taken is None:
            return _repeat(IdempotencyKey.objects.get(scope=scope, key=key), digest)
        response = act()
        IdempotencyKey.objects.filter(pk=taken).update(
            status_code=response.status_code,
            headers={"Location": response["Location"]} if "Location" in response else {},
            # The text, not the object: the repeat is to have the same bytes, and jsonb reorders names.
            response=Renderer().render(response.data).decode(),
        )
        return response


def _take(scope: str, key: str, digest: str) -> int | None:
    """Hold the key until the transaction ends and return its row's id; None if it has an answer already."""
    with connection.cursor() as cursor:
        cursor.execute(_WAIT, [f"{max(int(conf.idempotency_wait_seconds * 1000), 1)}ms"])
        before = cursor.fetchone()[0]
        try:
            kept = conf.idempotency_retention_seconds
            cursor.execute(_TAKE, {"scope": scope, "key": key, "hash": digest, "kept": kept})
        except OperationalError as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise RequestInFlight(f"the first request with the {HEADER} {key!r} has not finished") from error
            raise
        row = cursor.fetchone()
        cursor.execute(_WAIT_NO_MORE, [before])
    return None if row is None else int(row[0])


def _repeat(found: IdempotencyKey, digest: str) -> HttpResponse:
    if found.request_hash != digest:
        raise IdempotencyKeyReused(f"the {HEADER} {found.key!r} was used for another request", field=HEADER)
    return HttpResponse(
        found.response,
        status=found.status_code,
        content_type=Renderer.media_type,
        headers={**found.headers, REPLAYED: "true"},
    )


def _hash(request: Request, body: Any) -> str:
    """One value for equal requests: the order of names and the white space of the body do not count."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{request.method}\n{request.path}\n{canonical}".encode()).hexdigest()
