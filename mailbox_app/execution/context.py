"""`Context`: what a team's agent may do. Every verb with an effect is journalled and fenced by the claim."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, Stop
from mailbox_app.execution.contract import IncomingMessage
from mailbox_app.execution.journal import Journal
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Kind, Message, Visibility
from mailbox_app.operations import checkpoint, inputs
from mailbox_app.operations.ownership import Claim

Result = TypeVar("Result")


class Context:
    """One activation of one run, as its agent sees it.

    The agent runs its turn from the top at every attempt, with the same `messages`. A verb that was completed before
    returns its record and does nothing. Once the run was cancelled or its lease lost, every verb raises that again.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._journal = Journal(claim)
        self._live = LiveText(claim)
        self.messages = [IncomingMessage.of(message) for message in claim.messages]
        self.state: dict[str, Any] = claim.state

    @property
    def thread_id(self) -> str:
        return str(self._claim.thread_id)

    @property
    def run_id(self) -> str:
        return str(self._claim.run_id)

    @property
    def dispatch_id(self) -> str:
        return str(self._claim.dispatch_id)

    @property
    def agent(self) -> str:
        return self._claim.agent

    @property
    def attempt(self) -> int:
        """1 the first time; counts failures and lost leases."""
        return self._claim.attempt

    @property
    def turn(self) -> int:
        return self._claim.turn

    @property
    def fence_token(self) -> int:
        """Strictly increasing per thread: hand it to systems that should refuse a worker that lost its lease."""
        return self._claim.fence

    @property
    def options(self) -> dict[str, Any]:
        return self._claim.options

    @property
    def metadata(self) -> dict[str, Any]:
        return self._claim.metadata

    def history(self, limit: int = 50) -> list[IncomingMessage]:
        """The last `limit` messages of the thread before this turn's first input, oldest first."""
        self._journal.check()
        rows = Message.objects.filter(thread_id=self._claim.thread_id, seq__lt=self._claim.first_seq).committed()
        latest = self._journal.persist(lambda: list(rows.order_by("-seq")[: max(0, limit)]))
        return [IncomingMessage.of(row) for row in reversed(latest)]

    def step(
        self, name: str, function: Callable[..., Result], *args: Any, key: str | None = None, **kwargs: Any
    ) -> Result:
        """Call the function once per run and turn, also across crashes, and return its result as JSON gives it back.

        Arguments and result are JSON; other objects go into a closure. The function may run again after a crash that
        came before its record was committed, never after. Steps do not nest.
        """
        entry = self._journal.entry("step", name, key, [list(args), kwargs])
        known = self._journal.known(entry)
        if known is not None:
            return cast(Result, known.result)
        with self._journal.inside(entry):
            result = inputs.document(
                f"result of step {name}", function(*args, **kwargs), most_bytes=conf.max_result_bytes
            )
        self._journal.check()
        return cast(Result, self._journal.effect(entry, checkpoint.record, result))

    def say(self, content: Any, *, key: str | None = None) -> dict[str, Any]:
        """Append an assistant message to the thread now; returns {"message_id", "seq"}."""
        said = inputs.messages([inputs.NewMessage(content=content, role="assistant")])[0].content
        entry = self._journal.entry("say", "message", key, said)
        return cast(dict[str, Any], self._journal.once(entry, checkpoint.say, said))

    def emit(
        self, kind: str, payload: Any = None, *, key: str | None = None, visibility: str = Visibility.PUBLIC
    ) -> dict[str, Any]:
        """Record an event of your own kind on the thread; returns {"cursor"}. `key` makes it unique in the thread."""
        inputs.text("kind", kind, most=100)
        if kind in Kind.values:
            raise InvalidInput("kind", "reserved", f"the event kind {kind} belongs to the system")
        inputs.choice("visibility", visibility, Visibility.values)
        if key is not None:
            inputs.text("key", key)
        body = inputs.document("payload", {} if payload is None else payload, most_bytes=conf.max_metadata_bytes)
        entry = self._journal.entry("emit", kind, key, [body, visibility])
        written = self._journal.once(entry, checkpoint.emit_event, kind, body, key=key, visibility=visibility)
        return cast(dict[str, Any], written)

    def delta(self, text: str) -> None:
        """Show a piece of text to whoever watches the run now. It is stored nowhere."""
        self._journal.check()
        if text:
            self._live.delta(text)

    def checkpoint(self) -> list[IncomingMessage]:
        """Stop here if the run was cancelled; returns what arrived for it to read at this step, oldest first."""
        self._journal.check()
        arrived = self._journal.persist(lambda: self._journal.fenced(checkpoint.reach))
        return [IncomingMessage.of(message) for message in arrived]

    def stop_with(self, stop: Stop) -> None:
        """Make every further verb raise this; for the runner and the lease keeper, not for agents."""
        self._journal.stop_with(stop)

    @property
    def stop(self) -> Stop | None:
        """What ended this activation, if anything did."""
        return self._journal.stop
