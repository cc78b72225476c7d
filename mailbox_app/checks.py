"""Django system checks: what must be true of a project before a promise can be kept, each with a remedy.

`CHECKS` is the one list of them; docs/checks.md is printed from it. Those that ask the database run with
`manage.py check --database default` and before `migrate`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router, transaction
from django.urls import NoReverseMatch, reverse
from psycopg import IsolationLevel

from mailbox_app import catalogue, hints
from mailbox_app.conf import conf, problems
from mailbox_app.models import Thread

_OLDEST_POSTGRESQL = 140_000
_PICKLE = {"pickle", "application/x-python-serialize"}
_MAINTENANCE = {"mailbox.due_tick", "mailbox.sweep", "mailbox.gc"}
_DOCS_APPS = ("rest_framework", "drf_spectacular", "drf_spectacular_sidecar")
_APPLY = (
    "Call mailbox_app.celeryconf.configure(app) in the project's celery.py, "
    "and import that app in the project's __init__.py; change a setting of the project's own that says otherwise."
)


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong: `finding` says what, for whoever reads the list; `hint` what to do about it."""

    id: str
    finding: str
    hint: str

    @property
    def level(self) -> int:
        """An error stops `migrate`, `runserver` and the like; a warning is shown."""
        return checks.WARNING if self.id.startswith("mailbox.W") else checks.ERROR

    def found(self, message: str) -> checks.CheckMessage:
        """What Django shows."""
        return checks.CheckMessage(self.level, message, hint=self.hint, id=self.id)


WRONG_SETTING = Check(
    "mailbox.E001",
    "A key of MAILBOX is unknown, of the wrong type or out of its range.",
    "docs/settings.md lists every key with its default, unit and range.",
)
NOT_POSTGRESQL = Check(
    "mailbox.E002",
    "The database that holds Mailbox's tables is not PostgreSQL.",
    "Use the engine django.db.backends.postgresql for the database 'default'.",
)
OLD_POSTGRESQL = Check(
    "mailbox.E003",
    "The PostgreSQL server is older than version 14.",
    "Upgrade the server.",
)
ISOLATION = Check(
    "mailbox.E004",
    "Transactions run at another isolation level than READ COMMITTED.",
    "Remove isolation_level from the database's OPTIONS, or set it to READ COMMITTED there: every verb locks a row and "
    "then looks, which a snapshot older than the lock would defeat.",
)
ACKS_LATE = Check(
    "mailbox.E005",
    "Celery acknowledges tasks late (task_acks_late).",
    f"A signal carries nothing that redelivery could save, and would be repeated. {_APPLY} "
    "Tasks of your own can set acks_late=True each.",
)
PREFETCH = Check(
    "mailbox.E006",
    "Celery workers reserve signals they cannot act on yet (prefetch).",
    f"A signal reserved by a busy worker waits behind its long run while another is idle. {_APPLY} "
    "On a broker other than Redis, set worker_prefetch_multiplier to 1.",
)
PICKLE = Check(
    "mailbox.E007",
    "Celery accepts or sends pickle: whoever can write to the broker can run code in a worker.",
    f"Accept JSON only. {_APPLY}",
)
ROUTED_AWAY = Check(
    "mailbox.E008",
    "A database router sends Mailbox's tables to another database than `default`, for writing or for reading.",
    "Route the app's models to 'default' in db_for_read and db_for_write: what is looked for under a lock must be read "
    "where the lock is held, and transactions, locks and hints are those of 'default'.",
)
NAIVE_TIMES = Check(
    "mailbox.E009",
    "USE_TZ is off: Django reads naive local times, and the app's are the database's, with their zone.",
    "Set USE_TZ = True.",
)
TIME_LIMIT = Check(
    "mailbox.W003",
    "Celery has a time limit for every task (task_time_limit or task_soft_time_limit).",
    "It ends workers in the middle of runs, whatever timeout_seconds their agents have. Set limits on your own tasks, "
    "or one above the longest run.",
)
NO_REDIS = Check(
    "mailbox.W001",
    "MAILBOX['redis_url'] is empty: signals are not coalesced and live deltas are not sent.",
    "Name a Redis, or silence this check: nothing is lost without one.",
)
NO_MAINTENANCE = Check(
    "mailbox.W002",
    "Celery's beat schedule lacks the due tick, the sweep or gc: lost leases and scheduled work would wait for ever.",
    f"{_APPLY} Where another scheduler runs them, silence this check.",
)
NO_AGENTS = Check(
    "mailbox.W004",
    "No installed app has an agent: a worker of this project would take no run.",
    "Register one with @agent in agents.py of an app that is in INSTALLED_APPS. Where another project's workers run "
    "the agents, silence this check.",
)
LACKING_APPS = Check(
    "mailbox.W005",
    "The API's routes are included, but an app that its documentation page needs is not installed.",
    "Add rest_framework, drf_spectacular and drf_spectacular_sidecar to INSTALLED_APPS.",
)
NO_BROKER = Check(
    "mailbox.W006",
    "Celery has no broker between processes: no signal would reach a worker, and each run would wait for a sweep.",
    f"Set CELERY_BROKER_URL. {_APPLY}",
)

CHECKS: tuple[Check, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Check))


def reference() -> str:
    """The checks as a Markdown table."""
    lines = ["| id | level | what was found | what to do |", "|---|---|---|---|"]
    for check in CHECKS:
        level = "warning" if check.level == checks.WARNING else "error"
        lines.append(f"| `{check.id}` | {level} | {check.finding} | {check.hint} |")
    return "\n".join(lines) + "\n"


@checks.register("mailbox")
def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """E001, W001."""
    given = getattr(settings, "MAILBOX", None)
    found = [WRONG_SETTING.found(problem) for problem in problems({} if given is None else given)]
    if not found and not conf.redis_url:
        found.append(NO_REDIS.found(NO_REDIS.finding))
    return found


@checks.register("mailbox")
def check_project(**_: Any) -> list[checks.CheckMessage]:
    """E009, W004, W005."""
    found = []
    if not settings.USE_TZ:
        found.append(NAIVE_TIMES.found("USE_TZ is off."))
    if not catalogue.names():
        found.append(NO_AGENTS.found("No installed app's agents.py registers an agent."))
    missing = [name for name in _DOCS_APPS if not apps.is_installed(name)]
    if missing and _serves_the_api():
        found.append(LACKING_APPS.found(f"The API's routes are included, but not installed: {', '.join(missing)}."))
    return found


@checks.register("mailbox")
def check_database_settings(**_: Any) -> list[checks.CheckMessage]:
    """E002, E008, and E004 as far as settings tell."""
    alias = _alias()
    aliases = {"write": alias, "read": str(router.db_for_read(Thread))}
    away = sorted(f"{use} on {name!r}" for use, name in aliases.items() if name != DEFAULT_DB_ALIAS)
    if away:
        return [ROUTED_AWAY.found(f"A database router puts Mailbox's tables elsewhere: {', '.join(away)}.")]
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return [NOT_POSTGRESQL.found(f"Database {alias!r} is {connection.vendor}, not PostgreSQL.")]
    level = connection.settings_dict.get("OPTIONS", {}).get("isolation_level")
    if level is not None and _name_of(level) != "read committed":
        return [ISOLATION.found(f"Database {alias!r} has the isolation level {_name_of(level)!r} in its OPTIONS.")]
    return []


@checks.register("mailbox", checks.Tags.database)
def check_database(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """E003, and E004 as the server has it: its default, the role's or the database's count too."""
    alias = _alias()
    if alias not in (databases or ()) or connections[alias].vendor != "postgresql":
        return []
    try:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('server_version_num')::int, current_setting('transaction_isolation')"
            )
            version, level = cursor.fetchone()
    except DatabaseError:
        return []  # whoever asked for the database to be checked is told by the command itself
    found = []
    if version < _OLDEST_POSTGRESQL:
        found.append(OLD_POSTGRESQL.found(f"Database {alias!r} runs on PostgreSQL {version // 10_000}; 14 is needed."))
    if level != "read committed" and not check_database_settings():
        found.append(ISOLATION.found(f"Database {alias!r} runs transactions at {level!r} by the server's default."))
    return found


@checks.register("mailbox")
def check_celery(**_: Any) -> list[checks.CheckMessage]:
    """E005 to E007, W002, W003, W006."""
    if any(message.level >= checks.ERROR for message in check_settings()):
        return []  # Celery's options come from our settings
    options = hints.broker_options()
    found = []
    if options["task_acks_late"]:
        found.append(ACKS_LATE.found("Celery's task_acks_late is on."))
    url = str(options["broker_read_url"] or options["broker_url"] or "")
    if not url:
        found.append(NO_BROKER.found("Celery's broker_url is not set, which means a RabbitMQ on this machine."))
    elif url.startswith(("memory", "filesystem")):
        found.append(NO_BROKER.found(f"Celery's broker is {url.partition(':')[0]}, which reaches no other process."))
    if url.startswith(("redis", "rediss", "sentinel", "unix")):
        if not options["worker_disable_prefetch"]:
            found.append(PREFETCH.found("Celery's worker_disable_prefetch is off, and the broker is Redis."))
    elif options["worker_prefetch_multiplier"] != 1:
        multiplier = options["worker_prefetch_multiplier"]
        found.append(PREFETCH.found(f"Celery's worker_prefetch_multiplier is {multiplier}, not 1."))
    found += [PICKLE.found(f"Celery's {name} has pickle.") for name in _pickles(options)]
    scheduled = {str(entry.get("task")) for entry in dict(options["beat_schedule"] or {}).values()}
    found += [
        TIME_LIMIT.found(f"Celery's {name} is {options[name]} seconds.")
        for name in ("task_time_limit", "task_soft_time_limit")
        if options[name]
    ]
    missing = sorted(_MAINTENANCE - scheduled)
    if missing:
        found.append(NO_MAINTENANCE.found(f"Celery's beat_schedule has no entry for {', '.join(missing)}."))
    return found


def _pickles(options: dict[str, Any]) -> Iterator[str]:
    for name in ("accept_content", "result_accept_content"):
        if _PICKLE & set(options[name] or ()):
            yield name
    if options["task_serializer"] in _PICKLE:
        yield "task_serializer"


def _serves_the_api() -> bool:
    try:
        reverse("mailbox:docs")
    except (NoReverseMatch, ImproperlyConfigured, AttributeError):
        return False  # not included, or there are no routes at all
    return True


def _alias() -> str:
    return str(router.db_for_write(Thread))


def _name_of(level: Any) -> str:
    """psycopg's name for a level given as its enum, its number or as text."""
    try:
        return IsolationLevel(int(level)).name.replace("_", " ").lower()
    except ValueError:
        return str(level).replace("_", " ").lower()
