"""What is told to whom after commit. All of it may be lost; each function says what makes up for it."""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from celery import current_app
from celery.events.event import get_exchange
from celery.utils.time import utcoffset
from kombu import Connection
from kombu.exceptions import ChannelError, LimitExceeded, OperationalError
from kombu.pools import ProducerPool

from mailbox_app import channel, saying
from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, Thread
from mailbox_app.models.thread import recorded
from mailbox_app.telemetry import after_commit, observe

EXECUTE = "mailbox.execute"

# One topic, and one listener a process: nudges are rare, and each process finds its own among them.
_NUDGE = "nudge"

# Threads of one process that may be sending a signal at the same time.
_PUBLISHERS = 10

_pools: dict[tuple[int, str], ProducerPool] = {}


def tell(*threads: Thread) -> None:
    """After the transaction that held these threads' fence: wake a worker for each queue on which a head became due.

    Lost with the process or the broker: the sweep wakes a worker for every queue that has due work.
    """
    for queue in sorted({thread.due_queue for thread in threads if thread.became_due and thread.due_queue is not None}):
        after_commit(wake, queue)


def wake(queue: str) -> None:
    """Send the queue's signal, unless one is on its way. Takes at most about `broker_timeout_seconds`, once.

    A signal carries nothing: whoever gets it claims what is due then, and sends the next one if that was not all. So
    where every slot is busy one waits, however long that lasts, and not one for each time the flag fell. Lost: see
    `tell`.
    """
    breaker = channel.breaker_of(_broker_url())
    if channel.is_silenced() or breaker.is_open() or not channel.raise_flag(queue):
        return
    if breaker.is_open():  # it opened while the flag was being raised: the broker is the same server
        return
    with contextlib.suppress(_BrokerTrouble), _publisher() as publisher:
        if not _is_awaited(queue, publisher):
            _send(queue, publisher)


class Aim(NamedTuple):
    """The one activation that a nudge is for."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    dispatch_id: uuid.UUID


def nudge(claimed: Dispatch) -> None:
    """After the transaction that asked a claimed dispatch to stop, had something read by its run's next step, or
    answered a question of it: tell the process that executes it.

    It looks at the rows and nothing else, so that a forged nudge stops nobody. Lost: its next renewal finds what stands
    there, and who waits for an answer looks every second.
    """
    aim = Aim(claimed.thread_id, claimed.run_id, claimed.pk)
    after_commit(channel.publish, _NUDGE, {name: str(value) for name, value in aim._asdict().items()})


def recorded_events(cursors: Mapping[uuid.UUID, int], **_: Any) -> None:
    """After a transaction that recorded events: tell the web processes that stream them, soon, and for many at once.

    Lost: a stream looks at its threads every `stream_poll_seconds`.
    """
    saying.recorded(cursors)


recorded.connect(recorded_events, dispatch_uid="mailbox.hints.recorded_events")


def nudges() -> Iterator[Aim]:
    """Whom `nudge` names, as they are told, without an end; for the lease keeper."""
    for message in channel.listen(_NUDGE):
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # not one of ours
            yield Aim(*(uuid.UUID(message[name]) for name in Aim._fields))


def fill(queue: str, *, signals: int) -> int:
    """Send signals until so many wait in the queue, whatever its flag says; returns how many were sent.

    For the sweep: the flag may stand for a signal the broker has lost.
    """
    if signals <= 0 or channel.is_silenced() or channel.breaker_of(_broker_url()).is_open():
        return 0
    missing = 0
    with contextlib.suppress(_BrokerTrouble), _publisher() as publisher:
        missing = max(0, signals - _waiting(queue, publisher))
        for _ in range(missing):
            _send(queue, publisher)
    return missing


def show(worker: str, events: Sequence[Mapping[str, Any]]) -> bool:
    """Send task events, {"type", "timestamp", "uuid", …} each, in a worker's name; whether the broker took them.

    For Flower and whoever else listens. Lost: Flower shows a task as running that is not; the rows say what is.
    """
    if channel.breaker_of(_broker_url()).is_open():
        return False
    said = {"hostname": worker, "utcoffset": utcoffset(), "pid": os.getpid()}
    clock: Any = current_app.clock  # type: ignore[attr-defined]
    body = [{**said, "clock": clock.forward(), **event} for event in events]
    with contextlib.suppress(_BrokerTrouble), _publisher() as publisher:
        exchange = get_exchange(publisher.connection, name=current_app.conf.event_exchange)
        publisher.publish(
            body,
            routing_key="task.multi",
            exchange=exchange.name,
            declare=[exchange],
            serializer=current_app.conf.event_serializer,
            headers={"hostname": worker},
            delivery_mode=1,
            retry=False,
        )
        return True
    return False


class _BrokerTrouble(Exception):
    """Told, and nobody's business: the sweep sends another signal."""


@contextlib.contextmanager
def _publisher() -> Iterator[Any]:
    try:
        with _publishers().acquire(block=True, timeout=conf.broker_timeout_seconds) as publisher:
            peer: Any = publisher.connection
            try:
                yield publisher
            except peer.connection_errors as error:
                # An open connection fails in the words of its transport; send_task alone translates them.
                raise OperationalError(str(error)) from error
    except (OperationalError, LimitExceeded, OSError, TimeoutError) as error:
        _pools.clear()
        channel.breaker_of(_broker_url()).failed("signal", error)
        raise _BrokerTrouble from error


def _send(queue: str, publisher: Any) -> None:
    current_app.send_task(EXECUTE, queue=queue, producer=publisher, retry=False, ignore_result=True)
    observe("signal.sent", level=logging.DEBUG, queue=queue)


def _is_awaited(queue: str, publisher: Any) -> bool:
    """Whether a signal waits in the queue for whoever is free next.

    Asked of Redis alone: AMQP closes the channel of who asks for a queue that nobody has declared.
    """
    driver = publisher.connection.transport.driver_type
    return driver == "redis" and _waiting(queue, publisher) > 0


def _waiting(queue: str, publisher: Any) -> int:
    """How many signals wait in the queue; 0 for one that nobody has declared yet."""
    try:
        return int(publisher.channel.queue_declare(queue=queue, passive=True).message_count)
    except ChannelError:
        return 0


def broker_options() -> dict[str, Any]:
    """The options of this process's Celery app that the promises rest on, for the system checks."""
    names = (
        *("broker_url", "broker_read_url", "task_acks_late", "worker_disable_prefetch", "worker_prefetch_multiplier"),
        *("accept_content", "result_accept_content", "task_serializer", "beat_schedule", "beat_scheduler"),
        *("task_time_limit", "task_soft_time_limit"),
    )
    return {name: current_app.conf.get(name) for name in names}


def ask_broker() -> tuple[str, str]:
    """The broker's transport, and what is wrong with it: blank if it answers within `broker_timeout_seconds`."""
    kind = _broker_url().partition(":")[0] or "amqp"
    try:
        with _publishers().acquire(block=True, timeout=conf.broker_timeout_seconds) as publisher:
            _waiting(conf.default_queue, publisher)
    except Exception as error:  # each transport has errors of its own
        _pools.clear()
        return kind, f"{type(error).__name__}: {error}"[:200]
    return kind, ""


def _publishers() -> ProducerPool:
    """This process's connections for signals: time-boxed, unlike Celery's own, whose sockets may block without end."""
    url = _broker_url()
    key = (os.getpid(), url)
    if key not in _pools:
        timeout = conf.broker_timeout_seconds
        # No second try to connect: kombu's pause before it is longer than a caller may wait.
        options: dict[str, Any] = {**(current_app.conf.broker_transport_options or {}), "max_retries": 0}
        if url.startswith(("redis", "rediss", "unix")):
            options |= {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry_on_timeout": False}
        connection = Connection(url, connect_timeout=timeout, transport_options=options)
        _pools[key] = ProducerPool(connections=connection.Pool(limit=_PUBLISHERS), limit=_PUBLISHERS)
    return _pools[key]


def _broker_url() -> str:
    return str(current_app.conf.broker_write_url or current_app.conf.broker_url or "")
