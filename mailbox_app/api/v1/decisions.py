"""Human in the loop: which runs of the scope wait, what they ask, and the answers."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from drf_spectacular.utils import OpenApiExample, OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1.base import MailboxView, body_of, path_id
from mailbox_app.api.v1.fields import Anything, Instant, Word
from mailbox_app.api.v1.pagination import Newest, choice_of, limit_of, parameters
from mailbox_app.api.v1.permissions import principal_of
from mailbox_app.api.v1.schema import CURSOR, LIMIT, RUN_ID, operation
from mailbox_app.api.v1.serializers import TicketSerializer
from mailbox_app.models import Run
from mailbox_app.operations import decide, tickets, waits

_REASONS = (waits.TOOL_PERMISSION, *waits.REASONS)
# What a waiting run may hold much of, and no listing shows.
_NOT_LISTED = ("final_output", "input", "output", "state", "activation", "resumes")


class DecisionSerializer(serializers.Serializer[Any]):
    """An answer to a question of a run."""

    ticket_id = serializers.CharField(help_text="The question.")
    action = Word(tickets.ACTIONS, named="DecisionAction", help_text="`cancel`: the agent goes on without.")
    payload = Anything(
        required=False, help_text="What the agent gets; with `resume` it keeps to the question's schema, if it has one."
    )
    decision_id = serializers.CharField(required=False, help_text="Your own id: sent again, it changes nothing.")


class DecidedSerializer(serializers.Serializer[Any]):
    """The answer that counts. `stored`: the run executes just now, or waits for other answers too."""

    run_id = serializers.UUIDField()
    thread_id = serializers.UUIDField()
    ticket_id = serializers.CharField()
    decision_id = serializers.CharField()
    action = Word(tickets.ACTIONS, named="DecisionAction")
    status = serializers.CharField(help_text="`resumed` or `stored`.")
    dispatch_id = serializers.UUIDField(allow_null=True, help_text="The activation by which it goes on.")


class WaitSerializer(serializers.Serializer[Any]):
    """A run that waits, and what for."""

    run_id = serializers.UUIDField()
    thread_id = serializers.UUIDField()
    agent = serializers.CharField()
    reason = serializers.CharField(help_text="`tool_permission`: for the answers to its tickets.")
    name = serializers.CharField(allow_blank=True, help_text="What a resume must call it.")
    message = serializers.CharField(allow_blank=True)
    since = Instant(allow_null=True)
    until = Instant(help_text="Then the run ends, stopped.")
    resume_at = Instant(allow_null=True, help_text="When it goes on by itself.")
    tickets = TicketSerializer(many=True, help_text="Its open questions, the oldest first.")


class WaitPageSerializer(serializers.Serializer[Any]):
    items = WaitSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class RunDecisionView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="decide",
        summary="Answer a question of a run",
        tags=["runs"],
        parameters=[RUN_ID],
        request=DecisionSerializer,
        responses={202: DecidedSerializer},
        examples=[
            OpenApiExample(
                "Approve a refund",
                value={
                    "ticket_id": "4f6e3c1a-1f0e-5a51-9d6c-0d4f7a0f8b11",
                    "action": "resume",
                    "payload": {"approved": True},
                    "decision_id": "decision-77",
                },
                request_only=True,
            )
        ],
    )  # fmt: skip
    def post(self, request: Request, run_id: str) -> Response:
        """Answer an open question; the first answer counts. When none is missing any more, the run goes on."""
        parameters(request)
        body = body_of(request, set(DecisionSerializer().fields), required=("ticket_id", "action"))
        by = principal_of(request)[1]
        answer = decide.ticket(scope=self.scope, run_id=path_id("run_id", run_id), by=by, **body)
        return Response(DecidedSerializer(asdict(answer)).data, status=202)


class WaitsView(MailboxView):
    @operation(
        400, 422,
        operation_id="list_waits",
        summary="List waiting runs",
        tags=["runs"],
        parameters=[OpenApiParameter("reason", str, enum=_REASONS), CURSOR, LIMIT],
        responses={200: WaitPageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """The runs that wait for somebody or something, with their open questions; the newest run first."""
        given = parameters(request, "reason", "cursor", "limit")
        limit, scope = limit_of(given), self.scope
        reason = choice_of(given, "reason", _REASONS) if "reason" in given else None
        rows = Run.objects.in_scope(scope).waiting().filter(thread__deleted_at=None).defer(*_NOT_LISTED)
        if reason is not None:
            rows = rows.filter(waiting__reason=reason)
        page = Newest("waits", scope, reason, by="created_at").page(rows, given.get("cursor"), limit)
        return Response(WaitPageSerializer({**page, "items": _described(page["items"])}).data)


def _described(runs: Sequence[Run]) -> list[dict[str, Any]]:
    asked = tickets.open_of([run.pk for run in runs])
    described = []
    for run in runs:
        wait = run.waiting or {}
        since = wait.get("since")
        described.append(
            {
                "run_id": run.pk,
                "thread_id": run.thread_id,
                "agent": run.agent,
                **{name: wait.get(name) or "" for name in ("reason", "name", "message")},
                "since": None if since is None else datetime.fromisoformat(since),
                "until": run.wait_until,
                "resume_at": run.resume_at,
                "tickets": asked[run.pk],
            }
        )
    return described
