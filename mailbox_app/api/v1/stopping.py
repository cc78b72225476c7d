"""Stop a thread: interrupt it, or cancel all of it."""

import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import requests, serializers
from mailbox_app.api.v1.base import optional_body_of, path_id
from mailbox_app.api.v1.pagination import parameters, seconds_of
from mailbox_app.api.v1.runs import came_of_asking, is_moving
from mailbox_app.api.v1.schema import STOP_WAIT, THREAD_ID, operation
from mailbox_app.api.v1.waiting import Later, WaitingView
from mailbox_app.conf import conf
from mailbox_app.models import Run
from mailbox_app.operations import cancel, interrupt

_REASON = set(requests.CancelSerializer().fields)


class ThreadInterruptView(WaitingView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="interrupt_thread",
        summary="Interrupt a thread",
        tags=["threads"],
        parameters=[THREAD_ID, STOP_WAIT],
        request=requests.CancelSerializer,
        responses={200: serializers.InterruptedSerializer, 202: serializers.InterruptedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Stop the open run and what is queued to start now, and hold what they have not read.

        202 while the worker of the open run is asked. Runs for later stay. On an idle thread it changes nothing.
        """
        seconds, reason = _asked(request)
        met = interrupt.thread(scope=self.scope, thread_id=path_id("thread_id", thread_id), reason=reason)
        asked = met.run_id if met.outcome == cancel.Outcome.REQUESTED else None

        def told(outcome: cancel.Outcome | None) -> Any:
            return serializers.InterruptedSerializer({**asdict(met), "outcome": outcome or met.outcome}).data

        return _once_stopped(asked, seconds, told)


class ThreadCancelView(WaitingView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="cancel_thread",
        summary="Cancel all runs of a thread",
        tags=["threads"],
        parameters=[THREAD_ID, STOP_WAIT],
        request=requests.CancelSerializer,
        responses={200: serializers.ClearedSerializer, 202: serializers.ClearedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Cancel the open run, the queued and the scheduled ones, and retract what they have not read.

        202 while the worker of the open run is asked.
        """
        seconds, reason = _asked(request)
        cleared = cancel.thread(scope=self.scope, thread_id=path_id("thread_id", thread_id), reason=reason)

        def told(outcome: cancel.Outcome | None) -> Any:
            facts = asdict(cleared)
            if outcome != cancel.Outcome.REQUESTED:
                facts["requested_run_id"] = None
            if outcome == cancel.Outcome.CANCELLED:
                facts["cancelled_run_ids"] = [cleared.requested_run_id, *cleared.cancelled_run_ids]
            return serializers.ClearedSerializer(facts).data

        return _once_stopped(cleared.requested_run_id, seconds, told)


def _asked(request: Request) -> tuple[float, str]:
    """How long to wait for the worker that is asked, and the reason it is given."""
    given = parameters(request, "wait")
    seconds = seconds_of(given, "wait", otherwise=0, most=conf.cancel_wait_seconds)
    return seconds, optional_body_of(request, _REASON).get("reason", "")


def _once_stopped(run_id: uuid.UUID | None, seconds: float, told: Callable[[cancel.Outcome | None], Any]) -> Response:
    """200 once the run whose worker was asked, if any, has ended; 202 if it has not in this time."""

    def answer() -> tuple[Any, int]:
        outcome = None if run_id is None else came_of_asking(Run.objects.get(pk=run_id))
        return told(outcome), 202 if outcome == cancel.Outcome.REQUESTED else 200

    return Later(until=lambda: run_id is None or not is_moving(run_id), seconds=seconds, answer=answer)
