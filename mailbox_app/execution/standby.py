"""Stand in for beat: run the maintenance passes from an executing process when they are late by two intervals."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from django.db import connection

from mailbox_app.models import Maintenance
from mailbox_app.telemetry import observe

# Late by so many intervals: beat and its worker may be slow without being gone.
_LATE_INTERVALS = 2
# The due tick may be wanted many times a second; looking whether it is late need not be.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Pass:
    """One periodic pass: how often it should run (seconds), and what runs it."""

    interval: Callable[[], float]
    run: Callable[[], object]


class Standby:
    """One thread of a worker process that looks whether the passes are on time, and runs those that are not.

    Any number of processes may stand by: a pass that has just begun somewhere begins nowhere else.
    """

    def __init__(self, passes: Mapping[str, Pass], *, chores: Sequence[Callable[[], None]] = ()) -> None:
        self._passes = passes
        # What else is to be done every second or so, and is quickly done.
        self._chores = chores
        self._pid = 0

    def start(self) -> None:
        """Begin to look, in this process; a second call does nothing, a forked child has inherited nothing."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            threading.Thread(target=self._look_forever, name="mailbox-standby", daemon=True).start()

    def look(self) -> list[str]:
        """Run the passes that are late; returns their names."""
        late = [name for name, one in self._passes.items() if self._is_late(name, one)]
        for name in late:
            observe("standby.took_over", level=logging.WARNING, maintenance=name)
            self._passes[name].run()
        return late

    def _is_late(self, name: str, one: Pass) -> bool:
        return Maintenance.objects.is_late(name, by=_LATE_INTERVALS * one.interval())

    def _look_forever(self) -> None:
        while True:
            time.sleep(max(_LOOK_SECONDS, min(one.interval() for one in self._passes.values())))
            try:
                for chore in self._chores:
                    chore()
                self.look()
            except Exception as error:  # the database may be away; this thread must not end with it
                observe("standby.failed", level=logging.WARNING, error=type(error).__name__)
            finally:
                connection.close()
