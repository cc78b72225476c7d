"""Every metric: name, type, labels, meaning. What happened is counted here, by who hears of it on `telemetry.observed`.

Nothing on the hot path knows of Prometheus: the verbs tell, once a transaction has committed, and `connect()` listens.
Gauges are of rows; `gauges.py` samples them when somebody asks. No label holds an id.
"""

import functools
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from mailbox_app.tally import PRESENT, tally
from mailbox_app.telemetry import observed

CONTENT_TYPE = CONTENT_TYPE_LATEST
# From the cost of the queue itself to the longest run anybody waits for.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, float("inf"))


@dataclass(frozen=True)
class Metric:
    """One metric, as `/metrics` shows it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count; of a gauge, what there is more or less of now in this process."""
        tally.add({(PRESENT if self.type == "gauge" else "") + _key(self.name, "", labels): amount})

    def measure(self, *labels: str, seconds: float) -> None:
        """Add one duration to a histogram."""
        bucket = _BUCKETS[bisect_left(_BUCKETS, seconds)]
        tally.add({_key(self.name, repr(bucket), labels): 1, _key(self.name, "sum", labels): seconds})

    def family(self) -> Family:
        """Its empty family, for whoever samples it."""
        kinds: dict[str, Callable[..., Family]] = {
            "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
        }  # fmt: skip
        return kinds[self.type](self.name, self.meaning, labels=self.labels)


@functools.cache
def _key(name: str, part: str, labels: tuple[str, ...]) -> str:
    return json.dumps([name, part, *labels])


SUBMITTED = Metric("mailbox_runs_submitted_total", "counter", ("agent", "queue"), "Runs accepted.")
CLAIMS = Metric("mailbox_claims_total", "counter", ("agent", "queue"), "Dispatches claimed by a worker.")
RETRIES = Metric(
    "mailbox_retries_total", "counter", ("agent",), "Activations that failed and were queued for another attempt."
)
LEASES_LOST = Metric(
    "mailbox_leases_lost_total", "counter", ("agent",), "Leases that ran out and were taken back by a sweep."
)
HAND_BACKS = Metric(
    "mailbox_hand_backs_total", "counter", ("agent",), "Claims that a worker returned without having begun."
)
DEAD_LETTERS = Metric("mailbox_dead_letters_total", "counter", ("agent",), "Dispatches that failed for good.")
CANCELLED = Metric("mailbox_runs_cancelled_total", "counter", ("agent",), "Runs that ended because somebody said so.")
SETTLES_REFUSED = Metric(
    "mailbox_settles_refused_total",
    "counter",
    (),
    "Outcomes of workers that had lost their lease; nothing was written.",
)
SIGNAL_FAILURES = Metric(
    "mailbox_signal_failures_total",
    "counter",
    ("peer",),
    "Failures of the broker (signal) or Redis for hints (channel), each followed by a pause; work waits for a sweep.",
)
FLAGS_REPAIRED = Metric(
    "mailbox_flags_repaired_total", "counter", (), "Ready flags that a sweep found wrong; each is an error in Mailbox."
)
TAKEOVERS = Metric(
    "mailbox_standby_takeovers_total", "counter", ("maintenance",), "Passes that a worker ran because beat was late."
)
MAINTENANCE_FAILURES = Metric(
    "mailbox_maintenance_failures_total", "counter", ("maintenance",), "Passes of which some part failed."
)
FLOWER_DROPPED = Metric(
    "mailbox_flower_events_dropped_total",
    "counter",
    ("reason",),
    "Task events Flower did not get: over the limit a second (limit), more than could be sent (full), or no broker.",
)
ENQUEUE_TO_START = Metric(
    "mailbox_enqueue_to_start_seconds",
    "histogram",
    ("agent",),
    "From the instant a dispatch could start (queued, its schedule or backoff over) until its claim.",
)
START_TO_COMPLETE = Metric(
    "mailbox_start_to_complete_seconds",
    "histogram",
    ("agent", "outcome"),
    "From claim to end of an activation; outcome: natural_end, retry, dead_letter, cancelled, lease_lost, handed_back.",
)
DATABASE_UP = Metric(
    "mailbox_database_up", "gauge", (), "1 if the rows could be sampled; without it no gauge is shown."
)
DISPATCHES = Metric("mailbox_dispatches", "gauge", ("queue", "status"), "Dispatches that are queued or claimed.")
IS_ESTIMATED = Metric(
    "mailbox_depth_is_estimated", "gauge", (), "1 if so much is queued that it is estimated from a sample."
)
OLDEST_DUE = Metric(
    "mailbox_oldest_due_age_seconds",
    "gauge",
    ("queue",),
    "How long the oldest work that could start has waited; what is paused could not.",
)
BLOCKED = Metric(
    "mailbox_threads_blocked", "gauge", ("reason",), "Threads whose queued work may not start, by what holds it."
)
PAUSES = Metric("mailbox_pauses", "gauge", ("kind",), "Standing pauses, by what is paused; of each up to 10,000.")
UNRESOLVED = Metric("mailbox_dead_letters_unresolved", "gauge", (), "Dead letters nobody has dealt with, up to 10,000.")
MAINTENANCE_AGE = Metric(
    "mailbox_maintenance_age_seconds", "gauge", ("maintenance",), "Since the pass last finished, by whoever ran it."
)
WORKERS = Metric("mailbox_workers", "gauge", ("queue",), "Live workers with agents that serve the queue.")
SLOTS = Metric("mailbox_worker_slots", "gauge", ("queue",), "What those can run at a time, all together.")
LIMIT_PERMITS = Metric(
    "mailbox_limit_permits",
    "gauge",
    ("kind", "name", "state"),
    "Permits of limits on runs at once: held by a run, or free. Of the first 200 limits by kind and name, as far as "
    "they allow 10,000 together.",
)
STREAMS_OPEN = Metric(
    "mailbox_streams_open", "gauge", ("kind",), "Streams that are open: of a thread, a run or a post."
)
STREAM_THREADS = Metric("mailbox_stream_threads", "gauge", (), "Threads that are streamed, in each process for itself.")
STREAMS_ENDED = Metric(
    "mailbox_streams_ended_total",
    "counter",
    ("kind", "reason"),
    "Streams that ended: told so (end), the client left or did not read (left, cut), its credentials lapsed (refused), "
    "open for stream_seconds (again), error, or served by WSGI, where each ends at once (wsgi).",
)
STREAM_EVENTS = Metric("mailbox_stream_events_sent_total", "counter", (), "Events sent, to each client once.")
STREAM_READINGS = Metric(
    "mailbox_stream_readings_total", "counter", (), "Questions of open streams to the database, shared by all of them."
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

# Gauges that are counted up and down, each process its own.
_PRESENT = (STREAMS_OPEN, STREAM_THREADS)
_BY_OUTCOME = {
    "retry": RETRIES, "lease_lost": LEASES_LOST, "handed_back": HAND_BACKS,
    "dead_letter": DEAD_LETTERS, "cancelled": CANCELLED,
}  # fmt: skip


def connect() -> None:
    """Begin to count, in this process and in those it forks; a second call does nothing."""
    observed.connect(_count, dispatch_uid="mailbox.metrics")


def _count(name: str, fields: dict[str, Any], **_: Any) -> None:
    if name == "dispatch.moved":
        _count_move(**fields)
    elif name in ("signal.failed", "channel.failed"):
        SIGNAL_FAILURES.add(name.partition(".")[0])
    elif name == "thread.flag_repaired":
        FLAGS_REPAIRED.add()
    elif name == "settle.refused":
        SETTLES_REFUSED.add()
    elif name == "standby.took_over":
        TAKEOVERS.add(str(fields["maintenance"]))
    elif name.startswith("stream."):
        _count_stream(name, **fields)
    elif name == "flower.dropped":
        FLOWER_DROPPED.add(str(fields["reason"]), amount=fields["events"])
    elif name.endswith(".failed") and "batch" in fields:
        MAINTENANCE_FAILURES.add(name.partition(".")[0])


def _count_move(*, kind: str, agent: str, queue: str, outcome: str, **told: Any) -> None:
    if kind == "RunQueued":
        SUBMITTED.add(agent, queue)
    elif "waited" in told:
        CLAIMS.add(agent, queue)
        ENQUEUE_TO_START.measure(agent, seconds=told["waited"])
    if outcome in _BY_OUTCOME:
        _BY_OUTCOME[outcome].add(agent)
    if outcome and "ran" in told:
        START_TO_COMPLETE.measure(agent, outcome, seconds=told["ran"])


def _count_stream(name: str, **told: Any) -> None:
    if name == "stream.opened":
        STREAMS_OPEN.add(told["kind"])
    elif name == "stream.ended":
        STREAMS_OPEN.add(told["kind"], amount=-1)
        STREAMS_ENDED.add(told["kind"], told["reason"])
    elif name == "stream.polled":
        STREAMS_ENDED.add(told["kind"], "wsgi")
    elif name == "stream.feed":
        STREAM_THREADS.add(amount=told["change"])
    elif name == "stream.sent":
        STREAM_EVENTS.add(amount=told["events"])
        STREAM_READINGS.add(amount=told["readings"])


def counted() -> Iterator[Family]:
    """Counters and histograms of every process that shares this one's folder, and gauges of what these hold now."""
    parts: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}
    for key, value in tally.totals().items():
        name, part, *labels = json.loads(key.removeprefix(PRESENT))
        parts.setdefault(name, {}).setdefault(tuple(labels), {})[part] = value
    for metric in METRICS:
        if metric.type == "gauge" and metric not in _PRESENT:
            continue  # it is sampled
        family: Any = metric.family()
        # What has no labels is there from the start: a rule about it must not wait for the first.
        found = parts.get(metric.name, {} if metric.labels else {(): {"": 0.0}})
        for labels, values in sorted(found.items()):
            if metric.type != "histogram":
                family.add_metric(labels, values.get("", 0.0))
            else:
                family.add_metric(labels, buckets=_cumulative(values), sum_value=values.get("sum", 0.0))
        yield family


def _cumulative(values: dict[str, float]) -> list[tuple[str, float]]:
    total, buckets = 0.0, []
    for bucket in _BUCKETS:
        total += values.get(repr(bucket), 0.0)
        buckets.append(("+Inf" if bucket == float("inf") else repr(bucket), total))
    return buckets


def exposition(*sources: Callable[[], Iterable[Family]]) -> bytes:
    """What the sources say, as Prometheus reads it."""
    registry = CollectorRegistry()
    for source in sources:
        registry.register(_Source(source))
    return generate_latest(registry)


class _Source(Collector):
    def __init__(self, source: Callable[[], Iterable[Family]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Family]:
        """What the source says now."""
        return self._source()

    def describe(self) -> Iterable[Family]:
        """Nothing: asking the database once is enough."""
        return ()


def reference() -> str:
    """The metrics as a Markdown table."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"
