"""The error tree. The class says what the caller should do, `code` is API, the message states facts.

MailboxError
├── Refused                    the call changed nothing; the reason is in the call or in the state it met
│   ├── InvalidInput           mend the input; `errors` names each field and limit
│   ├── NotFound               no such row in your scope
│   ├── Gone                   it was here and has been deleted or pruned
│   └── Conflict               the state has moved on: look again, then decide
├── Retryable                  try again: nothing was written, nothing is wrong with the call
│   └── MailboxFull            the thread holds as many queued runs as are allowed
└── AgentError                 raised to or by a team's own agent
    ├── Transient              the runner retries the activation (a team raises it, or its own subclass)
    └── Permanent              the runner dead-letters at once
        └── ReplayMismatch     the agent's code changed under a journal it had begun

Stop (BaseException)           the activation is over; let it pass through your `except Exception`
├── LeaseLost                  another worker owns the run now: write nothing more
├── Cancelled                  somebody asked the run to stop
└── Suspended                  the run waits; its agent is called again when it goes on
"""

from typing import Any


class MailboxError(Exception):
    """Base of everything the app raises on purpose."""

    code = "mailbox_error"

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message or (self.__doc__ or "").splitlines()[0])
        self.facts = facts

    @property
    def message(self) -> str:
        return str(self.args[0])


class Refused(MailboxError):
    """The call was refused and changed nothing."""

    code = "refused"


class InvalidInput(Refused):
    """Something in the input is not acceptable.

    `errors` is [{"field": "messages[0].content", "code": "too_long", "message": "…"}], at least one entry.
    """

    code = "invalid_input"

    def __init__(self, field: str, code: str, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.errors: list[dict[str, str]] = [{"field": field, "code": code, "message": message}]


class UnknownAgent(InvalidInput):
    """No worker has registered the agent and it cannot be imported here."""

    code = "unknown_agent"

    def __init__(self, agent: str) -> None:
        super().__init__("agent", "unknown_agent", f"no worker has registered an agent named {agent!r}", agent=agent)


class NotFound(Refused):
    """There is no such row in your scope."""

    code = "not_found"


class ThreadNotFound(NotFound):
    """There is no such thread in your scope."""

    code = "thread_not_found"


class RunNotFound(NotFound):
    """There is no such run in your scope."""

    code = "run_not_found"


class MessageNotFound(NotFound):
    """There is no such message in the thread."""

    code = "message_not_found"


class TicketNotFound(NotFound):
    """The run has no such question, or has ended without an answer to it."""

    code = "ticket_not_found"


class DeadLetterNotFound(NotFound):
    """There is no such dead letter in your scope."""

    code = "dead_letter_not_found"


class NotPaused(NotFound):
    """There is no such pause: nobody has paused it, or somebody has resumed it."""

    code = "not_paused"


class NotLimited(NotFound):
    """There is no such limit: nobody has set one, or somebody has removed it."""

    code = "not_limited"


class Gone(Refused):
    """The row has been deleted."""

    code = "gone"


class CursorPruned(Gone):
    """The events after this cursor are past their retention."""

    code = "cursor_pruned"


class Conflict(Refused):
    """The state has moved on."""

    code = "conflict"


class ActiveRunConflict(Conflict):
    """The thread's open run is not the one the caller expects, or is one where he expects none."""

    code = "active_run_conflict"


class DuplicateKey(Conflict):
    """Another run that is not done holds this dedupe key."""

    code = "duplicate_key"


class AlreadyExists(Conflict):
    """A row with this id or key exists."""

    code = "already_exists"


class Immutable(Conflict):
    """What is published is never changed."""

    code = "immutable"


class RevisionConflict(Conflict):
    """Somebody has changed it since you looked: look again; the current numbers stand beside."""

    code = "revision_conflict"


class AlreadyConsumed(Conflict):
    """An agent has read the message: it stands in the thread's log and is never changed."""

    code = "already_consumed"


class ThreadBusy(Conflict):
    """The thread has a run that is not done: cancel it, or wait for it."""

    code = "thread_busy"


class ThreadHasChildren(Conflict):
    """Threads of child runs are below the thread, and it was to be deleted only without them."""

    code = "thread_has_children"


class NotScheduled(Conflict):
    """The run has nothing queued that could start now: it is executing, waits for somebody, or is done."""

    code = "not_scheduled"


class AlreadyResolved(Conflict):
    """Somebody has replayed or discarded this dead letter."""

    code = "already_resolved"


class AlreadyDecided(Conflict):
    """Somebody has answered the question: the first answer counts."""

    code = "already_decided"


class TicketExpired(Conflict):
    """Nobody has answered the question in time: its run goes on without."""

    code = "ticket_expired"


class NothingToReplay(Conflict):
    """The run of the dead letter had read nothing, so that there is nothing a new run could read."""

    code = "nothing_to_replay"


class IdempotencyKeyReused(Conflict):
    """The Idempotency-Key was used before, with another request."""

    code = "idempotency_key_reused"


class RequestInFlight(Conflict):
    """The first request with this Idempotency-Key has not finished."""

    code = "request_in_flight"


class Retryable(MailboxError):
    """Nothing was written and nothing is wrong with the call: try again."""

    code = "retryable"


class MailboxFull(Retryable):
    """The thread holds as many queued runs as are allowed (setting `max_queued_per_thread`): try again later."""

    code = "mailbox_full"


class AgentError(MailboxError):
    """Raised to, or by, a team's own agent."""

    code = "agent_error"


class Transient(AgentError):
    """The activation failed, and may succeed later; `retry_after` (seconds) replaces the backoff."""

    code = "transient"

    def __init__(self, message: str = "", *, retry_after: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class Permanent(AgentError):
    """The activation failed, and would fail again: dead-letter it now."""

    code = "permanent"


class TimedOut(Transient):
    """The activation ran past its time limit."""

    code = "timed_out"


class ReplayMismatch(Permanent):
    """A replayed verb was called with other arguments than its journal entry holds."""

    code = "replay_mismatch"


class Stop(BaseException):
    """The activation is over. Once raised, every further verb of the context raises it again."""

    code = "stop"


class LeaseLost(Stop):
    """The claim token no longer owns the dispatch: swept, superseded or settled meanwhile."""

    code = "lease_lost"


class Cancelled(Stop):
    """The run was asked to stop."""

    code = "cancelled"


class Suspended(Stop):
    """The run waits from now on; `wait` is the outcome that says for what."""

    code = "suspended"

    def __init__(self, message: str, *, wait: Any) -> None:
        super().__init__(message)
        self.wait = wait
