"""What Mailbox stands on: the project's settings, PostgreSQL and its connections, the broker, Redis."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core import checks as django_checks
from django.db import DEFAULT_DB_ALIAS, connection

from mailbox_app import channel, checks, hints
from mailbox_app.conf import conf
from mailbox_app.doctor.findings import Check, Finding
from mailbox_app.doctor.walk import rows, snapshot
from mailbox_app.models import AgentRegistration

# A pool child may hold four: agent, lease renewal, standby, what it has emitted. A process of threads one for each slot
# and five more: for lease renewal, standby, what is emitted, what claims and settles for all slots, and a time limit.
_OF_CHILD = 4
_OF_THREADS = 5
# Of what the server has to give: past this share the next deploy, or a psql, may be refused.
_NEARLY_ALL = 0.9

TOO_MANY_CONNECTIONS = Check(
    "too_many_connections",
    "The live workers and the web processes may ask for more connections than PostgreSQL gives.",
    "{formula}: more than the {available} of {most} that PostgreSQL gives",
    "Fewer slots, a smaller pool, a larger max_connections, or PgBouncer in between (docs/deployment.md; behind one, "
    "this is the pooler's to bound).",
)
CONNECTIONS_NEARLY_OUT = Check(
    "connections_nearly_out",
    "PostgreSQL has hardly a connection left.",
    "{used} connections are open, of the {available} of {most} that PostgreSQL gives",
    "`SELECT application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2` says who holds them.",
)
LONG_TRANSACTION = Check(
    "long_transaction",
    "A transaction has been open for minutes: it stops vacuum, and claims slow down.",
    "process {pid} of PostgreSQL ({application}, {state}) has had a transaction open for {minutes:.0f} minutes",
    "End it (`SELECT pg_terminate_backend(pid)`); idle_in_transaction_session_timeout ends the next one.",
)
BROKER_AWAY = Check(
    "broker_away",
    "The broker does not answer: runs start with the next sweep.",
    "the broker ({kind}) does not answer: {error}",
    "Mend it; nothing was lost, whatever it lost.",
)
REDIS_AWAY = Check(
    "redis_away",
    "Redis does not answer: no live text, and a signal for each thread that becomes due.",
    "the Redis of MAILBOX['redis_url'] does not answer within {seconds:g} s",
    "Mend it; nothing was lost.",
)
REDIS_EVICTS = Check(
    "redis_evicts",
    "Redis may throw keys away, among them queues of signals, when its memory is full.",
    "Redis has maxmemory {maxmemory} with the policy {policy}",
    "Set maxmemory-policy to noeviction, or give Celery a Redis of its own. A lost signal costs a sweep of waiting.",
)
CHECKS = (TOO_MANY_CONNECTIONS, CONNECTIONS_NEARLY_OUT, LONG_TRANSACTION, BROKER_AWAY, REDIS_AWAY, REDIS_EVICTS)

# A worker's transactions last milliseconds; a report or a dump may well take a while.
_LONG_SECONDS = 600

_SERVER = """
    SELECT current_setting('server_version') AS version,
        current_setting('transaction_isolation') AS isolation,
        current_setting('max_connections')::int AS most,
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', TRUE)::int, 0) AS available,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used
"""
_LONG = """
    SELECT pid, coalesce(nullif(application_name, ''), 'no name') AS application, coalesce(state, 'unknown') AS state,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 / 60 AS minutes
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND xact_start < clock_timestamp() - %(seconds)s * '1 s'::interval
    ORDER BY xact_start LIMIT 20
"""


@dataclass
class Look:
    """What was found, and what is worth knowing."""

    findings: list[Finding]
    facts: list[str]


def look(*, web_processes: int = 1) -> Look:
    """Ask the project's settings, the server and the broker."""
    seen = Look([*_system_checks()], [])
    with snapshot():
        _connections(seen, web_processes)
        seen.findings += [LONG_TRANSACTION.found(**row) for row in rows(_LONG, {"seconds": _LONG_SECONDS})]
    _clock(seen)
    _broker(seen)
    _redis(seen)
    return seen


def _system_checks() -> Iterator[Finding]:
    """The findings of `manage.py check --database default` that are Mailbox's and not silenced, under their ids."""
    found = [*checks.check_settings(), *checks.check_project(), *checks.check_database_settings()]
    found += [*checks.check_database(databases=[DEFAULT_DB_ALIAS]), *checks.check_celery()]
    for message in found:
        if message.level >= django_checks.WARNING and not message.is_silenced():
            yield Finding(code=str(message.id), sentence=message.msg, remedy=str(message.hint))


def _connections(seen: Look, web_processes: int) -> None:
    (server,) = rows(_SERVER)
    most, available, used = server["most"], server["available"], server["used"]
    workers = AgentRegistration.objects.live().order_by("worker").values_list("worker", "slots").distinct()
    slots = [count for _, count in workers]
    pool = _web_pool()
    web = web_processes * pool
    least = sum(count + _OF_THREADS for count in slots) + web
    largest = sum(max(count * _OF_CHILD, count + _OF_THREADS) for count in slots) + web
    formula = (
        f"{len(slots)} live workers with {sum(slots)} slots may hold {least - web} connections with threads, "
        f"{largest - web} with processes; {web_processes} web processes {web}"
    )
    if least > available:
        seen.findings.append(TOO_MANY_CONNECTIONS.found(formula=formula, available=available, most=most))
    if used >= math.floor(available * _NEARLY_ALL):
        seen.findings.append(CONNECTIONS_NEARLY_OUT.found(used=used, available=available, most=most))
    seen.facts.append(f"PostgreSQL {server['version']}")
    seen.facts.append(f"connections: {formula}; {used} are open of the {available} that PostgreSQL gives")


def _web_pool() -> int:
    """Connections one web process may hold: its pool's, or one where it has none (a request at a time)."""
    pool: Any = settings.DATABASES[DEFAULT_DB_ALIAS].get("OPTIONS", {}).get("pool")
    if not pool:
        return 1
    given = pool if isinstance(pool, dict) else {}
    # psycopg_pool's own: min_size 4, max_size as large.
    return int(given.get("max_size") or given.get("min_size") or 4)


def _clock(seen: Look) -> None:
    before = time.time()
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        (there,) = cursor.fetchone()
    here = (before + time.time()) / 2
    seen.facts.append(f"this host's clock is {here - there:+.3f} s from the database's, which alone counts")


def _broker(seen: Look) -> None:
    kind, error = hints.ask_broker()
    if error:
        seen.findings.append(BROKER_AWAY.found(kind=kind, error=error))
    elif kind.startswith(("redis", "rediss", "sentinel", "unix")):
        seen.facts.append(f"broker: {kind} answers; a busy worker takes no signal")
    else:
        seen.facts.append(
            f"broker: {kind} answers; prefetch cannot be off there: a busy worker may hold back as many signals as it "
            f"has slots, and due work then waits up to a sweep ({conf.sweep_seconds:g} s)"
        )


def _redis(seen: Look) -> None:
    if not conf.redis_url:
        return  # system check W001
    server = channel.server_facts()
    if not server:
        seen.findings.append(REDIS_AWAY.found(seconds=conf.broker_timeout_seconds))
        return
    policy, maxmemory = str(server.get("maxmemory_policy", "unknown")), int(server.get("maxmemory", 0))
    if maxmemory and policy not in ("noeviction", "unknown"):
        seen.findings.append(REDIS_EVICTS.found(maxmemory=server.get("maxmemory_human", maxmemory), policy=policy))
    has_aof, has_rdb = bool(server.get("aof_enabled")), bool(server.get("rdb_last_save_time"))
    kept = "append-only file" if has_aof else "snapshots, if any" if has_rdb else "no persistence"
    name = (
        "Valkey " + str(server["valkey_version"])
        if "valkey_version" in server
        else "Redis " + str(server.get("redis_version", ""))
    )
    seen.facts.append(f"{name}: eviction {policy}, {kept}; it holds nothing that must be kept")
