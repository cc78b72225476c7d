"""Events: what happened, in the order in which it became true."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import runs, serializers, threads
from mailbox_app.api.v1.base import MailboxView
from mailbox_app.api.v1.pagination import limit_of, number_of, page, parameters
from mailbox_app.api.v1.schema import LIMIT, RUN_ID, THREAD_ID, operation
from mailbox_app.errors import CursorPruned
from mailbox_app.models import Event, Thread

CURSOR = OpenApiParameter(
    "cursor", int, description="Events after this one; 0, the default, starts with the oldest that is kept."
)


class RunEventsView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_run_events",
        summary="List a run's events",
        tags=["runs"],
        parameters=[RUN_ID, CURSOR, LIMIT],
        responses={200: serializers.EventPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, run_id: str) -> Response:
        """A run's public events in order. Pass `next_cursor` back as `cursor` to hear what came since."""
        given = parameters(request, "cursor", "limit")
        cursor, limit = number_of(given, "cursor") or 0, limit_of(given)
        run = runs.find(self.scope, run_id)
        return Response(_page(run.thread_id, Event.objects.filter(run_id=run.pk), cursor, limit))


class ThreadEventsView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_thread_events",
        summary="List a thread's events",
        tags=["threads"],
        parameters=[THREAD_ID, CURSOR, LIMIT],
        responses={200: serializers.EventPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """A thread's public events in order. Pass `next_cursor` back as `cursor` to hear what came since."""
        given = parameters(request, "cursor", "limit")
        cursor, limit = number_of(given, "cursor") or 0, limit_of(given)
        thread = threads.find(self.scope, thread_id)
        return Response(_page(thread.pk, Event.objects.filter(thread=thread), cursor, limit))


def _page(thread_id: Any, events: Any, cursor: int, limit: int) -> dict[str, Any]:
    items, has_more = page(events.public().after(cursor)[: limit + 1], limit)
    if cursor:
        # Asked after the events were read: what is pruned in between is missed by neither look.
        pruned = Thread.objects.values_list("pruned_cursor", flat=True).get(pk=thread_id)
        if cursor < pruned:
            raise CursorPruned(
                f"events up to {pruned} are past their retention; cursor must be 0 or from {pruned}, not {cursor}",
                thread_id=thread_id,
                oldest_cursor=pruned,
            )
    next_cursor = items[-1].cursor if items else cursor
    found = {"items": items, "next_cursor": next_cursor, "has_more": has_more}
    return dict(serializers.EventPageSerializer(found).data)
