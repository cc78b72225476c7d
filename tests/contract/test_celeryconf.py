"""`celeryconf.configure(app)`, called as the README does: a project's own settings win, ours complete them."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from mailbox_app import celeryconf
from mailbox_app.conf import conf

UNTOUCHED = (
    *("task_ignore_result", "accept_content", "result_accept_content", "task_serializer", "result_serializer"),
    *("result_backend", "task_time_limit", "task_soft_time_limit", "timezone"),
)


def configured(**given: Any) -> Any:
    """The options of a project's app that has these Django settings."""
    app = Celery("yourproject", set_as_current=False)
    app.config_from_object(SimpleNamespace(**given), namespace="CELERY")
    celeryconf.configure(app)
    return app.conf


def test_what_the_project_sets_wins() -> None:
    options = configured(
        CELERY_TASK_ACKS_LATE=True,
        CELERY_WORKER_DISABLE_PREFETCH=False,
        CELERY_WORKER_PREFETCH_MULTIPLIER=4,
        CELERY_BROKER_CONNECTION_MAX_RETRIES=7,
    )
    assert (options.task_acks_late, options.worker_disable_prefetch) == (True, False)
    assert (options.worker_prefetch_multiplier, options.broker_connection_max_retries) == (4, 7)


@pytest.mark.parametrize("name", celeryconf.options())
def test_what_the_project_leaves_open_is_ours(name: str) -> None:
    assert configured(CELERY_TASK_DEFAULT_QUEUE="yours")[name] == celeryconf.options()[name]


def test_transport_options_are_merged_one_by_one() -> None:
    options = configured(CELERY_BROKER_TRANSPORT_OPTIONS={"visibility_timeout": 7200, "socket_timeout": 90})
    ours = celeryconf.options()["broker_transport_options"]
    assert options.broker_transport_options == {**ours, "visibility_timeout": 7200, "socket_timeout": 90}
    assert ours["socket_timeout"] != 90


def test_the_beat_schedule_holds_the_project_s_entries_and_our_passes(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "due_tick_seconds": 2.0, "sweep_seconds": 11.0, "gc_seconds": 333.0}
    settings.MAILBOX["maintenance_queue"] = "yours.maintenance"
    mine = {"task": "yours.report", "schedule": 60.0}
    schedule = configured(CELERY_BEAT_SCHEDULE={"report": mine}).beat_schedule
    assert schedule.pop("report") == mine
    assert {name: (entry["task"], entry["schedule"]) for name, entry in schedule.items()} == {
        "mailbox.due_tick": ("mailbox.due_tick", 2.0),
        "mailbox.sweep": ("mailbox.sweep", 11.0),
        "mailbox.gc": ("mailbox.gc", 333.0),
    }
    for entry in schedule.values():
        # The worker's clock judges the expiry: one that is hours off must not refuse every pass.
        assert entry["options"] == {"queue": "yours.maintenance", "expires": 6 * 3600}


def test_a_pass_the_project_schedules_itself_is_the_project_s() -> None:
    mine = {"task": "mailbox.gc", "schedule": 86_400.0}
    schedule = configured(CELERY_BEAT_SCHEDULE={"mailbox.gc": mine}).beat_schedule
    assert (schedule["mailbox.gc"], schedule["mailbox.sweep"]["schedule"]) == (mine, conf.sweep_seconds)


def test_what_is_none_of_our_business_stays_as_it_was() -> None:
    theirs = {"CELERY_TASK_IGNORE_RESULT": False, "CELERY_ACCEPT_CONTENT": ["json", "yaml"]}
    for given in ({}, theirs):
        plain = Celery("yourproject", set_as_current=False)
        plain.config_from_object(SimpleNamespace(**given), namespace="CELERY")
        options = configured(**given)
        assert {name: options[name] for name in UNTOUCHED} == {name: plain.conf[name] for name in UNTOUCHED}
