"""Every setting of the app, on one typed class, read lazily from `settings.MAILBOX`.

Names carry their unit: `_seconds`, `_bytes`; the others are counts or names. A key that is unknown, of the wrong type
or out of its range stops the process with system check `mailbox.E001`, which names it.
"""

import math
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

# What redis-py takes; a URL of another kind would fail at each call, and not before.
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def _setting(default: Any, meaning: str, *, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`MAILBOX = {"lease_seconds": 30, …}`; every key is optional."""

    redis_url: str = _setting(
        "", "Redis for hints and live deltas; empty: no hints, everything arrives with the next tick or sweep"
    )
    default_queue: str = _setting("mailbox.default", "Celery queue of a dispatch whose agent names none")
    maintenance_queue: str = _setting("mailbox.maintenance", "Celery queue of due tick, sweep and gc")
    quarantine_queue: str = _setting(
        "mailbox.quarantine",
        "Celery queue of a dispatch that has lost `quarantine_after` leases, while a worker that can run it serves "
        "that queue; empty: none",
    )
    quarantine_after: int = _setting(
        2, "lost leases after which a dispatch is executed apart from others", least=1, most=1000
    )
    default_agent: str = _setting("default", "agent of a submission that names none, on a thread that had none")
    lease_seconds: float = _setting(30.0, "how long a claim is good for without renewal", least=0.5)
    renewal_seconds: float = _setting(0.0, "how often leases are renewed; 0: a third of the lease", least=0)
    due_tick_seconds: float = _setting(1.0, "how often scheduled and backed-off work is promoted", least=0.05)
    sweep_seconds: float = _setting(5.0, "how often lost leases and lost signals are looked for", least=0.1)
    gc_seconds: float = _setting(60.0, "how often rows past their retention are pruned", least=1)
    batch_size: int = _setting(100, "rows one tick, sweep or gc statement takes at most", least=1, most=10_000)
    pass_seconds: float = _setting(1.0, "how long one tick, sweep or gc goes on before it leaves the rest", least=0.05)
    wait_ttl_seconds: float = _setting(
        7 * 86_400.0, "how long a run waits that names no end of its wait", least=0.1, most=366 * 86_400
    )
    suspended_lease_seconds: float = _setting(
        600.0, "how long `ctx.wait_for_decision` keeps its worker at most before the run waits without one", least=0
    )
    missing_agent_ttl_seconds: float = _setting(
        86_400.0, "how long work that no live worker can run is kept before it is a dead letter", least=0
    )
    claim_budget_seconds: float = _setting(
        5.0,
        "how long one wake-up goes on claiming before it passes the signal on; another queue of the same worker may "
        "have to wait so long for a slot",
        least=0,
    )
    max_async_runs: int = _setting(
        100, "runs of async agents on the event loop of one worker process (not of a prefork child: one)", least=1
    )
    async_verb_threads: int = _setting(
        8, "threads, each with a database connection, for the verbs of one process's async agents", least=1, most=1000
    )
    async_step_threads: int = _setting(
        32, "threads for the functions (not coroutines) in the steps of one process's async agents", least=1, most=1000
    )
    stop_seconds: float = _setting(
        25.0, "how long a worker that was told to end (SIGTERM) lets its runs go on before it hands them back", least=0
    )
    retire_seconds: float = _setting(
        60.0, "how long a process that must be replaced lets its other runs go on before it hands them back", least=0
    )
    max_attempts: int = _setting(5, "failures after which a dispatch is a dead letter", least=1, most=1000)
    max_turns: int = _setting(
        100, "turns after which a run ends although more input waits; that gets a run of its own", least=1, most=100_000
    )
    max_deliveries: int = _setting(
        10, "failed deliveries of a message to another thread after which it is a dead letter", least=1, most=1000
    )
    max_children: int = _setting(1_000, "runs that one run may spawn", least=1, most=100_000)
    max_child_depth: int = _setting(
        16, "runs that may stand above one another, each spawned by the one above", least=1, most=1_000
    )
    max_lost: int = _setting(5, "lost leases after which a dispatch is a dead letter", least=1, most=1000)
    retry_delay_seconds: float = _setting(0.25, "backoff after the first failure; doubles with each", least=0)
    max_retry_delay_seconds: float = _setting(30.0, "longest backoff", least=0)
    timeout_seconds: float = _setting(
        3600.0, "longest activation of an agent that names no limit", least=0.1, most=31 * 86_400
    )
    default_priority: int = _setting(128, "priority of a run that names none; 0 goes first", least=0, most=255)
    registration_seconds: float = _setting(
        30.0, "how often a worker writes down that it lives; not seen for three of these, it counts as gone", least=0.5
    )
    agent_memory_seconds: float = _setting(7 * 86_400.0, "how long an agent is known after its last worker", least=0)
    dispatch_retention_seconds: float = _setting(86_400.0, "how long a finished dispatch is kept", least=0)
    event_retention_seconds: float = _setting(30 * 86_400.0, "how long an event is kept", least=0)
    dead_letter_retention_seconds: float = _setting(
        30 * 86_400.0, "how long an unresolved dead letter is kept", least=0
    )
    deleted_thread_retention_seconds: float = _setting(
        7 * 86_400.0, "how long the rows of a deleted thread are kept, and its id answered with 410", least=0
    )
    outbox_retention_seconds: float = _setting(
        86_400.0, "how long what was delivered to another thread is kept in the outbox", least=0
    )
    idempotency_retention_seconds: float = _setting(86_400.0, "how long an Idempotency-Key is remembered", least=0)
    idempotency_wait_seconds: float = _setting(2.0, "how long a repeat waits for the first to finish", least=0.01)
    registration_retention_seconds: float = _setting(
        30 * 86_400.0, "how long the registration of a worker that is gone is kept", least=0
    )
    wait_seconds: float = _setting(60.0, "longest a request waits for a run (`/runs/{id}/wait`)", least=0, most=3600)
    cancel_wait_seconds: float = _setting(
        5.0, "longest a cancel request waits for its run (`?wait=`)", least=0, most=60
    )
    cancel_grace_seconds: float = _setting(
        30.0, "how long a run that was asked to stop may go on before it ends without its code", least=0.1, most=86_400
    )
    wait_poll_seconds: float = _setting(
        0.5, "longest pause between two looks at a run a request waits for", least=0.01, most=60
    )
    stream_heartbeat_seconds: float = _setting(
        15.0, "after how long a silence a stream sends a comment, so that nobody between takes it for dead", least=0.05
    )
    stream_poll_seconds: float = _setting(
        5.0,
        "how often one web process looks for events its streams were not told of, once for all of them; without Redis "
        "it looks every `wait_poll_seconds`",
        least=0.05,
    )
    stream_send_seconds: float = _setting(
        20.0, "how long a stream's client may take nothing of what is sent to it before it is cut off", least=0.1
    )
    stream_seconds: float = _setting(
        3600.0, "how long one stream is open; its client connects again, and shows its credentials again", least=0.1
    )
    stream_buffer_entries: int = _setting(
        256,
        "latest events of a thread a web process keeps for its streams, and pieces of a run's live text in Redis; past "
        "that, a stream reads the table, and the pieces become one",
        least=1,
        most=100_000,
    )
    emit_seconds: float = _setting(
        0.5,
        "how long an event an agent has emitted may wait to be recorded with others of its run",
        least=0.01,
        most=60,
    )
    emit_batch: int = _setting(
        100, "emitted events of a run that may wait to be recorded; its agent records them then", least=1, most=10_000
    )
    throttle_requests_per_minute: int = _setting(
        0,
        "requests one token or user may make in a minute; 0: no limit; counted in Django's default cache, which must "
        "be one that all web processes share",
        least=0,
    )
    throttle_submissions_per_minute: int = _setting(
        0, "runs one token or user may submit in a minute, a batch counts each; 0: no limit; counted likewise", least=0
    )
    max_body_bytes: int = _setting(10_485_760, "longest body of a request", least=1)
    max_batch_runs: int = _setting(100, "most runs of one batch", least=1, most=10_000)
    max_queued_per_thread: int = _setting(
        0, "runs not started that one thread may hold; whoever submits more is refused; 0: no bound", least=0
    )
    max_content_bytes: int = _setting(1_048_576, "longest content of one message, as UTF-8 JSON", least=1)
    max_messages: int = _setting(100, "most messages of one submission", least=1)
    max_metadata_bytes: int = _setting(65_536, "longest metadata or options object, as UTF-8 JSON", least=2)
    max_result_bytes: int = _setting(8_388_608, "longest journalled result or final output, as UTF-8 JSON", least=2)
    signal_flag_seconds: float = _setting(2.0, "how long a queue's signal is taken to be on its way", least=0.05)
    broker_timeout_seconds: float = _setting(1.0, "longest a caller waits for the broker or Redis", least=0.05)
    broker_retry_seconds: float = _setting(5.0, "how long the broker is left alone after it failed", least=0)
    flower_runs_per_second: float = _setting(
        20.0, "activations a second each process shows in Flower; the others run unseen there; 0: none", least=0
    )
    metrics_folder: str = _setting(
        "",
        "folder where the processes of one host count together, so that /metrics of any shows all; empty: each counts "
        "for itself",
    )
    metrics_token: str = _setting(
        "", "bearer token that may read /metrics; empty: none. Staff may, with a session or a token of their own"
    )
    metrics_port: int = _setting(
        0, "port on which a worker serves what it and its pool children counted; 0: none", least=0, most=65_535
    )
    metrics_address: str = _setting("127.0.0.1", "address of metrics_port")
    scope_for_user: str = _setting(
        "mailbox_app.api.v1.permissions.default_scope", "dotted path: (user) -> scope of a session's requests"
    )

    def __post_init__(self) -> None:
        if not self.renewal_seconds:
            object.__setattr__(self, "renewal_seconds", self.lease_seconds / 3)


def problems(given: Any) -> list[str]:
    """What is wrong with a MAILBOX value, one sentence per key; [] if nothing is."""
    if not isinstance(given, dict):
        return [f"MAILBOX must be a dict, not {type(given).__name__}."]
    known = {f.name: f for f in fields(Settings)}
    found = []
    for key, value in given.items():
        if key not in known:
            found.append(f"MAILBOX has no key {key!r}.")
            continue
        spec = known[key]
        if isinstance(spec.default, str):
            if not isinstance(value, str):
                found.append(f"MAILBOX[{key!r}] must be a string, not {value!r}.")
            continue
        kinds: tuple[type, ...] = (int,) if isinstance(spec.default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            found.append(f"MAILBOX[{key!r}] must be {' or '.join(k.__name__ for k in kinds)}, not {value!r}.")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            found.append(f"MAILBOX[{key!r}] must be a finite number, not {value!r}.")
            continue
        least, most = spec.metadata["least"], spec.metadata["most"]
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            found.append(f"MAILBOX[{key!r}] must be {bounds}, not {value!r}.")
    if not found:
        read = Settings(**given)
        if read.renewal_seconds > read.lease_seconds / 2:
            found.append(
                "MAILBOX['renewal_seconds'] must be at most half of lease_seconds: one lost renewal is normal."
            )
        for key in ("default_queue", "maintenance_queue", "default_agent"):
            if not getattr(read, key).strip():
                found.append(f"MAILBOX[{key!r}] must not be blank.")
        if read.redis_url and not read.redis_url.startswith(_REDIS_SCHEMES):
            found.append(f"MAILBOX['redis_url'] must begin with one of {', '.join(_REDIS_SCHEMES)}.")
    return found


def reference() -> str:
    """The settings as a Markdown table; `python -m mailbox_app.conf` prints it."""
    lines = ["| setting | default | unit | from … to | meaning |", "|---|---|---|---|---|"]
    for spec in fields(Settings):
        unit = next((unit for unit in ("seconds", "bytes") if spec.name.endswith(f"_{unit}")), "")
        if not unit:
            unit = "text" if isinstance(spec.default, str) else "number"
        if isinstance(spec.default, str):
            default = f"`{spec.default}`" if spec.default else "empty"
        else:
            default = f"{spec.default:,}"
        least, most = spec.metadata["least"], spec.metadata["most"]
        bounds = "" if least is None else f"{least:,} … {'' if most is None else format(most, ',')}".rstrip()
        lines.append(f"| `{spec.name}` | {default} | {unit} | {bounds} | {spec.metadata['meaning']} |")
    return "\n".join(lines) + "\n"


class _Reader:
    """Attribute access to the current Settings, re-read when `settings.MAILBOX` is another object."""

    _source: Any = None
    _settings: Settings | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.read(), name)

    def read(self) -> Settings:
        source = getattr(django_settings, "MAILBOX", None)
        if self._settings is None or source is not self._source:
            given = {} if source is None else source
            found = problems(given)
            if found:
                raise ImproperlyConfigured(" ".join(found))
            self._settings, self._source = Settings(**given), source
        return self._settings


conf = _Reader()


if __name__ == "__main__":
    sys.stdout.write(reference())
