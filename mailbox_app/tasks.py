"""The Celery tasks: each loads nothing and makes one call. They carry no truth: any of them may be lost or doubled.

They send no task events: Flower shows activations instead (`flower.py`), and not one line a second for the passes.
"""

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

from celery import Task, shared_task, signals
from celery.worker import state
from django.db import InterfaceError, OperationalError, connection

from mailbox_app import channel, hints
from mailbox_app.conf import conf
from mailbox_app.execution import registry
from mailbox_app.execution.executor import Executor
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.presence import Presence
from mailbox_app.execution.standby import Pass, Standby
from mailbox_app.exposer import Exposer
from mailbox_app.flower import flower
from mailbox_app.models import Maintenance
from mailbox_app.operations import children, claim, deliver, limits, missing, permits, prune, recover, tick
from mailbox_app.signals import gc_done
from mailbox_app.telemetry import observe

# A process that ends waits so long for the broker to take what it still has to tell.
_FLUSH_SECONDS = 1.0


@shared_task(name=hints.EXECUTE, bind=True, ignore_result=True, acks_late=False, send_events=False)
def execute(self: "Task[..., Any]", /, **_: Any) -> int:
    """Answer a signal: claim and run what is due on its queue; returns how many runs it began."""
    queue = str((self.request.delivery_info or {}).get("routing_key") or conf.default_queue)
    worker = f"{self.request.hostname or 'worker'}:{os.getpid()}"
    _drop_broken_connection()
    channel.lower_flag(queue)
    return executor.work(queue=queue, worker=worker, own_process=_is_pool_child())


@shared_task(name="mailbox.renew_leases", ignore_result=True)
def renew_leases(tokens: Collection[uuid.UUID] = (), **_: Any) -> claim.Renewed:
    """Prolong the leases of these claims; which are lost, or to be cancelled. Called by the lease keeper, not sent."""
    return claim.renew(tokens=tokens)


@shared_task(name="mailbox.due_tick", ignore_result=True, send_events=False)
def due_tick(**_: Any) -> None:
    """Promote work whose time has come, end waits that are over, run errands, let start what limits keep no more."""
    _drop_broken_connection()
    # Questions first: a run whose questions lapse goes on, also when its wait is over by now.
    ends = (tick.promote, tick.expire_tickets, tick.expire_waits)
    _pass("due_tick", conf.due_tick_seconds, *ends, children.batch, permits.release_some, _let_start)


@shared_task(name="mailbox.sweep", ignore_result=True, send_events=False)
def sweep(**_: Any) -> None:
    """Take back lost leases, end what was to stop, mend flags, deliver between threads, end what nobody runs."""
    _drop_broken_connection()
    ends = (recover.reclaim, recover.finish_cancelled)
    batches = (*ends, recover.repair, deliver.batch, missing.note, missing.expire)
    if _pass("sweep", conf.sweep_seconds, *batches):
        recover.signal()


@shared_task(name="mailbox.gc", ignore_result=True, send_events=False)
def gc(**_: Any) -> None:
    """Delete what is past its retention, free lost permits, then let the team clean up (`signals.gc_done`)."""
    _drop_broken_connection()
    if _pass("gc", conf.gc_seconds, prune.batch, permits.recover):
        for receiver, answer in gc_done.send_robust(sender=None):
            if isinstance(answer, Exception):
                facts = {"receiver": getattr(receiver, "__qualname__", "?"), "error": type(answer).__name__}
                observe("gc.receiver_failed", level=logging.ERROR, **facts)


def _let_start() -> int:
    """Once a pass: what is unblocked by one look is counted on by the next only when it has been claimed."""
    limits.settle()
    permits.unblock_some()
    permits.refill()
    return 0


def _stop_consuming(exit_code: int) -> None:
    """As a warm shutdown by a signal, with another exit code."""
    state.should_stop = exit_code  # type: ignore[assignment]


def _leave_in_time() -> None:
    """End this process if agents' code goes on after its runs were handed back, and nobody else's task does."""
    if not executor.leave_in_time():
        return
    others = {str(request.name) for request in state.active_requests} - {hints.EXECUTE}
    if _is_pool_child() or not others:
        flower.flush(_FLUSH_SECONDS)
        if not _is_pool_child():
            presence.leave()
            exposer.stop()
        os._exit(os.EX_OK)


keeper = LeaseKeeper(renew_leases)
presence = Presence()
exposer = Exposer()
executor = Executor(keeper, stop_consuming=_stop_consuming)
standby = Standby(
    {
        "due_tick": Pass(lambda: conf.due_tick_seconds, due_tick),
        "sweep": Pass(lambda: conf.sweep_seconds, sweep),
        "gc": Pass(lambda: conf.gc_seconds, gc),
    },
    chores=[_leave_in_time, presence.look],
)

# The worker process that started the pool: agents that run in it share it, those in its forked children do not.
_parent_pid = os.getpid()
# What this worker has still to write down of itself, and when it may try again.
announcement: dict[str, Any] = {}
_register_at = 0.0


@signals.worker_init.connect
def _begin(sender: Any = None, **_: Any) -> None:
    """Before the pool forks: what its children are to inherit."""
    global _parent_pid
    _parent_pid = os.getpid()
    presence.begin(str(sender.hostname))
    flower.worker = str(sender.hostname) if sender.task_events else ""
    exposer.prepare()
    executor.prepare()


@signals.worker_process_init.connect
def _begin_in_child(**_: Any) -> None:
    keeper.listen(hints.to_stop)
    standby.start()
    flower.start()


@signals.worker_ready.connect
def _announce(sender: Any = None, **_: Any) -> None:
    """Write down what this worker can run, once it consumes; one that serves maintenance alone runs no agents."""
    exposer.start()
    if "prefork" not in type(sender.pool).__module__:
        # A parent that forks must have no threads of ours: its children do this instead.
        keeper.listen(hints.to_stop)
        standby.start()
        flower.start()
        executor.slot_count = int(sender.pool.num_processes or 1)
        _hurry_when_told()
    queues = {str(queue.name) for queue in sender.task_consumer.queues}
    if queues - {conf.maintenance_queue}:
        announcement.update(worker=str(sender.hostname), queues=queues, slots=int(sender.pool.num_processes or 1))
        _register()


def _hurry_when_told() -> None:
    """Have SIGQUIT end this process at once while its threads run something: it is left to its lease.

    Celery would kill what runs, cannot where that is a thread, and would wait for it instead, however long it takes.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a worker inside another program, whose signals are its own
    by_celery = signal.getsignal(signal.SIGQUIT)

    def hurry(number: int, frame: FrameType | None) -> None:
        if state.active_requests:
            os._exit(os.EX_SOFTWARE)
        if callable(by_celery):
            by_celery(number, frame)

    signal.signal(signal.SIGQUIT, hurry)


@signals.heartbeat_sent.connect
def _beat(**_: Any) -> None:
    presence.beat()
    exposer.look()
    _register()


def _register() -> None:
    """Announce this worker, unless that was done; if the database is away, at one of the next heartbeats."""
    global _register_at
    if not announcement or time.monotonic() < _register_at:
        return
    try:
        registry.announce(**announcement)
        announcement.clear()
    except (OperationalError, InterfaceError) as error:
        _register_at = time.monotonic() + conf.registration_seconds
        observe("worker.register_failed", level=logging.ERROR, error=type(error).__name__)
    finally:
        # A pool child forked later must not inherit an open connection.
        connection.close()


@signals.worker_process_shutdown.connect
def _end_in_child(**_: Any) -> None:
    flower.flush(_FLUSH_SECONDS)


@signals.worker_shutting_down.connect
def _stop_claiming(**_: Any) -> None:
    executor.stop_claiming()


@signals.worker_shutdown.connect
def _end(**_: Any) -> None:
    """The last step of a warm shutdown, after the pool's slots: like theirs, the runs of the loop are waited for.

    SIGQUIT hurries: what still runs is left to its lease.
    """
    has_drained = executor.drain(is_hurried=lambda: bool(state.should_terminate))
    flower.flush(_FLUSH_SECONDS)
    presence.leave()
    exposer.stop()
    if not has_drained:
        os._exit(os.EX_SOFTWARE)


def _is_pool_child() -> bool:
    return os.getpid() != _parent_pid


def _drop_broken_connection() -> None:
    """Connect anew if the server has gone away since the last task, so that no work finds out half-way."""
    if connection.connection is not None and not connection.is_usable():
        connection.close()


def _pass(name: str, interval: float, *batches: Callable[[], int]) -> bool:
    """Repeat each batch until it finds nothing or the pass has lasted `pass_seconds`; write down who ran it when.

    One batch that fails keeps no other from running. False, and nothing done, if the last pass began less than half an
    interval (seconds, by the database's clock) ago.
    """
    if not Maintenance.objects.begin(name, at_most_every=interval / 2):
        return False
    stop_at = time.monotonic() + conf.pass_seconds
    counts = [_repeat(name, batch, stop_at) for batch in batches]
    Maintenance.objects.finish(name, worker=f"{os.uname().nodename}:{os.getpid()}")
    if any(counts):
        observe(f"{name}.done", counts=counts)
    return True


def _repeat(name: str, batch: Callable[[], int], stop_at: float) -> int:
    done = 0
    try:
        while found := batch():
            done += found
            if time.monotonic() >= stop_at:
                break
    except Exception as error:  # told, and tried again by the next pass
        observe(f"{name}.failed", level=logging.ERROR, batch=batch.__name__, error=type(error).__name__, done=done)
        connection.close()
    return done
