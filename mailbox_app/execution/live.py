"""Live text of a running agent: seen by who listens now, stored nowhere; the durable message closes it."""

from mailbox_app import channel
from mailbox_app.operations.ownership import Claim


class LiveText:
    """Publishes deltas of one activation, each with the attempt and the offset (characters) where it belongs."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._offset = 0

    def delta(self, text: str) -> None:
        """Send a piece of text; Redis trouble drops it."""
        channel.publish(
            f"run:{self._claim.run_id}",
            {"type": "delta", "attempt": self._claim.attempt, "offset": self._offset, "text": text},
        )
        self._offset += len(text)
