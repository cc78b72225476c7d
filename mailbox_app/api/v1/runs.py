"""Runs: submit one, look at one."""

from dataclasses import asdict

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiExample
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import idempotency, serializers
from mailbox_app.api.v1.base import MailboxView, body_of, path_id
from mailbox_app.api.v1.pagination import parameters
from mailbox_app.api.v1.schema import IDEMPOTENCY_KEY, LOCATION, REPLAYED, RUN_ID, operation
from mailbox_app.errors import Gone, RunNotFound
from mailbox_app.models import Run
from mailbox_app.operations import submit

_FIELDS = set(serializers.NewRunSerializer().fields)

_EXAMPLES = [
    OpenApiExample(
        "Ask an agent",
        value={"agent": "echo", "messages": [{"content": "Hello, Mailbox"}]},
        request_only=True,
    ),
    OpenApiExample(
        "Go on in a conversation of your own name",
        value={
            "agent": "echo",
            "thread_key": "customer-42",
            "messages": [{"role": "user", "content": "And another thing", "client_id": "message-7"}],
            "if_active": "enqueue",
            "priority": 64,
            "metadata": {"ticket": "T-1001"},
        },
        request_only=True,
    ),
]


class RunsView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="submit_run",
        summary="Submit a run",
        tags=["runs"],
        request=serializers.NewRunSerializer,
        responses={202: serializers.ReceiptSerializer},
        parameters=[IDEMPOTENCY_KEY, LOCATION, REPLAYED],
        examples=_EXAMPLES,
    )  # fmt: skip
    def post(self, request: Request) -> HttpResponseBase:
        """Post messages to a thread and queue the run that answers them. Once this answers, it is durable."""
        parameters(request)
        body = body_of(request, _FIELDS, required=("messages",))
        scope = self.scope

        def act() -> Response:
            given = {**body, "available_at": serializers.instant("available_at", body.get("available_at"))}
            receipt = submit.run(scope=scope, origin="rest", **given)
            answer = serializers.ReceiptSerializer(asdict(receipt))
            return Response(answer.data, status=202, headers={"Location": self.link("run", run_id=receipt.run_id)})

        return idempotency.once(request, scope=scope, body=body, act=act)


class RunView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="get_run",
        summary="Look at a run",
        tags=["runs"],
        parameters=[RUN_ID],
        responses={200: serializers.RunSerializer},
    )  # fmt: skip
    def get(self, request: Request, run_id: str) -> Response:
        """A run: where it stands, what came of it, and its latest activation."""
        parameters(request)
        run = find(self.scope, run_id)
        run.latest_dispatch = run.dispatches.order_by("-created_at", "-id").first()  # type: ignore[attr-defined]
        return Response(serializers.RunSerializer(run).data)


def find(scope: str, given: str) -> Run:
    """The run of this id, with its thread. Raises RunNotFound (also for another scope's run) and Gone."""
    run_id = path_id("run_id", given)
    run = Run.objects.in_scope(scope).select_related("thread").filter(pk=run_id).first()
    if run is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    if run.thread.deleted_at is not None:
        raise Gone(f"the thread of run {run_id} has been deleted", run_id=run_id, thread_id=run.thread_id)
    return run
