"""Pauses, for staff: of which agents, queues and threads nothing starts."""

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
from mailbox_app.models import Pause, PauseKind
from mailbox_app.operations import pauses

_FIELDS = set(requests.NewPauseSerializer().fields)
_TARGET = ("kind", "name")


class PausesView(MailboxView):
    permission_classes = (HasScope, IsStaff)

    @operation(
        400, 422,
        operation_id="list_pauses",
        summary="List what is paused (staff)",
        tags=["staff"],
        parameters=[CURSOR, LIMIT],
        responses={200: flow.PausePageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """The agents and queues that are paused, and the scope's threads, the latest first."""
        given = parameters(request, "cursor", "limit")
        order = Newest("pauses", self.scope, by="paused_at")
        found = order.page(Pause.objects.visible_in(self.scope), given.get("cursor"), limit_of(given))
        return Response(flow.PausePageSerializer(found).data)

    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="pause",
        summary="Pause an agent, a queue or a thread (staff)",
        tags=["staff"],
        request=requests.NewPauseSerializer,
        responses={200: flow.PauseSerializer, 201: flow.PauseSerializer},
        examples=[
            OpenApiExample(
                "An agent's provider is down",
                value={"kind": "agent", "name": "support", "note": "The provider is down, see incident 77."},
                request_only=True,
            )
        ],
    )  # fmt: skip
    def put(self, request: Request) -> Response:
        """Start nothing more of it; what runs goes on. 201 when it is paused by this, 200 with the pause it had."""
        parameters(request)
        body = body_of(request, _FIELDS, required=_TARGET)
        done = pauses.pause(by=principal_of(request)[1], scope=self.scope, **body)
        return Response(flow.PauseSerializer(done.pause).data, status=201 if done.changed else 200)

    @operation(
        400, 404, 410, 422,
        operation_id="resume",
        summary="Resume an agent, a queue or a thread (staff)",
        tags=["staff"],
        parameters=[
            OpenApiParameter("kind", str, required=True, enum=PauseKind.values),
            OpenApiParameter("name", str, required=True, description="The agent's or queue's; the thread's id."),
        ],
        responses={204: None},
    )  # fmt: skip
    def delete(self, request: Request) -> HttpResponseBase:
        """Let it start again, at once. 404 when it is not paused."""
        given = parameters(request, *_TARGET)
        for name in _TARGET:
            if name not in given:
                raise InvalidInput(name, "required", f"{name} is required")
        pauses.resume(by=principal_of(request)[1], scope=self.scope, **given)
        return Response(status=204)
