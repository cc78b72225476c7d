"""Stop a thread: interrupt it, or cancel all of it."""

from dataclasses import asdict

from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import requests, serializers
from mailbox_app.api.v1.base import MailboxView, optional_body_of, path_id
from mailbox_app.api.v1.pagination import parameters
from mailbox_app.api.v1.schema import THREAD_ID, operation
from mailbox_app.operations import cancel, interrupt

_REASON = set(requests.CancelSerializer().fields)


class ThreadInterruptView(MailboxView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="interrupt_thread",
        summary="Interrupt a thread",
        tags=["threads"],
        parameters=[THREAD_ID],
        request=requests.CancelSerializer,
        responses={200: serializers.InterruptedSerializer, 202: serializers.InterruptedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Stop the open run and what is queued to start now, and hold what they have not read.

        202 while the worker of the open run is asked. Runs for later stay. On an idle thread it changes nothing.
        """
        parameters(request)
        body = optional_body_of(request, _REASON)
        wanted = path_id("thread_id", thread_id)
        met = interrupt.thread(scope=self.scope, thread_id=wanted, reason=body.get("reason", ""))
        answer = serializers.InterruptedSerializer(asdict(met))
        return Response(answer.data, status=202 if met.outcome == cancel.Outcome.REQUESTED else 200)


class ThreadCancelView(MailboxView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="cancel_thread",
        summary="Cancel all runs of a thread",
        tags=["threads"],
        parameters=[THREAD_ID],
        request=requests.CancelSerializer,
        responses={200: serializers.ClearedSerializer, 202: serializers.ClearedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Cancel the open run, the queued and the scheduled ones, and retract what they have not read.

        202 while the worker of the open run is asked.
        """
        parameters(request)
        body = optional_body_of(request, _REASON)
        wanted = path_id("thread_id", thread_id)
        cleared = cancel.thread(scope=self.scope, thread_id=wanted, reason=body.get("reason", ""))
        answer = serializers.ClearedSerializer(asdict(cleared))
        return Response(answer.data, status=200 if cleared.requested_run_id is None else 202)
