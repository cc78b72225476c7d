"""What Mailbox needs of a project's Celery app: one call in its celery.py, `celeryconf.configure(app)`."""

from typing import Any

from mailbox_app.conf import conf


def configure(app: Any) -> None:
    """Give the app our options as defaults, and our passes beside its own beat schedule; read when it first needs them.

    A project's own `CELERY_…` settings win; system checks tell where they break a promise.
    """
    app.add_defaults(options)
    app.on_after_configure.connect(_add_passes, weak=False)


def options() -> dict[str, Any]:
    """Options of the Celery app, each with the accident it prevents beside it."""
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
        # Beat would look at its schedule every five minutes, and learn so late that a clock was set.
        "beat_max_loop_interval": 1,
    }


def passes() -> dict[str, dict[str, Any]]:
    """Entries of a beat schedule: due tick, sweep and gc, on the maintenance queue."""
    every = {
        "mailbox.due_tick": conf.due_tick_seconds,
        "mailbox.sweep": conf.sweep_seconds,
        "mailbox.gc": conf.gc_seconds,
    }
    return {
        task: {
            "task": task,
            "schedule": seconds,
            # A pass nobody took in time is superseded by the next: they never pile up.
            "options": {"queue": conf.maintenance_queue, "expires": max(2 * seconds, 5.0)},
        }
        for task, seconds in every.items()
    }


def _add_passes(sender: Any, **_: Any) -> None:
    sender.conf.beat_schedule = {**passes(), **(sender.conf.beat_schedule or {})}
