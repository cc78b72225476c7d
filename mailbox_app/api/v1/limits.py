"""Limits, for staff: of which agents and scopes only so many runs execute at once, or start within a time."""

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiExample, OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import flow, requests
from mailbox_app.api.v1.base import MailboxView, body_of
from mailbox_app.api.v1.pagination import Newest, limit_of, parameters
from mailbox_app.api.v1.permissions import HasScope, IsStaff, principal_of
from mailbox_app.api.v1.schema import CURSOR, LIMIT, operation
from mailbox_app.errors import InvalidInput
from mailbox_app.models import Limit, LimitKind
from mailbox_app.operations import limits

_FIELDS = set(requests.NewLimitSerializer().fields)
_TARGET = ("kind", "name")


class LimitsView(MailboxView):
    permission_classes = (HasScope, IsStaff)

    @operation(
        400, 422,
        operation_id="list_limits",
        summary="List what is limited (staff)",
        tags=["staff"],
        parameters=[CURSOR, LIMIT],
        responses={200: flow.LimitPageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """The limits of agents and of scopes, whichever those are, the latest set first."""
        given = parameters(request, "cursor", "limit")
        order = Newest("limits", by="set_at")
        found = order.page(Limit.objects.in_force().with_held(), given.get("cursor"), limit_of(given))
        return Response(flow.LimitPageSerializer(found).data)

    @operation(
        400, 413, 415, 422,
        operation_id="set_limit",
        summary="Limit an agent or a scope (staff)",
        tags=["staff"],
        request=requests.NewLimitSerializer,
        responses={200: flow.LimitSerializer, 201: flow.LimitSerializer},
        examples=[
            OpenApiExample(
                "A provider that takes ten calls at once, and 600 a minute",
                value={"kind": "agent", "name": "support", "most": 10, "starts": 600, "seconds": 60},
                request_only=True,
            ),
            OpenApiExample(
                "No tenant takes all workers",
                value={"kind": "scope", "name": "acme", "most": 4, "note": "Their plan allows four."},
                request_only=True,
            ),
        ],
    )  # fmt: skip
    def put(self, request: Request) -> Response:
        """Set the whole limit; what runs goes on, and counts. 201 when it had none, 200 in place of the one it had."""
        parameters(request)
        body = body_of(request, _FIELDS, required=_TARGET)
        done = limits.put(by=principal_of(request)[1], **body)
        shown = Limit.objects.with_held().get(pk=done.limit.pk)
        return Response(flow.LimitSerializer(shown).data, status=201 if done.created else 200)

    @operation(
        400, 404, 422,
        operation_id="remove_limit",
        summary="Limit an agent or a scope no more (staff)",
        tags=["staff"],
        parameters=[
            OpenApiParameter("kind", str, required=True, enum=LimitKind.values),
            OpenApiParameter("name", str, required=True, description="The agent's or the scope's."),
        ],
        responses={204: None},
    )  # fmt: skip
    def delete(self, request: Request) -> HttpResponseBase:
        """Let start what it kept, at once. 404 when it has none."""
        given = parameters(request, *_TARGET)
        for name in _TARGET:
            if name not in given:
                raise InvalidInput(name, "required", f"{name} is required")
        limits.remove(by=principal_of(request)[1], **given)
        return Response(status=204)
