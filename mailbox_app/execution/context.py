"""`Context`: what a team's agent may do. Every verb with an effect is journalled and fenced by the claim."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, NoReturn, TypeVar, cast

from mailbox_app import catalogue, outcomes
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, Stop, Suspended, Transient
from mailbox_app.execution import emitting
from mailbox_app.execution.asking import Asking
from mailbox_app.execution.attention import Attention
from mailbox_app.execution.contract import IncomingMessage
from mailbox_app.execution.journal import Journal
from mailbox_app.execution.listening import Listening
from mailbox_app.execution.live import LiveText
from mailbox_app.execution.spawning import Spawning
from mailbox_app.models import Kind, Message, Visibility
from mailbox_app.operations import checkpoint, deliver, inputs, waits
from mailbox_app.operations.emitted import Emission
from mailbox_app.operations.ownership import Claim, lost

Result = TypeVar("Result")

# Of one call; what the run's counters add up to stays far below what their columns hold.
_MOST_TOKENS = 10**12
_MOST_STEPS = 10**6
_MOST_MESSAGE = 2_000
# As far ahead as a run may be scheduled.
_LONGEST_SECONDS = 366 * 86_400


class Context(Asking, Listening, Spawning):
    """One activation of one run, as its agent sees it.

    The agent runs its turn from the top at every attempt, with the same `messages`. A verb that was completed before
    returns its record and does nothing. Once the run was cancelled or its lease lost, every verb raises that again.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._journal = Journal(claim)
        spec = catalogue.find(claim.agent)
        self._ends_at = time.monotonic() + float((spec.timeout_seconds if spec else None) or conf.timeout_seconds)
        # The last number a checkpoint of this activation has handed over; what was read past it is handed over again.
        self._handed_over = 0
        self._must_hand_over = claim.replays
        # The first checkpoint of a turn that was begun before hands over what others of it have read.
        self._attention = Attention(has_input=claim.replays)
        self._live = LiveText(claim)
        self._children: list[str] = []
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

    @property
    def config(self) -> dict[str, Any]:
        """The published configuration the run is bound to (AgentVersion); {} if it is bound to none."""
        return self._claim.config

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
        written = self._journal.once(entry, checkpoint.say, said)
        self._live.close()
        return cast(dict[str, Any], written)

    def emit(
        self, kind: str, payload: Any = None, *, key: str | None = None, visibility: str = Visibility.PUBLIC
    ) -> None:
        """Record an event of your own kind on the thread. `key` makes it unique in the thread.

        It waits for no database: what you emit is recorded with your next other verb, after `emit_seconds` at most
        (half a second), and with the end of this activation however it ends. With a lost lease it is lost, and the next
        attempt emits it again. Raises LeaseLost once the activation is over, as every verb does.
        """
        if self._emit(kind, payload, key=key, visibility=visibility):
            self._flush()

    def _emit(self, kind: str, payload: Any, *, key: str | None, visibility: str) -> bool:
        """Gather one event; whether there are so many that they are to be recorded now."""
        inputs.text("kind", kind, most=100)
        if kind in Kind.values:
            raise InvalidInput("kind", "reserved", f"the event kind {kind} belongs to the system")
        inputs.choice("visibility", visibility, Visibility.values)
        if key is not None:
            inputs.text("key", key)
        body = inputs.document("payload", {} if payload is None else payload, most_bytes=conf.max_metadata_bytes)
        entry = self._journal.entry("emit", kind, key, [body, visibility])
        if self._journal.known(entry) is not None:
            return False
        emitted, size = self._claim.emitted, len(json.dumps(body))
        if not emitted.add(Emission(record=entry, payload=body, key=key, visibility=visibility, size=size)):
            raise lost(self._claim)
        if not emitted.is_full:
            emitting.soon(self._claim)
        return emitted.is_full

    def _flush(self) -> None:
        self._journal.persist(lambda: self._journal.fenced(checkpoint.flush))

    def delta(self, text: str) -> None:
        """Show a piece of text to whoever watches the run now. It is stored nowhere."""
        self._journal.check()
        if text:
            self._live.delta(text)

    def usage(
        self, *, input_tokens: int = 0, output_tokens: int = 0, steps: int = 1, key: str | None = None
    ) -> dict[str, int]:
        """Add to what the run has used, once; returns its totals: {"input_tokens", "output_tokens", "steps"}."""
        used = {
            "input_tokens": inputs.whole("input_tokens", input_tokens, least=0, most=_MOST_TOKENS),
            "output_tokens": inputs.whole("output_tokens", output_tokens, least=0, most=_MOST_TOKENS),
            "steps": inputs.whole("steps", steps, least=0, most=_MOST_STEPS),
        }
        entry = self._journal.entry("usage", "usage", key, used)
        return cast(dict[str, int], self._journal.once(entry, checkpoint.usage, **used))

    def send(
        self,
        content: Any,
        *,
        thread_id: uuid.UUID | str | None = None,
        thread_key: str | None = None,
        agent: str = "",
        message_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Post a message to another thread of your scope, where a run will answer it: durable now, delivered once.

        Name the thread by its id or by a key of yours, which makes it if it is missing. What you send to one thread
        arrives in order. `message_id` is your own name for it, unique in the scope: the same id again with the same
        content is the same message; left out, one is derived from this use. A delivery that is refused becomes the
        event `DeliveryFailed` on your thread. Returns {"outbox_id", "thread_id", "message_id"}.
        """
        given = inputs.NewMessage(content=content, metadata=metadata or {}, sender=self.agent)
        said = inputs.messages([given])[0]
        target = inputs.identifier("thread_id", thread_id)
        inputs.optional_text("thread_key", thread_key)
        if (target is None) == (thread_key is None):
            raise InvalidInput("thread_id", "contradiction", "give either thread_id or thread_key")
        inputs.text("agent", agent, may_be_blank=True)
        inputs.optional_text("message_id", message_id)
        arguments = [said.content, dict(said.metadata), target and str(target), thread_key, agent, message_id]
        entry = self._journal.entry("send", "message", key, arguments)
        payload = {
            "content": said.content,
            "metadata": dict(said.metadata),
            "role": said.role,
            "sender": said.sender,
            "agent": agent,
            "message_id": message_id or self._journal.derived_id(entry),
            "source_run_id": self.run_id,
        }
        sent = self._journal.once(entry, deliver.send, thread_id=target, thread_key=thread_key, payload=payload)
        return cast(dict[str, Any], sent)

    def suspend(
        self,
        reason: str,
        *,
        name: str = "",
        seconds: float | None = None,
        until: datetime | None = None,
        message: str = "",
        key: str | None = None,
    ) -> Any:
        """Wait for something, without a worker; returns the payload it came with.

        It raises Suspended, which ends this activation: let it pass. Later the agent runs its turn from the top again,
        and this call returns. `reason`: "external_event" or "manual_pause" wait for a resume of this `name`, until the
        time given (neither: the setting `wait_ttl_seconds`), and then the run ends, stopped; "rate_limit" goes on by
        itself at that time; "user_input" waits for messages, and returns them (IncomingMessage). `until` and `message`
        may differ from one call to the next, the rest may not.
        """
        inputs.choice("reason", reason, waits.SUSPENDS)
        inputs.text("name", name, may_be_blank=True)
        inputs.text("message", message, most=_MOST_MESSAGE, may_be_blank=True)
        inputs.instant("until", until)
        if seconds is not None:
            seconds = inputs.duration("seconds", seconds, most=_LONGEST_SECONDS)
        given = [limit for limit in (seconds, until) if limit is not None]
        if len(given) == 2 or (reason == waits.RATE_LIMIT and not given):
            raise InvalidInput("seconds", "contradiction", f"{reason}: give either seconds or until")
        entry = self._journal.entry("suspend", name or reason, key, [reason, name, seconds])
        known = self._journal.known(entry)
        if known is not None:
            return IncomingMessage.told(known.result) if reason == waits.USER_INPUT else known.result
        slot = {field: value for field, value in asdict(entry).items() if field != "verb"}
        wait = outcomes.Suspended(reason=reason, name=name, message=message, seconds=seconds, until=until, entry=slot)
        self._journal.stop_with(Suspended(f"run {self.run_id} waits: {reason}", wait=wait))
        return self._journal.check()

    def retry_after(self, seconds: float, message: str = "") -> NoReturn:
        """End this activation and have it tried again after that time (at most a week). It uses up an attempt."""
        raise Transient(message or f"again in {seconds} s", retry_after=seconds)

    def checkpoint(self) -> list[IncomingMessage]:
        """Stop here if the run was cancelled; returns what arrived for it to read at this step, oldest first.

        Messages that checkpoints of this turn had read before it was run again are handed over by the first one.
        """
        self._journal.check()
        self._attention.forget()
        arrived = self._journal.persist(self._reach)
        if arrived:
            self._attention.expect_more()
            self._handed_over = arrived[-1].seq or 0
        self._must_hand_over = False
        return [IncomingMessage.of(message) for message in arrived]

    def _reach(self) -> list[Message]:
        again = {"after_seq": self._handed_over} if self._must_hand_over else {}
        # Until it is answered, its COMMIT may have won.
        self._must_hand_over = True
        reached: list[Message] = self._journal.fenced(checkpoint.reach, **again)
        return reached

    def belongs_to(self, task: object) -> None:
        """Take this task for the agent's own; for the runner."""
        self._journal.belongs_to(task)

    def stop_with(self, stop: Stop) -> None:
        """Make every further verb raise this; for the runner and the lease keeper, not for agents."""
        self._journal.stop_with(stop)
        self._attention.stir()

    def fall_silent(self) -> None:
        """Say no more live, and keep nothing of it for who comes later; for the runner, when the turn is over."""
        self._live.end()

    @property
    def stop(self) -> Stop | None:
        """What ended this activation, if anything did."""
        return self._journal.stop
