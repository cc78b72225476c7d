"""Each system check, named after its id: what sets it off, what it says, and what leaves it silent."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, current_app
from django.core.checks import ERROR, WARNING, CheckMessage, run_checks
from django.core.management import CommandError, call_command
from django.db import connection, router
from django.test import override_settings
from psycopg import IsolationLevel

from mailbox_app import catalogue, celeryconf, checks


def found(databases: list[str] | None = None) -> list[CheckMessage]:
    """Our own findings among those of `manage.py check`, with `--database` where databases are given."""
    ours = [message for message in run_checks(databases=databases) if str(message.id).startswith("mailbox.")]
    assert all(message.hint for message in ours)
    return ours


def ids(databases: list[str] | None = None) -> list[str | None]:
    return [message.id for message in found(databases)]


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """An app of the test's own, current while it lasts, with the options a project is told to set."""
    before = current_app._get_current_object()
    app = Celery("test", set_as_current=True, broker="redis://localhost")
    celeryconf.configure(app)
    yield app
    before.set_current()


@pytest.fixture
def database_options() -> Iterator[dict[str, Any]]:
    """The connection's OPTIONS, put back afterwards."""
    options = connection.settings_dict["OPTIONS"]
    before = dict(options)
    yield options
    options.clear()
    options.update(before)


def test_a_right_project_has_no_findings(celery_app: Celery) -> None:
    assert ids() == []


@pytest.mark.django_db
def test_a_right_database_has_no_findings(celery_app: Celery) -> None:
    assert ids(["default"]) == []


def test_the_reference_project_has_no_findings() -> None:
    assert ids() == []


@override_settings(MAILBOX={"lease_second": 1, "max_attempts": 0})
def test_mailbox_E001_a_setting_is_wrong() -> None:  # noqa: N802
    one, other = found()
    assert (one.id, one.level, one.msg) == ("mailbox.E001", ERROR, "MAILBOX has no key 'lease_second'.")
    assert (other.id, other.msg) == ("mailbox.E001", "MAILBOX['max_attempts'] must be from 1 to 1000, not 0.")
    with pytest.raises(CommandError, match="lease_second"):
        call_command("check")


def test_mailbox_E002_the_database_is_not_postgresql(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setattr(type(connection._connections["default"]), "vendor", "sqlite")  # type: ignore[attr-defined]
    (finding,) = found()
    assert (finding.id, finding.level) == ("mailbox.E002", ERROR)
    assert finding.msg == "Database 'default' is sqlite, not PostgreSQL."


@pytest.mark.django_db
def test_mailbox_E003_postgresql_is_too_old(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    """No such server is at hand: what counts as too old is raised above the one there is."""
    monkeypatch.setattr(checks, "_OLDEST_POSTGRESQL", 990_000)
    (finding,) = found(["default"])
    assert (finding.id, finding.level) == ("mailbox.E003", ERROR)
    assert "Database 'default' runs on PostgreSQL" in str(finding.msg)
    assert ids() == [], "the database is asked only when a command wants it checked"


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE, 4])
def test_mailbox_E004_transactions_are_not_read_committed(  # noqa: N802
    level: Any, celery_app: Celery, database_options: dict[str, Any]
) -> None:
    database_options["isolation_level"] = level
    (finding,) = found()
    assert (finding.id, finding.level) == ("mailbox.E004", ERROR)
    name = IsolationLevel(level).name.replace("_", " ").lower()
    assert finding.msg == f"Database 'default' has the isolation level '{name}' in its OPTIONS."
    database_options["isolation_level"] = IsolationLevel.READ_COMMITTED
    assert ids() == []


@pytest.mark.django_db(transaction=True)
def test_mailbox_E004_also_when_the_server_decides(celery_app: Celery, database_options: dict[str, Any]) -> None:  # noqa: N802
    connection.close()
    database_options["options"] = "-c default_transaction_isolation=serializable"
    try:
        (finding,) = found(["default"])
        assert finding.id == "mailbox.E004"
        assert finding.msg == "Database 'default' runs transactions at 'serializable' by the server's default."
    finally:
        connection.close()


def test_mailbox_E005_signals_are_acknowledged_late(celery_app: Celery) -> None:  # noqa: N802
    celery_app.conf.task_acks_late = True
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.E005", ERROR, "Celery's task_acks_late is on.")
    ]


def test_mailbox_E006_workers_prefetch(celery_app: Celery) -> None:  # noqa: N802
    celery_app.conf.worker_disable_prefetch = False
    assert [(one.id, one.level) for one in found()] == [("mailbox.E006", ERROR)]
    celery_app.conf.broker_url = celery_app.conf.broker_read_url = "amqp://localhost"
    assert ids() == [], "another broker has no such option: a multiplier of 1 is the best there is"
    celery_app.conf.worker_prefetch_multiplier = 4
    assert [one.msg for one in found()] == ["Celery's worker_prefetch_multiplier is 4, not 1."]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("accept_content", ["json", "pickle"]),
        ("accept_content", ["application/x-python-serialize"]),
        ("result_accept_content", ["pickle"]),
        ("task_serializer", "pickle"),
    ],
)
def test_mailbox_E007_pickle_is_spoken(option: str, value: Any, celery_app: Celery) -> None:  # noqa: N802
    celery_app.conf[option] = value
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.E007", ERROR, f"Celery's {option} has pickle.")
    ]


@override_settings(USE_TZ=False)
def test_mailbox_E009_times_have_no_zone(celery_app: Celery) -> None:  # noqa: N802
    assert [(one.id, one.level, one.msg) for one in found()] == [("mailbox.E009", ERROR, "USE_TZ is off.")]


class Elsewhere:
    """A router that reads from a replica, as Django's documentation shows it."""

    def db_for_read(self, model: Any, **_: Any) -> str:
        return "replica"


def test_mailbox_E008_a_router_sends_our_tables_elsewhere(  # noqa: N802
    celery_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "routers", [Elsewhere()])
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.E008", ERROR, "A database router puts Mailbox's tables elsewhere: read on 'replica'.")
    ]


@pytest.mark.parametrize("option", ["task_time_limit", "task_soft_time_limit"])
def test_mailbox_W003_celery_limits_the_time_of_runs(option: str, celery_app: Celery) -> None:  # noqa: N802
    celery_app.conf[option] = 300
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.W003", WARNING, f"Celery's {option} is 300 seconds.")
    ]


def test_mailbox_W004_there_is_no_agent(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setattr(catalogue, "_agents", {})
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.W004", WARNING, "No installed app's agents.py registers an agent.")
    ]


def test_mailbox_W005_the_documentation_page_lacks_apps(celery_app: Celery, settings: Any) -> None:  # noqa: N802
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "drf_spectacular_sidecar"]
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.W005", WARNING, "The API's routes are included, but not installed: drf_spectacular_sidecar.")
    ]
    settings.ROOT_URLCONF = "mailbox_app.api.v1.health"
    assert ids() == [], "who serves no API needs no page for it"
    del settings.ROOT_URLCONF
    assert ids() == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "Celery's broker_url is not set, which means a RabbitMQ on this machine."),
        ("memory://", "Celery's broker is memory, which reaches no other process."),
        ("filesystem://", "Celery's broker is filesystem, which reaches no other process."),
    ],
)
def test_mailbox_W006_there_is_no_broker(url: str, message: str, celery_app: Celery) -> None:  # noqa: N802
    celery_app.conf.broker_url = celery_app.conf.broker_read_url = url
    assert [(one.id, one.level, one.msg) for one in found()] == [("mailbox.W006", WARNING, message)]


def test_mailbox_W001_there_is_no_redis(celery_app: Celery) -> None:  # noqa: N802
    with override_settings(MAILBOX={"redis_url": ""}):
        assert [(one.id, one.level) for one in found()] == [("mailbox.W001", WARNING)]
    with override_settings(MAILBOX=None):
        assert ids() == ["mailbox.W001"]


def test_mailbox_W002_nobody_runs_the_maintenance(celery_app: Celery) -> None:  # noqa: N802
    schedule = dict(celery_app.conf.beat_schedule)
    celery_app.conf.beat_schedule = {name: entry for name, entry in schedule.items() if entry["task"] != "mailbox.gc"}
    assert [(one.id, one.level, one.msg) for one in found()] == [
        ("mailbox.W002", WARNING, "Celery's beat_schedule has no entry for mailbox.gc.")
    ]


def test_a_project_that_forgot_its_celery_app_is_told_so(celery_app: Celery) -> None:
    """Celery then falls back to an app of its own, with its own defaults."""
    Celery("forgotten", set_as_current=True)
    findings = found()
    assert [one.id for one in findings] == ["mailbox.W006", "mailbox.E006", "mailbox.W002"]
    assert all("import that app in the project's __init__.py" in str(one.hint) for one in findings)
