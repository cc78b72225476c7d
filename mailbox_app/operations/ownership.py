"""What a worker holds while it executes, and the check each of its writes makes before anything else."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction

from mailbox_app.errors import LeaseLost, Permanent
from mailbox_app.models import Dispatch, Message, Run, Thread, columns, loader, read
from mailbox_app.models.ready import HEADS_OF
from mailbox_app.operations.emitted import Emitted
from mailbox_app.states import DispatchStatus, RunStatus

# As `held_by` says it, composed once: every write of a worker asks this.
_HELD = """
    SELECT {columns}
    FROM mailbox_dispatch AS dispatch JOIN mailbox_run AS run ON run.id = dispatch.run_id
    WHERE dispatch.thread_id = %(thread)s AND dispatch.id = %(dispatch)s
        AND dispatch.status = 'claimed' AND dispatch.claim_token = %(token)s
"""

# The same for several claims.
_HELD_SOME = """
    SELECT {columns}
    FROM unnest(%(threads)s::uuid[], %(dispatches)s::uuid[], %(tokens)s::uuid[]) AS wanted (thread_id, id, token)
    JOIN mailbox_dispatch AS dispatch
        ON dispatch.thread_id = wanted.thread_id AND dispatch.id = wanted.id
        AND dispatch.status = 'claimed' AND dispatch.claim_token = wanted.token
    JOIN mailbox_run AS run ON run.id = dispatch.run_id
"""

# And what a completion asks besides: is there anything before the run that it has not read
# (what `freeze.unread` would find; mostly there is nothing), and what else is queued, for the thread's flag, which is
# judged by it only where nothing is unread, a barrier neither. No EXISTS: with old statistics all that is pending
# anywhere would be hashed for it.
_ENDING = f"""
    SELECT {{columns}}, (
        SELECT TRUE FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND state = 'pending' AND run_id = dispatch.run_id AND NOT held LIMIT 1
    ) IS NOT NULL OR (
        SELECT TRUE FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND state = 'pending' AND run_id IS NULL AND NOT held LIMIT 1
    ) IS NOT NULL OR (
        SELECT TRUE FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND state = 'pending' AND barrier AND NOT held LIMIT 1
    ) IS NOT NULL, (
        SELECT TRUE FROM mailbox_ticket WHERE run_id = dispatch.run_id AND status = 'open' LIMIT 1
    ) IS NOT NULL, heads.*
    FROM unnest(%(threads)s::uuid[], %(dispatches)s::uuid[], %(tokens)s::uuid[]) AS wanted (thread_id, id, token)
    JOIN mailbox_dispatch AS dispatch
        ON dispatch.thread_id = wanted.thread_id AND dispatch.id = wanted.id
        AND dispatch.status = 'claimed' AND dispatch.claim_token = wanted.token
    JOIN mailbox_run AS run ON run.id = dispatch.run_id
    LEFT JOIN LATERAL ({HEADS_OF.format(thread="dispatch.thread_id", has_barrier="FALSE")}) AS heads ON TRUE
"""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claimed dispatch: everything the runner needs, and the token that fences each of its writes."""

    token: uuid.UUID
    scope: str
    thread_id: uuid.UUID
    run_id: uuid.UUID
    dispatch_id: uuid.UUID
    agent: str
    queue: str
    turn: int
    # 1 for the first; counts failures and lost leases.
    attempt: int
    # Strictly increasing per thread: protects a team's own side effects against code that lost its lease.
    fence: int
    # Whether this turn was begun before: its journal may hold something.
    replays: bool
    messages: Sequence[Message]
    # The first number of this turn's input: history ends before it.
    first_seq: int
    state: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, Any]
    # Where the run was submitted: {"traceparent": …}, or {}.
    trace: dict[str, str]
    # Of the AgentVersion the run is bound to; {} if it is bound to none.
    config: dict[str, Any]
    lease_until: datetime
    emitted: Emitted = field(default_factory=Emitted, compare=False, repr=False)


@contextmanager
def owned(claim: Claim) -> Iterator[tuple[Thread, Dispatch]]:
    """Hold the fence of the claim's thread and prove the claim; raises LeaseLost, and then nothing is written.

    What the agent has emitted goes first.

    Raises Permanent inside a transaction of the agent's own: the fence would be held through the agent's code, and what
    was recorded could be rolled back.
    """
    refuse_transaction()
    with proved(claim) as held:
        yield held


@contextmanager
def proved(claim: Claim) -> Iterator[tuple[Thread, Dispatch]]:
    """`owned`, in a transaction of our own that has written something already: it is rolled back with the rest."""
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = find(claim)
        # What a turn left running when it ended has no say in the next one.
        if dispatch is None or dispatch.run.turn != claim.turn:
            raise lost(claim)
        claim.emitted.write(thread, dispatch)
        yield thread, dispatch


def find(claim: Claim) -> Dispatch | None:
    """The claim's dispatch, with its run, while it owns it; None once the lease was lost."""
    dispatch: Dispatch | None = None
    wanted = {"thread": claim.thread_id, "dispatch": claim.dispatch_id, "token": claim.token}
    for dispatch, *rest in _look(_HELD, wanted):
        dispatch.run = loader(Run)(rest)
    return dispatch


def find_some(claims: Sequence[Claim]) -> dict[uuid.UUID, Dispatch]:
    """`find` for several claims, by token; those that own nothing any more, or a later turn, are left out."""
    turns = {claim.token: claim.turn for claim in claims}
    found: dict[uuid.UUID, Dispatch] = {}
    for dispatch, *rest in _look(_HELD_SOME, _wanted(claims)):
        dispatch.run = loader(Run)(rest)
        if dispatch.run.turn == turns[dispatch.claim_token]:
            found[dispatch.claim_token] = dispatch
    return found


@dataclass(kw_only=True)
class Ending:
    """A claim about to be completed: its dispatch with its run, whether it has left anything unread, or a question
    open, and the rows with which `Thread.judge` judges its thread."""

    dispatch: Dispatch
    has_unread: bool
    has_tickets: bool
    heads: list[tuple[Any, ...]]


def find_endings(claims: Sequence[Claim]) -> dict[uuid.UUID, Ending]:
    """What there is to complete, by claim token; those that own nothing any more are left out."""
    width = len(loader(Run).names)
    found: dict[uuid.UUID, Ending] = {}
    for dispatch, *rest in _look(_ENDING, _wanted(claims)):
        token = dispatch.claim_token
        if token not in found:
            dispatch.run = loader(Run)(rest[:width])
            found[token] = Ending(dispatch=dispatch, has_unread=rest[width], has_tickets=rest[width + 1], heads=[])
        head = tuple(rest[width + 2 :])
        if head[0] is not None:
            found[token].heads.append(head)
    return found


def _wanted(claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "threads": [claim.thread_id for claim in claims],
        "dispatches": [claim.dispatch_id for claim in claims],
        "tokens": [claim.token for claim in claims],
    }


def _look(sql: str, params: dict[str, Any]) -> list[Any]:
    return read(Dispatch, sql.replace("{columns}", f"{columns(Dispatch, 'dispatch')}, {columns(Run, 'run')}"), params)


def refuse_transaction() -> None:
    """Raise Permanent inside a transaction of the agent's own."""
    if transaction.get_connection().in_atomic_block and not _is_testcase():
        raise Permanent("a verb of the context was called inside transaction.atomic(); call it outside")


def _is_testcase() -> bool:
    """Whether the transactions open are only those in which a TestCase wraps its tests; durable blocks ask the same."""
    return all(getattr(block, "_from_testcase", False) for block in transaction.get_connection().atomic_blocks)


def has_ended(claim: Claim, *ends: DispatchStatus, run_status: RunStatus | None = None) -> bool:
    """Whether this very claim has already ended in one of these ways: its own COMMIT won and the answer was lost.

    `run_status`: what it must have made of the run.
    """
    ended = Dispatch.objects.filter(pk=claim.dispatch_id, instance_id=claim.token, status__in=ends)
    return (ended if run_status is None else ended.filter(run_status=run_status)).exists()


def lost(claim: Claim) -> LeaseLost:
    """The error for a claim whose token owns nothing any more."""
    return LeaseLost(f"dispatch {claim.dispatch_id} is no longer owned by {claim.token}")
