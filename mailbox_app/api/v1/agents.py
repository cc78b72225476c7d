"""Agents, for staff: the configurations published for one."""

from typing import Any

from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import fields, idempotency
from mailbox_app.api.v1.base import MailboxView, body_of
from mailbox_app.api.v1.pagination import limit_of, number_of, page, parameters
from mailbox_app.api.v1.permissions import HasScope, IsStaff
from mailbox_app.api.v1.schema import IDEMPOTENCY_KEY, LIMIT, REPLAYED, operation
from mailbox_app.models import AgentVersion
from mailbox_app.operations import publish

AGENT = OpenApiParameter("name", OpenApiTypes.STR, OpenApiParameter.PATH, description="The agent's name.")
CURSOR = OpenApiParameter("cursor", int, description="`next_cursor` of the page before.")


class NewAgentVersionSerializer(serializers.Serializer[AgentVersion]):
    version = serializers.CharField(max_length=100)
    configuration = fields.Object(help_text="For the agent: `ctx.config` of the runs bound to this version.")
    note = serializers.CharField(required=False, allow_null=True, max_length=500, help_text="What is new in it.")


class AgentVersionSerializer(serializers.Serializer[AgentVersion]):
    agent = serializers.CharField()
    version = serializers.CharField()
    configuration = fields.Object()
    note = serializers.CharField(allow_blank=True)
    published_by = serializers.CharField(
        source="published_by.username", allow_null=True, default=None, help_text="Null: by a command, or long gone."
    )
    published_at = fields.Instant()


class AgentVersionPageSerializer(serializers.Serializer[Any]):
    items = AgentVersionSerializer(many=True)
    next_cursor = serializers.IntegerField(allow_null=True, help_text="Null on the last page.")
    has_more = serializers.BooleanField()


_FIELDS = set(NewAgentVersionSerializer().fields)


class AgentVersionsView(MailboxView):
    permission_classes = (HasScope, IsStaff)

    @operation(
        400, 422,
        operation_id="list_agent_versions",
        summary="List an agent's published configurations",
        tags=["agents"],
        parameters=[AGENT, CURSOR, LIMIT],
        responses={200: AgentVersionPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, name: str) -> Response:
        """The versions published for an agent, the latest first: runs that name none are bound to that one."""
        given = parameters(request, "cursor", "limit")
        cursor, limit = number_of(given, "cursor"), limit_of(given)
        rows = AgentVersion.objects.of_agent(name).select_related("published_by")
        if cursor is not None:
            rows = rows.filter(pk__lt=cursor)
        items, has_more = page(rows[: limit + 1], limit)
        found = {"items": items, "next_cursor": items[-1].pk if has_more else None, "has_more": has_more}
        return Response(AgentVersionPageSerializer(found).data)

    @operation(
        400, 409, 413, 415, 422,
        operation_id="publish_agent_version",
        summary="Publish a configuration of an agent",
        tags=["agents"],
        request=NewAgentVersionSerializer,
        parameters=[AGENT, IDEMPOTENCY_KEY, REPLAYED],
        responses={201: AgentVersionSerializer},
    )  # fmt: skip
    def post(self, request: Request, name: str) -> HttpResponseBase:
        """Publish a version; it never changes. The same again is the same answer, other content is refused."""
        parameters(request)
        body = body_of(request, _FIELDS, required=("version", "configuration"))

        def act() -> Response:
            published = publish.version(agent=name, published_by=request.user, **body)
            return Response(AgentVersionSerializer(published).data, status=201)

        return idempotency.once(request, scope=self.scope, body=body, act=act)
