"""What every claim passes, and an operator may close: from then to the commit no claim is under way that has not seen
what the operator changes."""

from django.db import OperationalError, connection

from mailbox_app.errors import Retryable

# Held shared by who claims, from before its second look at what may start; exclusively by who changes that. Any number
# that no other code of the database uses.
GATE = 6_873_220_417_155

# How long to wait for claims that are under way; they take milliseconds, and new ones wait behind whoever waits here.
_PATIENCE = "2s"
# SQLSTATE of lock_not_available.
_TIMED_OUT = "55P03"


def close() -> None:
    """Let no claim be under way from here to the commit: each sees what is written now, or is over before it.

    Raises Retryable, and nothing is changed, when one does not end.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout'), set_config('lock_timeout', %s, true)", [_PATIENCE])
        before = cursor.fetchone()[0]
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [GATE])
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) != _TIMED_OUT:
                raise
            raise Retryable(f"a claim has been under way for {_PATIENCE}; nothing was changed") from error
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])
