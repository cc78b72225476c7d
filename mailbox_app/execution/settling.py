"""Tell the database how an activation ended, until it has heard."""

import logging
import time
from collections.abc import Sequence

from django.db import InterfaceError, OperationalError, connection

from mailbox_app import outcomes, saying
from mailbox_app.conf import conf
from mailbox_app.errors import LeaseLost
from mailbox_app.execution.together import Together
from mailbox_app.operations import settle
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.settle import Finishing
from mailbox_app.outcomes import Failed, Finished, Outcome, Retry, Stopped
from mailbox_app.telemetry import observe

# Runs that end at the same time are settled together, up to so many: each waits for all of them.
_MOST_TOGETHER = 32


def tell(
    claim: Claim, outcome: Outcome, *, together: bool = False, looks_next: bool = False
) -> tuple[bool, Claim | None]:
    """Settle the claim by this outcome, trying again and again while the lease may last.

    Returns whether the claim was still ours to settle, and the next turn's claim if there is one. `together`: with what
    other threads of this process have to settle just now. `looks_next`: see `Finishing`.

    A settle that already won, but whose answer was lost with the connection, recognises itself.
    """
    give_up_at = time.monotonic() + conf.lease_seconds
    pause = 0.05
    if together and isinstance(outcome, Finished):
        finishing = Finishing(claim=claim, output=outcome.output, state=outcome.state, looks_next=looks_next)
        settled = _complete(finishing)
        if settled is not None:
            return True, settled[0]
    while True:
        try:
            return True, _settle(claim, outcome, looks_next)
        except LeaseLost:
            observe(
                "settle.refused",
                level=logging.WARNING,
                dispatch_id=claim.dispatch_id,
                outcome=type(outcome).__name__.lower(),
            )
            return False, None
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() >= give_up_at:
                raise
            observe("settle.retried", level=logging.WARNING, dispatch_id=claim.dispatch_id, error=type(error).__name__)
            saying.doubt(claim.thread_id)
            connection.close()
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def _complete_some(finished: Sequence[Finishing]) -> list[tuple[Claim | None] | None]:
    """Settle those that can be settled together: (the next turn's claim,); None: to be settled alone."""
    try:
        following = settle.complete_some(finished)
    except Exception as error:  # what it was, each will find out for itself
        observe("settle.parted", level=logging.WARNING, claims=len(finished), error=type(error).__name__)
        connection.close()
        following = {}
    tokens = [one.claim.token for one in finished]
    return [(following[token],) if token in following else None for token in tokens]


def _settle(claim: Claim, outcome: Outcome, looks_next: bool) -> Claim | None:
    match outcome:
        case Finished():
            return settle.complete(claim, output=outcome.output, state=outcome.state, looks_next=looks_next)
        case outcomes.Suspended():
            settle.suspend(claim, outcome)
        case Retry():
            settle.nack(
                claim, code=outcome.code, message=outcome.message, detail=outcome.detail, retry_after=outcome.after
            )
        case Failed():
            settle.dead_letter(claim, code=outcome.code, message=outcome.message, detail=outcome.detail)
        case Stopped():
            settle.stopped(claim)
    return None


_complete = Together(_complete_some, most=_MOST_TOGETHER)
