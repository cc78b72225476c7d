"""Runs: submit one, find, watch and wait for them, stop one or start it now."""

import json
import uuid
from dataclasses import asdict
from typing import Any, cast

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiExample, OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import finding, flow, idempotency, requests, serializers, stream, threads
from mailbox_app.api.v1.base import MailboxView, body_of, optional_body_of, path_id
from mailbox_app.api.v1.fields import instant
from mailbox_app.api.v1.pagination import (
    Newest,
    choice_of,
    id_of,
    instant_of,
    limit_of,
    parameters,
    seconds_of,
    text_of,
)
from mailbox_app.api.v1.permissions import HasScope, IsStaff, principal_of
from mailbox_app.api.v1.schema import (
    CREATED,
    CURSOR,
    IDEMPOTENCY_KEY,
    LIMIT,
    LOCATION,
    REPLAYED,
    RUN_ID,
    STOP_WAIT,
    THREAD_ID,
    operation,
)
from mailbox_app.api.v1.throttling import charge_submissions
from mailbox_app.api.v1.waiting import Later, WaitingView
from mailbox_app.conf import conf
from mailbox_app.errors import Gone, RunNotFound
from mailbox_app.models import Run, TerminationType, Thread
from mailbox_app.operations import cancel, limits, pauses, submit, tick, tickets
from mailbox_app.states import RunStatus

FIELDS = set(requests.NewRunSerializer().fields)
_CANCEL_FIELDS = set(requests.CancelSerializer().fields)
_FILTERS = ("thread_id", "parent_run_id", "client_id", "agent", "status", "created_after", "created_before")
# A wait that names no time is one that proxies do not cut off.
_DEFAULT_WAIT_SECONDS = 30.0
# What no listing shows, and what may be large.
_NOT_LISTED = ("final_output", "input", "output", "state")

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
    def get_renderers(self) -> list[Any]:
        """A submission alone may be answered by a stream."""
        return [*super().get_renderers(), *([stream.EventStreamRenderer()] if self.request.method == "POST" else [])]

    @operation(
        400, 422,
        operation_id="list_runs",
        summary="List runs",
        tags=["runs"],
        parameters=[
            OpenApiParameter("thread_id", str, description="Only runs of this thread."),
            OpenApiParameter("agent", str),
            OpenApiParameter("status", str, enum=RunStatus.values),
            OpenApiParameter("client_id", str, description="Only the run to which its caller has given this id."),
            OpenApiParameter("parent_run_id", str, description="Only runs that this run has spawned."),
            *CREATED, CURSOR, LIMIT,
        ],
        responses={200: serializers.RunPageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """Runs, the newest first."""
        given = parameters(request, *_FILTERS, "cursor", "limit")
        limit, scope = limit_of(given), self.scope
        wanted: dict[str, Any] = {
            "thread_id": id_of(given, "thread_id"),
            "client_id": text_of(given, "client_id"),
            "agent": text_of(given, "agent"),
            "parent_run_id": id_of(given, "parent_run_id"),
            "status": choice_of(given, "status", RunStatus.values) if "status" in given else None,
            "created_at__gte": instant_of(given, "created_after"),
            "created_at__lt": instant_of(given, "created_before"),
        }
        rows = Run.objects.in_scope(scope).filter(
            thread__deleted_at=None, **{name: value for name, value in wanted.items() if value is not None}
        )
        # A thread's runs have an index by their place on it; all others one by the time they were made.
        order = Newest("runs", scope, wanted, by="created_at" if wanted["thread_id"] is None else "order")
        return Response(_page(order, rows, given, limit))

    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="submit_run",
        summary="Submit a run",
        tags=["runs"],
        request=requests.NewRunSerializer,
        responses={**stream.ANSWERS, 202: serializers.ReceiptSerializer},
        parameters=[IDEMPOTENCY_KEY, LOCATION, REPLAYED],
        examples=_EXAMPLES,
    )  # fmt: skip
    def post(self, request: Request) -> HttpResponseBase:
        """Post messages to a thread and queue the run that answers them. Once this answers, it is durable.

        Asked for `text/event-stream`, it answers with the run's stream, which ends when the run is done or waits.
        """
        parameters(request)
        cursor = stream.cursor_of(request, {})
        charge_submissions(request, 1)
        body = body_of(request, FIELDS, required=("messages",))
        scope = self.scope

        def act() -> Response:
            given = {**body, "available_at": instant("available_at", body.get("available_at"))}
            receipt = submit.run(scope=scope, origin="rest", **given)
            answer = serializers.ReceiptSerializer(asdict(receipt))
            return Response(answer.data, status=202, headers={"Location": self.link("run", run_id=receipt.run_id)})

        answer = idempotency.once(request, scope=scope, body=body, act=act)
        if request.accepted_media_type != stream.MEDIA_TYPE:
            return answer
        self.headers |= stream.HEADERS
        return _streamed(request, answer, scope, cursor)


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
        return Response(_shown(request, find(self.scope, run_id)))


class RunWaitView(WaitingView):
    @operation(
        400, 404, 410, 422,
        operation_id="wait_for_run",
        summary="Wait for a run",
        tags=["runs"],
        parameters=[
            RUN_ID,
            OpenApiParameter(
                "timeout", float, description="Seconds, 30 unless given; brought into 0 to the setting `wait_seconds`."
            ),
        ],
        responses={200: serializers.RunSerializer},
    )  # fmt: skip
    def get(self, request: Request, run_id: str) -> Response:
        """The run once it is done, or waits for somebody; or as it stands when the time is over: look at `status`."""
        given = parameters(request, "timeout")
        seconds = seconds_of(given, "timeout", otherwise=_DEFAULT_WAIT_SECONDS, most=conf.wait_seconds)
        run, scope = find(self.scope, run_id), self.scope
        return Later(
            until=lambda: not is_moving(run.pk),
            seconds=seconds,
            answer=lambda: (_shown(request, find(scope, run_id)), 200),
        )


class RunCancelView(WaitingView):
    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="cancel_run",
        summary="Cancel a run",
        tags=["runs"],
        parameters=[RUN_ID, STOP_WAIT],
        request=requests.CancelSerializer,
        responses={200: serializers.CancelledSerializer, 202: serializers.CancelledSerializer},
    )  # fmt: skip
    def post(self, request: Request, run_id: str) -> Response:
        """200 when the run is done: cancelled here, or ended before. 202 while the worker that executes it is asked."""
        given = parameters(request, "wait")
        seconds = seconds_of(given, "wait", otherwise=0, most=conf.cancel_wait_seconds)
        body = optional_body_of(request, _CANCEL_FIELDS)
        wanted = path_id("run_id", run_id)
        by = principal_of(request)[0]
        receipt = cancel.run(scope=self.scope, run_id=wanted, reason=body.get("reason", ""), by=by)

        def answer() -> tuple[Any, int]:
            run = Run.objects.get(pk=wanted)
            outcome = receipt.outcome if receipt.outcome != cancel.Outcome.REQUESTED else came_of_asking(run)
            told = {**asdict(receipt), "outcome": outcome, "status": run.status, "termination": run.termination}
            return serializers.CancelledSerializer(told).data, 202 if outcome == cancel.Outcome.REQUESTED else 200

        return Later(until=lambda: not is_moving(wanted), seconds=seconds, answer=answer)


class RunNowView(MailboxView):
    permission_classes = (HasScope, IsStaff)

    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="start_run_now",
        summary="Start a run now (staff)",
        tags=["staff"],
        parameters=[RUN_ID],
        request=None,
        responses={200: serializers.MadeDueSerializer},
    )  # fmt: skip
    def post(self, request: Request, run_id: str) -> Response:
        """Let a run that is scheduled for later, or backs off, start as soon as its thread and a worker are free."""
        parameters(request)
        optional_body_of(request, set())
        made = tick.run_now(run_id=path_id("run_id", run_id), by=principal_of(request)[1], scope=self.scope)
        return Response(serializers.MadeDueSerializer(asdict(made)).data)


class ThreadRunsView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_thread_runs",
        summary="List a thread's runs",
        tags=["threads"],
        parameters=[THREAD_ID, CURSOR, LIMIT],
        responses={200: serializers.RunPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """A thread's runs, the newest first."""
        given = parameters(request, "cursor", "limit")
        limit, thread = limit_of(given), threads.find(self.scope, thread_id)
        order = Newest("thread-runs", thread.pk, by="order")
        return Response(_page(order, Run.objects.filter(thread=thread), given, limit))


class ThreadActiveRunView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="get_active_run",
        summary="Look at a thread's open run",
        tags=["threads"],
        parameters=[THREAD_ID],
        responses={200: serializers.RunSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The run that is open on the thread: executing, waiting, or between two attempts. 404 while there is none."""
        parameters(request)
        thread = threads.find(self.scope, thread_id)
        return Response(_shown(request, _first(Run.objects.filter(thread=thread).open(), thread, "open run")))


class ThreadLatestRunView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="get_latest_run",
        summary="Look at a thread's latest run",
        tags=["threads"],
        parameters=[THREAD_ID],
        responses={200: serializers.RunSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The run that was submitted last. 404 while there is none."""
        parameters(request)
        thread = threads.find(self.scope, thread_id)
        latest = [] if thread.latest_run_id is None else [thread.latest_run_id]
        return Response(_shown(request, _first(Run.objects.filter(pk__in=latest), thread, "run")))


def _streamed(request: Request, answer: HttpResponseBase, scope: str, cursor: int) -> HttpResponseBase:
    """The stream of the run that was submitted, now or by the first request with this key."""
    told = answer.data if isinstance(answer, Response) else json.loads(cast(HttpResponse, answer).content)
    run = find(scope, str(told["run_id"]))
    response = stream.of_run(request, run, cursor=cursor, may_wait=False) or Response(status=204)
    for name in ("Location", idempotency.REPLAYED):
        if name in answer.headers:
            response[name] = answer.headers[name]
    return response


def find(scope: str, given: str) -> Run:
    """The run of this id, with its thread. Raises RunNotFound (also for another scope's run) and Gone."""
    run_id = path_id("run_id", given)
    run = finding.run_of(scope, run_id)
    if run is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    if run.thread.deleted_at is not None:
        raise Gone(f"the thread of run {run_id} has been deleted", run_id=run_id, thread_id=run.thread_id)
    return run


def _first(rows: Any, thread: Thread, what: str) -> Run:
    run: Run | None = rows.order_by("-order").first()
    if run is None:
        raise RunNotFound(f"thread {thread.pk} has no {what}", thread_id=thread.pk)
    run.thread = thread
    return run


def _shown(request: Request, run: Run) -> Any:
    found: Any = run
    found.latest_dispatch = latest = run.dispatches.order_by("-created_at", "-id").first()
    found.pauses, found.limits = [], []
    if latest is not None:
        found.pauses, found.limits = pauses.of_dispatch(latest), flow.told(request, limits.of_dispatch(latest))
    # Nobody is asked before a run starts, and its end closes what is open.
    is_open = run.status in (RunStatus.RUNNING, RunStatus.WAITING)
    found.open_tickets = tickets.open_of([run.pk])[run.pk] if is_open else []
    return serializers.RunSerializer(run).data


def _page(order: Newest, rows: Any, given: dict[str, str], limit: int) -> Any:
    return serializers.RunPageSerializer(order.page(rows.defer(*_NOT_LISTED), given.get("cursor"), limit)).data


def came_of_asking(run: Run) -> cancel.Outcome:
    """What has come of asking the worker of a run to stop: nothing yet, the stop, or another end that came first."""
    if run.status != RunStatus.DONE:
        return cancel.Outcome.REQUESTED
    is_cancelled = (run.termination or {}).get("type") == TerminationType.CANCELLED
    return cancel.Outcome.CANCELLED if is_cancelled else cancel.Outcome.ALREADY_DONE


def is_moving(run_id: uuid.UUID) -> bool:
    """Whether there is something to wait for: it is neither done nor waits for somebody, and its thread is there."""
    rows = Run.objects.filter(pk=run_id, thread__deleted_at=None)
    return rows.values_list("status", flat=True).first() in (RunStatus.CREATED, RunStatus.RUNNING)
