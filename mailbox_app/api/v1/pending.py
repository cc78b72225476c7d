"""What a thread has not read: look at it, edit, withdraw and order it, release what an interrupt holds.

The guards, `revision` and `pending_revision`, stand in the body, and in the query of a DELETE, for which HTTP knows no
body.
"""

import re
from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import pending_serializers as serializers
from mailbox_app.api.v1 import requests, threads
from mailbox_app.api.v1.base import MailboxView, body_of, optional_body_of, path_id
from mailbox_app.api.v1.errors import Malformed
from mailbox_app.api.v1.pagination import limit_of, number_of, page, parameters
from mailbox_app.api.v1.schema import LIMIT, MESSAGE_ID, THREAD_ID, operation
from mailbox_app.models import Message
from mailbox_app.operations import pending as verbs

_EDIT = set(requests.MessageChangeSerializer().fields)
_ORDER = set(requests.OrderSerializer().fields)
_RELEASE = set(requests.ReleaseSerializer().fields)
_WHOLE = re.compile(r"[0-9]{1,30}", re.ASCII)


class PendingView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_pending_messages",
        summary="Read what a thread has not read",
        tags=["pending"],
        parameters=[
            THREAD_ID,
            OpenApiParameter("after", int, description="Messages with a greater `position`."),
            LIMIT,
        ],
        responses={200: serializers.PendingPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The messages that no agent has read yet, in their order."""
        given = parameters(request, "after", "limit")
        after, limit = number_of(given, "after"), limit_of(given)
        # Its revision is read first: should somebody come between, it is the older one, and refused as a guard.
        thread = threads.find(self.scope, thread_id)
        rows = Message.objects.filter(thread=thread).pending()
        if after is not None:
            rows = rows.filter(position__gt=after)
        items, has_more = page(rows.order_by("position", "id")[: limit + 1], limit)
        stands = items[-1].position if items else after or 0
        found = {
            "items": items,
            "pending_revision": thread.pending_revision,
            "next_cursor": stands,
            "has_more": has_more,
        }
        return Response(serializers.PendingPageSerializer(found).data)


class PendingMessageView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="edit_pending_message",
        summary="Edit what a thread has not read",
        tags=["pending"],
        parameters=[THREAD_ID, MESSAGE_ID],
        request=requests.MessageChangeSerializer,
        responses={200: serializers.EditedSerializer},
    )  # fmt: skip
    def patch(self, request: Request, thread_id: str, message_id: str) -> Response:
        """Give a message another content, other metadata, or both, until an agent reads it."""
        parameters(request)
        edited = verbs.edit(
            scope=self.scope,
            thread_id=path_id("thread_id", thread_id),
            message_id=path_id("message_id", message_id),
            **body_of(request, _EDIT),
        )
        shown = {"message": edited.message, "pending_revision": edited.pending_revision}
        return Response(serializers.EditedSerializer(shown).data)

    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="retract_pending_message",
        summary="Withdraw what a thread has not read",
        tags=["pending"],
        parameters=[
            THREAD_ID,
            MESSAGE_ID,
            OpenApiParameter("revision", int, description="Refuse unless the message still is at this revision."),
            OpenApiParameter("reason", str, description="Kept with the message; at most 100 characters."),
        ],
        responses={200: serializers.RetractedSerializer},
    )  # fmt: skip
    def delete(self, request: Request, thread_id: str, message_id: str) -> Response:
        """Withdraw a message, held or not. A run that has not started and was to read nothing else is cancelled."""
        given = parameters(request, "revision", "reason")
        # A guard somebody sends as a body must not be passed over.
        optional_body_of(request, set())
        retracted = verbs.retract(
            scope=self.scope,
            thread_id=path_id("thread_id", thread_id),
            message_id=path_id("message_id", message_id),
            reason=given.get("reason", ""),
            revision=_revision_of(given),
        )
        return Response(serializers.RetractedSerializer(asdict(retracted)).data)


class PendingOrderView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="order_pending_messages",
        summary="Put what a thread has not read in order",
        tags=["pending"],
        parameters=[THREAD_ID],
        request=requests.OrderSerializer,
        responses={200: serializers.ReorderedSerializer},
    )  # fmt: skip
    def put(self, request: Request, thread_id: str) -> Response:
        """Put these messages in front of all others, in this order. Queued runs move with what they will read."""
        parameters(request)
        wanted = path_id("thread_id", thread_id)
        ordered = verbs.reorder(scope=self.scope, thread_id=wanted, **body_of(request, _ORDER, ("message_ids",)))
        return Response(serializers.ReorderedSerializer(asdict(ordered)).data)


class PendingReleaseView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="release_pending_messages",
        summary="Release what an interrupt holds",
        tags=["pending"],
        parameters=[THREAD_ID],
        request=requests.ReleaseSerializer,
        responses={200: serializers.ReleasedSerializer},
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> Response:
        """Have held messages read after all, by new runs. What is not held any more is left as it is."""
        parameters(request)
        body = optional_body_of(request, _RELEASE)
        released = verbs.release(scope=self.scope, thread_id=path_id("thread_id", thread_id), **body)
        return Response(serializers.ReleasedSerializer(asdict(released)).data)


def _revision_of(given: dict[str, Any]) -> int | None:
    value = given.get("revision")
    if value is None:
        return None
    if not _WHOLE.fullmatch(value):
        raise Malformed("malformed_parameter", f"revision must be a whole number, not {value!r:.50}", field="revision")
    return int(value)
