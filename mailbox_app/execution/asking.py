"""What an agent asks humans, and the answers it gets: the verbs `ask`, `ask_all` and `wait_for_decision`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailbox_app import channel, outcomes
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, Suspended
from mailbox_app.execution.attention import Attention
from mailbox_app.execution.journal import Journal
from mailbox_app.models import Ticket
from mailbox_app.operations import checkpoint, inputs, schemas, tickets, waits
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import TicketStatus

# As far ahead as a run may be scheduled.
_LONGEST_SECONDS = 366 * 86_400
_MOST_QUESTION = 10_000
# Of one call: each is a row and an event.
_MOST_QUESTIONS = 100
# How often a live wait looks for itself, whatever it is told.
LOOK_SECONDS = 1.0
# Of what is left of the activation's time, a live wait takes so much at most.
_LIVE_SHARE = 0.8
# As the message of a wait.
_MOST_MESSAGE = 2_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of `ctx.ask_all`; its fields are the arguments of `ctx.ask`."""

    name: str
    question: str = ""
    arguments: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None
    resume_mode: str = tickets.RESUME_MODES[0]
    expires_in: float | None = None
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a question. `action`: "resume", with the payload it was answered with, or "cancel".

    `expired`: nobody has answered in time, which is a "cancel" by nobody.
    """

    name: str
    action: str
    payload: Any
    expired: bool
    decision_id: str
    answered_by: str
    resume_mode: str


class Asking:
    """The verbs of `Context` that wait for humans."""

    _claim: Claim
    _journal: Journal
    _attention: Attention
    # By this process's clock: the activation's time limit.
    _ends_at: float

    def ask(
        self,
        name: str,
        *,
        question: str = "",
        arguments: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        resume_mode: str = tickets.RESUME_MODES[0],
        expires_in: float | None = None,
        key: str | None = None,
    ) -> Answer:
        """Put a question to a human and wait for the answer, without a worker.

        Until there is one, it raises Suspended, which ends this activation: let it pass. Later the agent runs its turn
        from the top again, and this call returns the answer. `arguments`: a JSON object with what is to be decided;
        `schema`: a JSON Schema the answer's payload must keep to; `resume_mode`: how the tool that asked goes on, for
        your own code; `expires_in`: seconds, after which the answer is a "cancel" with `expired`. `question` and
        `expires_in` may differ from one call to the next, the rest may not.
        """
        asked = Question(
            name=name,
            question=question,
            arguments=arguments,
            schema=schema,
            resume_mode=resume_mode,
            expires_in=expires_in,
            key=key,
        )
        return self.ask_all([asked])[0]

    def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """`ask` several questions at once; returns the answers in their order when the last one has come."""
        return self._wait([_Asked(self._journal, one) for one in _listed(questions)])

    def wait_for_decision(self, name: str, *, seconds: float | None = None, **question: Any) -> Answer:
        """`ask`, and keep the worker for the answer for up to so many seconds before the run waits without one.

        At most, and by default, for the setting `suspended_lease_seconds`. `question`: what `ask` takes.
        """
        waiting = LiveWait(self, name, seconds=seconds, **question)
        with self._attention.waiting() as wait:
            while waiting.left() > 0 and not waiting.is_over():
                wait(min(LOOK_SECONDS, waiting.left()))
        return waiting.answer()

    def _patience(self, seconds: float | None) -> float:
        """How long a live wait may last: it must end well before the activation's time limit does."""
        most = conf.suspended_lease_seconds
        wanted = most if seconds is None else inputs.duration("seconds", seconds, most=_LONGEST_SECONDS)
        left = self._ends_at - time.monotonic()
        # In a test nobody answers while the agent runs.
        return 0.0 if channel.is_silenced() else max(0.0, min(wanted, most, _LIVE_SHARE * left))

    def _is_answered(self, asked: "list[_Asked]") -> bool:
        ids = [one.opens.ticket_id for one in asked if one.result is None]
        return bool(self._journal.persist(lambda: not tickets.unanswered(self._claim.run_id, ids)))

    def _look(self, asked: "list[_Asked]") -> bool:
        """Ask what was not asked yet, and take what was answered; whether all is."""
        open_ones = [one for one in asked if one.result is None]
        if open_ones:
            entries = [one.entry for one in open_ones]
            found: list[Ticket] = self._journal.repeat(entries, checkpoint.ask, [one.opens for one in open_ones])
            for one, ticket in zip(open_ones, found, strict=True):
                if ticket.status != TicketStatus.OPEN:
                    one.result = tickets.recorded(ticket)
        return all(one.result is not None for one in asked)

    def _wait(self, asked: "list[_Asked]") -> list[Answer]:
        """The answers, or the end of this activation."""
        if not self._look(asked):
            unanswered = [one for one in asked if one.result is None]
            wait = outcomes.Suspended(
                reason=waits.TOOL_PERMISSION,
                name=unanswered[0].entry.name,
                message=unanswered[0].opens.question[:_MOST_MESSAGE],
                ticket_ids=[one.opens.ticket_id for one in unanswered],
            )
            names = ", ".join(one.entry.name for one in unanswered)
            self._journal.stop_with(Suspended(f"run {self._claim.run_id} waits for answers: {names}", wait=wait))
            self._journal.check()
        return [one.answer() for one in asked]


class LiveWait:
    """A question whose asker waits for the answer for a while."""

    def __init__(self, asking: Asking, name: str, *, seconds: float | None, **question: Any) -> None:
        self._asking, self._give_up_at = asking, time.monotonic() + asking._patience(seconds)
        self._asked = [_Asked(asking._journal, Question(name=name, **question))]
        self._is_over = asking._look(self._asked)

    def left(self) -> float:
        """Seconds until it is given up; none once there is nothing to wait for."""
        return 0.0 if self._is_over else self._give_up_at - time.monotonic()

    def is_over(self) -> bool:
        """Whether the answer has come."""
        self._is_over = self._asking._is_answered(self._asked)
        return self._is_over

    def answer(self) -> Answer:
        """The answer, or the end of this activation."""
        return self._asking._wait(self._asked)[0]


class _Asked:
    """One question of this activation: its use of the verb, what opens its ticket, and its answer once there is one."""

    def __init__(self, journal: Journal, given: Question) -> None:
        inputs.text("question", given.question, most=_MOST_QUESTION, may_be_blank=True)
        inputs.choice("resume_mode", given.resume_mode, tickets.RESUME_MODES)
        seconds = given.expires_in
        if seconds is not None:
            seconds = inputs.duration("expires_in", seconds, most=_LONGEST_SECONDS)
        arguments = inputs.mapping("arguments", given.arguments)
        schema = schemas.checked("schema", given.schema)
        self.entry = journal.entry("ask", given.name, given.key, [arguments, schema, given.resume_mode])
        self.opens = checkpoint.Question(
            entry=self.entry,
            ticket_id=journal.derived_id(self.entry),
            question=given.question,
            arguments=arguments,
            schema=schema,
            resume_mode=given.resume_mode,
            expires_in=seconds,
        )
        known = journal.known(self.entry)
        self.result: dict[str, Any] | None = None if known is None else known.result

    def answer(self) -> Answer:
        assert self.result is not None, "it was waited for"
        return Answer(name=self.entry.name, resume_mode=self.opens.resume_mode, **self.result)


def _listed(questions: Any) -> Sequence[Question]:
    if isinstance(questions, str) or not isinstance(questions, Sequence) or not questions:
        raise InvalidInput("questions", "empty", "questions must be a list of at least one Question")
    if len(questions) > _MOST_QUESTIONS:
        raise InvalidInput(
            "questions", "too_many", f"questions holds {len(questions)} entries, at most {_MOST_QUESTIONS} are allowed"
        )
    for index, one in enumerate(questions):
        if not isinstance(one, Question):
            field = f"questions[{index}]"
            raise InvalidInput(field, "not_a_question", f"{field} must be a Question, not {type(one).__name__}")
    return list(questions)
