"""Show activations in Flower: each as a task `mailbox.run.<agent>`, its uuid the dispatch's id.

The process that executes hears of its own moves on `telemetry.observed`, after they are committed, and a thread of its
own sends them as Celery's task events: the broker's trouble costs a run nothing. An activation is shown whole or not at
all, up to `flower_runs_per_second`; what is not shown is counted. What Flower shows are ids and outcomes, no payload.

A lease that was lost is told by the sweep that took it back, in the name of the worker that had it: that one may be
gone, and where it is not, the next may have begun already.
"""

import logging
import os
import threading
import time
import uuid
from collections import deque
from typing import Any

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.telemetry import observe, observed

# Events of one message to the broker, and how long the first of them waits for the others: a message costs as much as a
# run does.
_BATCH = 100
_GATHER_SECONDS = 0.2
# Events that wait while the broker is slow; what comes on top is dropped.
_MOST_WAITING = 2_000
# Received, started and its end.
_EVENTS_OF_ONE = 3


class Flower:
    """This process's activations, as Flower is told of them."""

    def __init__(self) -> None:
        # The worker's name, as Flower knows it; empty: nothing is shown.
        self.worker = ""
        self._pid = 0
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._is_hurried = False
        self._shown: dict[uuid.UUID, float] = {}
        self._allowed, self._allowed_at = 0.0, 0.0

    def start(self) -> None:
        """Begin to show, in this process; a second call does nothing, a forked child has inherited nothing."""
        if not self.worker or self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._changed, self._waiting, self._shown = threading.Condition(), deque(), {}
        self._allowed, self._allowed_at = max(1.0, conf.flower_runs_per_second), time.monotonic()
        observed.connect(self._hear, dispatch_uid="mailbox.flower")
        threading.Thread(target=self._send_forever, name="mailbox-flower", daemon=True).start()

    def flush(self, seconds: float) -> bool:
        """Wait until all was sent, for so long at most; whether it was."""
        if self._pid != os.getpid():
            return True
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting, timeout=seconds)
            finally:
                self._is_hurried = False

    def _hear(self, name: str, fields: dict[str, Any], **_: Any) -> None:
        if name == "dispatch.moved":
            self._show(**fields)
        elif name == "run.executed":
            with self._changed:
                self._shown.pop(fields["dispatch_id"], None)
        elif name == "run.timed_out":
            self.flush(0.5)  # the process is about to end itself

    def _show(self, *, dispatch_id: uuid.UUID, outcome: str, code: str | None, **told: Any) -> None:
        if "waited" in told:
            self._begin(dispatch_id, told)
            return
        if not outcome:
            return
        with self._changed:
            began = self._shown.pop(dispatch_id, None)
        is_lost = outcome == "lease_lost" or code == "lost"
        worker = str(told.get("by") or "").rpartition(":")[0] if is_lost else self.worker
        if began is None and not (is_lost and worker and self._may_show()):
            return
        seconds = told.get("ran", 0.0) if began is None else time.monotonic() - began
        self._put(worker, _ended(str(dispatch_id), outcome, code, seconds))

    def _begin(self, dispatch_id: uuid.UUID, told: dict[str, Any]) -> None:
        if not self._may_show():
            _drop("limit", _EVENTS_OF_ONE)
            return
        with self._changed:
            self._shown[dispatch_id] = time.monotonic()
        named = {"thread": str(told["thread_id"]), "run": str(told["run_id"]), "attempt": told["attempt"]}
        of = {"uuid": str(dispatch_id), "root_id": str(dispatch_id), "parent_id": None}
        received = {
            **of, "name": f"mailbox.run.{told['agent']}", "args": "()", "kwargs": repr(named),
            "retries": told["attempt"] - 1, "eta": None, "expires": None,
        }  # fmt: skip
        self._put(self.worker, {"type": "task-received", **received}, {"type": "task-started", **of})

    def _may_show(self) -> bool:
        with self._changed:
            now, rate = time.monotonic(), conf.flower_runs_per_second
            self._allowed = min(max(1.0, rate) if rate else 0.0, self._allowed + rate * (now - self._allowed_at))
            self._allowed_at = now
            if self._allowed < 1:
                return False
            self._allowed -= 1
            return True

    def _put(self, worker: str, *events: dict[str, Any]) -> None:
        now = time.time()
        with self._changed:
            is_full = len(self._waiting) + len(events) > _MOST_WAITING
            if not is_full:
                was_empty = not self._waiting
                self._waiting.extend((worker, {"timestamp": now, **event}) for event in events)
                if was_empty or len(self._waiting) >= _BATCH:
                    self._changed.notify_all()
        if is_full:
            _drop("full", len(events))

    def _is_enough(self) -> bool:
        return self._is_hurried or len(self._waiting) >= _BATCH

    def _send_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._changed.wait_for(self._is_enough, timeout=_GATHER_SECONDS)
                batch = [self._waiting[index] for index in range(min(_BATCH, len(self._waiting)))]
            # A message is in the name of one worker.
            worker = batch[0][0]
            events = [event for named, event in batch if named == worker]
            events = events if len(events) == len(batch) else [batch[0][1]]
            try:
                was_sent = hints.show(worker, events)
            except Exception as error:  # this thread must not end while agents run
                observe("flower.failed", error=type(error).__name__)
                was_sent = False
            if not was_sent:
                _drop("broker", len(events))
            with self._changed:
                for _ in events:
                    self._waiting.popleft()
                self._changed.notify_all()


def _drop(reason: str, events: int) -> None:
    observe("flower.dropped", level=logging.DEBUG, reason=reason, events=events)


def _ended(task: str, outcome: str, code: str | None, seconds: float) -> dict[str, Any]:
    """The event for an activation's end: its type says how Flower lists it, its text the outcome and the code."""
    text = outcome.replace("_", " ") + (f": {code}" if code else "")
    if outcome not in ("retry", "lease_lost", "handed_back", "dead_letter", "cancelled"):
        return {"type": "task-succeeded", "uuid": task, "result": repr(text), "runtime": seconds}
    if outcome == "cancelled":
        return {"type": "task-revoked", "uuid": task, "terminated": False, "signum": None, "expired": False,
                "result": repr(text)}  # fmt: skip
    kind = "task-failed" if outcome == "dead_letter" else "task-retried"
    return {"type": kind, "uuid": task, "exception": text, "traceback": "", "runtime": seconds}


flower = Flower()
