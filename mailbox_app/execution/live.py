"""Live text of a running agent: seen by who listens now, stored nowhere; the durable message closes it."""

from mailbox_app import channel, saying
from mailbox_app.operations.ownership import Claim


class LiveText:
    """Tells the deltas of one turn, each with the attempt and the offset (characters) where it belongs."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._speech = saying.Speech(
            thread_id=claim.thread_id, run_id=claim.run_id, fence=claim.fence, turn=claim.turn, attempt=claim.attempt
        )

    def delta(self, text: str) -> None:
        """Say a piece of text, and wait for nobody; Redis trouble drops it."""
        offset = self._speech.say(text)
        if channel.is_silenced():  # a test hears each piece
            message = {"type": "delta", "attempt": self._claim.attempt, "offset": offset, "text": text}
            channel.publish(saying.TEXT.format(run_id=self._claim.run_id), message)

    def close(self) -> None:
        """What was said so far is in a durable message."""
        self._speech.close()

    def end(self) -> None:
        """The turn is over, however it ended: nobody who comes later gets what it said."""
        self._speech.end()
