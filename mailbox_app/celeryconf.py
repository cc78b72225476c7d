"""What Mailbox needs of a project's Celery app: one call in its celery.py, `celeryconf.configure(app)`."""

from typing import Any

from mailbox_app.conf import conf

# Passes that nobody took pile up for so long and no longer. A pass that comes too early or twice is skipped by the
# database's clock; this one is judged by the worker's, so it must bear a clock that is hours off.
_EXPIRES_SECONDS = 6 * 3600


def configure(app: Any) -> None:
    """Complete the app's options by ours, and its beat schedule by our passes, when it first reads its settings.

    A project's own `CELERY_…` settings win; system checks tell where they break a promise.
    """
    app.on_after_configure.connect(_complete, weak=False)


def options() -> dict[str, Any]:
    """Options of the Celery app, each with the accident it prevents beside it."""
    return {
        # Signals are acknowledged early and carry nothing: a redelivered one would only be noise.
        "task_acks_late": False,
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
            "options": {"queue": conf.maintenance_queue, "expires": _EXPIRES_SECONDS},
        }
        for task, seconds in every.items()
    }


def _complete(sender: Any, **_: Any) -> None:
    found = sender.conf
    # Celery's own without_defaults() forgets the namespace, and so finds none of the settings given with one.
    given = type(found)({}, found.maps[:-1], found._keys, found.prefix)
    for name, value in options().items():
        if name not in given:
            found[name] = value
        elif isinstance(value, dict):
            found[name] = {**value, **(given[name] or {})}
    found.beat_schedule = {**passes(), **(found.beat_schedule or {})}
