"""Where one process can execute: how many runs at the same time, and how many places were abandoned by their runs."""

import logging
import threading
import time
import uuid
from collections.abc import Callable

from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

# A run past its limit that notices gives its place back well within this; only one that does not wears the process out.
_GRACE_SECONDS = 5.0


class Places:
    """The slots of a thread pool, or the seats on the event loop, of this process.

    A thread cannot be killed: a run past its time limit is settled without it, and its place is abandoned until the
    code returns. When half of the places are, `on_worn` is called: this process is to be replaced.
    """

    def __init__(self, kind: str, count: Callable[[], int], *, on_worn: Callable[[str], None]) -> None:
        self._kind, self._count, self._on_worn = kind, count, on_worn
        self._changing = threading.Lock()
        self._taken = 0
        self._abandoned: dict[uuid.UUID, float] = {}
        self._is_watched = False

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def abandoned(self) -> int:
        """Places whose runs have ended and whose code has not."""
        return len(self._abandoned)

    @property
    def are_many(self) -> bool:
        """Whether several runs may be executed at the same time."""
        return self._count() > 1

    def take(self) -> bool:
        """Take a place; False when none is free."""
        with self._changing:
            if self._taken >= self._count():
                return False
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._changing:
            self._taken -= 1

    def abandon(self, claim: Claim) -> None:
        """The run of this claim has ended, and its code goes on."""
        with self._changing:
            self._abandoned[claim.token] = time.monotonic()
            count, starts = len(self._abandoned), not self._is_watched
            self._is_watched = True
        observe(
            "slot.abandoned",
            level=logging.WARNING,
            kind=self._kind,
            run_id=claim.run_id,
            dispatch_id=claim.dispatch_id,
            agent=claim.agent,
            abandoned=count,
            slots=self._count(),
        )
        if starts:
            threading.Thread(target=self._watch, name="mailbox-places", daemon=True).start()

    def regain(self, claim: Claim) -> None:
        """The code of this claim's run has returned; nothing if its place was not abandoned."""
        with self._changing:
            since = self._abandoned.pop(claim.token, None)
        if since is not None:
            observe(
                "slot.regained",
                kind=self._kind,
                run_id=claim.run_id,
                agent=claim.agent,
                seconds=round(time.monotonic() - since, 3),
            )

    def wear_out(self, reason: str) -> None:
        """No place is of any use any more."""
        if self._count():
            self._on_worn(reason)

    def _watch(self) -> None:
        """Until nothing is abandoned any more, or too much is."""
        while True:
            with self._changing:
                if not self._abandoned:
                    self._is_watched = False
                    return
                long_ago = time.monotonic() - _GRACE_SECONDS
                worn = sum(since <= long_ago for since in self._abandoned.values())
            # No count: this process is no worker, and nobody would replace it.
            if self._count() and 2 * worn >= self._count():
                self.wear_out(f"{worn} of {self._count()} {self._kind}s abandoned")
                return
            time.sleep(0.1)
