"""This worker's registrations say that it lives, while it does."""

import mmap
import struct
import threading
import time

from django.db import connection

from mailbox_app.conf import conf
from mailbox_app.models import AgentRegistration
from mailbox_app.telemetry import observe

# Celery's heartbeats come every two seconds. A worker without them takes no signals, whatever its children still do.
_SILENT_SECONDS = 10.0
# A database that does not answer must not keep a worker from ending.
_LEAVE_SECONDS = 2.0


class Presence:
    """One worker, seen as alive: by its consumer, which beats, and by the processes that execute, which write it down.

    The consumer's process forks, so it must hold no connection, and its loop must wait for no database: it only leaves
    the time in memory that it shares with its children.
    """

    def __init__(self) -> None:
        self._worker = ""
        self._beat: mmap.mmap | None = None
        self._write_at = 0.0

    def begin(self, worker: str) -> None:
        """Before the pool forks: whose presence it is."""
        self._worker, self._beat = worker, mmap.mmap(-1, 8)

    def beat(self) -> None:
        """The worker's consumer is alive."""
        if self._beat is not None:
            self._beat[:8] = struct.pack("d", time.monotonic())

    def look(self) -> None:
        """Write down that the worker lives, every `registration_seconds`; any number of its processes may."""
        now = time.monotonic()
        if self._beat is None or now < self._write_at:
            return
        (beat_at,) = struct.unpack("d", self._beat[:8])
        # Zero: it was told to send no heartbeats (--without-heartbeat), and lives as long as this process does.
        if beat_at and now - beat_at > max(_SILENT_SECONDS, conf.registration_seconds):
            return
        self._write_at = now + conf.registration_seconds
        AgentRegistration.objects.of_worker(self._worker).touch()

    def leave(self) -> None:
        """The worker ends: it is live no longer, and its agents are remembered."""
        if self._beat is None:
            return
        writing = threading.Thread(target=self._write_that_it_left, name="mailbox-leave", daemon=True)
        writing.start()
        writing.join(_LEAVE_SECONDS)

    def _write_that_it_left(self) -> None:
        try:
            AgentRegistration.objects.of_worker(self._worker).leave()
        except Exception as error:  # the worker ends all the same, and is missed after a while
            observe("worker.leave_failed", worker=self._worker, error=type(error).__name__)
        finally:
            connection.close()
