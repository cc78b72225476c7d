"""The Celery options an app that runs Mailbox needs: `app.conf.update(celeryconf.options())` in its celery.py."""

from typing import Any

from django.conf import settings as django_settings

from mailbox_app.conf import Settings, conf, problems


def options() -> dict[str, Any]:
    """Options for `Celery.conf.update`, each with the accident it prevents beside it."""
    # A wrong MAILBOX is told by system check mailbox.E001, which stops the process, and runs only after this.
    wrong = problems(getattr(django_settings, "MAILBOX", None) or {})
    settings = Settings() if wrong else conf.read()
    return {
        # Signals are acknowledged early and carry nothing: a redelivered one would only be noise.
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        # A signal reserved by a busy worker waits behind its long run while another worker is idle.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        # Flower sees workers and tasks.
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "broker_connection_retry_on_startup": True,
        # Never give the broker up: it may be away for a night.
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_transport_options": {
            # kombu's socket timeout is None by default: a dead peer would never be noticed.
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        # Celery's Django fixup would close the database connection around every task.
        "CELERY_DB_REUSE_MAX": 1_000,
        "worker_hijack_root_logger": False,
        "beat_schedule": {
            "mailbox.due_tick": _every(settings.due_tick_seconds, "mailbox.due_tick", settings),
            "mailbox.sweep": _every(settings.sweep_seconds, "mailbox.sweep", settings),
            "mailbox.gc": _every(settings.gc_seconds, "mailbox.gc", settings),
        },
        "beat_max_loop_interval": 1,
        "task_create_missing_queues": True,
    }


def _every(seconds: float, task: str, settings: Settings) -> dict[str, Any]:
    # A pass nobody took in time is superseded by the next: they never pile up.
    return {
        "task": task,
        "schedule": seconds,
        "options": {"queue": settings.maintenance_queue, "expires": max(2 * seconds, 5.0)},
    }
