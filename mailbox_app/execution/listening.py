"""What an agent can do to hear of what was said to its run before its next checkpoint: `sleep`, `has_input`."""

import time

from mailbox_app import channel
from mailbox_app.execution.attention import Attention
from mailbox_app.execution.journal import Journal
from mailbox_app.operations import inputs

# As far ahead as a run may be scheduled.
_LONGEST_SECONDS = 366 * 86_400


class Listening:
    """The verbs of `Context` that listen. They have no effect, and no record in the journal."""

    _journal: Journal
    _attention: Attention

    @property
    def has_input(self) -> bool:
        """Whether `checkpoint` may have something to hand over now. It asks nobody: cheap in any loop.

        Within milliseconds of what was said, through Redis; without, once the lease has been renewed.
        """
        return self._attention.has_input

    @property
    def is_cancelled(self) -> bool:
        """Whether the run was told to stop, or is lost: every verb raises that from now on. It asks nobody."""
        return self._journal.stop is not None

    def sleep(self, seconds: float) -> bool:
        """Pause, as `time.sleep`, but for no longer than until something is said to the run; returns `has_input`.

        For what polls, or waits between two tries. It raises what stops the run as soon as that is told; once it has
        ended early, it does so again only for something new. In a test (`run_until_idle`) it does not pause.
        """
        pause = Pause(self._journal, self._attention, seconds)
        with self._attention.waiting() as wait:
            while (left := pause.left()) > 0:
                wait(left)
        return pause.end()

    def stir(self) -> None:
        """Wake the agent where it waits for something; for the lease keeper, not for agents."""
        self._attention.stir()

    def told(self, revision: int) -> None:
        """There is input for the next step, at this revision of what is pending; for the lease keeper."""
        self._attention.told(revision)


class Pause:
    """One call of `sleep`."""

    def __init__(self, journal: Journal, attention: Attention, seconds: float) -> None:
        journal.check()
        wanted = inputs.duration("seconds", seconds, most=_LONGEST_SECONDS)
        self._journal, self._attention = journal, attention
        # In a test nobody says anything while the agent runs.
        self._ends_at = time.monotonic() + (0.0 if channel.is_silenced() else wanted)

    def left(self) -> float:
        """Seconds until it ends, if nothing happens; none when something has."""
        if self._journal.stop is not None or self._attention.take_news():
            return 0.0
        return self._ends_at - time.monotonic()

    def end(self) -> bool:
        """Whether there is something to read. Raises what has stopped the activation."""
        self._journal.check()
        return self._attention.has_input
