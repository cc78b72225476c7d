"""Stop a thread: interrupt it or cancel all of it; and what an interrupt holds until somebody releases it."""

from dataclasses import asdict

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import requests, serializers, threads
from mailbox_app.api.v1.base import MailboxView, optional_body_of, path_id
from mailbox_app.api.v1.pagination import limit_of, number_of, page, parameters
from mailbox_app.api.v1.schema import LIMIT, THREAD_ID, operation
from mailbox_app.models import Message
from mailbox_app.operations import cancel, interrupt, pending

_REASON = set(requests.CancelSerializer().fields)
_RELEASE = set(requests.ReleaseSerializer().fields)


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


class PendingView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_pending_messages",
        summary="Read what a thread has not read",
        tags=["threads"],
        parameters=[
            THREAD_ID,
            OpenApiParameter("after", int, description="Messages with a greater `position`."),
            LIMIT,
        ],
        responses={200: serializers.PendingPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The messages that no agent has read yet, in the order in which they will be."""
        given = parameters(request, "after", "limit")
        after, limit = number_of(given, "after"), limit_of(given)
        rows = Message.objects.filter(thread=threads.find(self.scope, thread_id)).pending()
        if after is not None:
            rows = rows.filter(position__gt=after)
        items, has_more = page(rows.order_by("position", "id")[: limit + 1], limit)
        stands = items[-1].position if items else after or 0
        found = {"items": items, "next_cursor": stands, "has_more": has_more}
        return Response(serializers.PendingPageSerializer(found).data)


class PendingReleaseView(MailboxView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="release_pending_messages",
        summary="Release what an interrupt holds",
        tags=["threads"],
        parameters=[THREAD_ID],
        request=requests.ReleaseSerializer,
        responses={200: serializers.ReleasedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Have held messages read after all, by new runs. What is not held any more is left as it is."""
        parameters(request)
        body = optional_body_of(request, _RELEASE)
        wanted = path_id("thread_id", thread_id)
        released = pending.release(scope=self.scope, thread_id=wanted, message_ids=body.get("message_ids"))
        return Response(serializers.ReleasedSerializer(asdict(released)).data)
