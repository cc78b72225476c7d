"""Let a waiting run go on: what it waits for has come."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1.base import MailboxView, body_of, path_id
from mailbox_app.api.v1.pagination import parameters
from mailbox_app.api.v1.schema import RUN_ID, operation
from mailbox_app.operations import resume


class ResumeSerializer(serializers.Serializer[Any]):
    """What the run waited for."""

    name = serializers.CharField(required=False, help_text="The wait it is meant for, as the agent named it.")
    payload = serializers.JSONField(required=False, help_text="What the agent gets; any JSON.")
    resume_id = serializers.CharField(required=False, help_text="Your own id: sent again, it changes nothing.")


class ResumedSerializer(serializers.Serializer[Any]):
    """What came of it. `stored`: the run does not wait for it yet, and will find it when it does."""

    run_id = serializers.UUIDField()
    thread_id = serializers.UUIDField()
    status = serializers.CharField(help_text="`resumed` or `stored`.")
    dispatch_id = serializers.UUIDField(allow_null=True, help_text="The activation by which it goes on.")


class ResumeView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="resume_run",
        summary="Resume a waiting run",
        tags=["runs"],
        parameters=[RUN_ID],
        request=ResumeSerializer,
        responses={202: ResumedSerializer},
        examples=[
            OpenApiExample(
                "The payment has arrived",
                value={"name": "payment", "payload": {"cents": 5000}, "resume_id": "payment-77"},
                request_only=True,
            )
        ],
    )  # fmt: skip
    def post(self, request: Request, run_id: str) -> Response:
        """End a run's wait of this name: its agent is called again and gets the payload."""
        parameters(request)
        body = body_of(request, set(ResumeSerializer().fields))
        answer = resume.run(scope=self.scope, run_id=path_id("run_id", run_id), **body)
        return Response(ResumedSerializer(asdict(answer)).data, status=202)
