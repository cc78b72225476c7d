"""Dispatches: the activations of a run or a thread, and those that failed for good."""

from dataclasses import asdict
from typing import Any

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import idempotency, requests, runs, serializers, threads
from mailbox_app.api.v1.base import MailboxView, body_of, fields_of, optional_body_of, path_id
from mailbox_app.api.v1.fields import instant
from mailbox_app.api.v1.pagination import DEFAULT_LIMIT, MAX_LIMIT, Newest, instant_of, limit_of, parameters, text_of
from mailbox_app.api.v1.permissions import is_staff, principal_of
from mailbox_app.api.v1.schema import (
    CREATED,
    CURSOR,
    DISPATCH_ID,
    IDEMPOTENCY_KEY,
    LIMIT,
    LOCATION,
    REPLAYED,
    RUN_ID,
    THREAD_ID,
    operation,
)
from mailbox_app.errors import InvalidInput
from mailbox_app.models import Dispatch
from mailbox_app.operations import inputs, replay

_REPLAY_FIELDS = set(requests.ReplaySerializer().fields)
_REPLAY_MANY_FIELDS = set(requests.ReplayManySerializer().fields)
_FILTER_FIELDS = set(requests.DeadLetterFilterSerializer().fields)
_DISCARD_FIELDS = set(requests.DiscardSerializer().fields)
_TEXTS, _TIMES = ("agent", "queue", "code"), ("created_after", "created_before")
# What no listing shows, and what may be large.
_NOT_LISTED = ("response", "last_error")


class RunDispatchesView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_run_dispatches",
        summary="List a run's activations",
        tags=["runs"],
        parameters=[RUN_ID, CURSOR, LIMIT],
        responses={200: serializers.ActivationPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, run_id: str) -> Response:
        """The dispatches of a run, the newest first; those of a run that is done are pruned after a day."""
        given = parameters(request, "cursor", "limit")
        limit, run = limit_of(given), runs.find(self.scope, run_id)
        return Response(_page(Newest("run-dispatches", run.pk, by="created_at"), run.dispatches.all(), given, limit))


class ThreadDispatchesView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_thread_dispatches",
        summary="List a thread's activations",
        tags=["threads"],
        parameters=[THREAD_ID, CURSOR, LIMIT],
        responses={200: serializers.ActivationPageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The dispatches of all runs of a thread, the newest first; old ones are pruned."""
        given = parameters(request, "cursor", "limit")
        limit, thread = limit_of(given), threads.find(self.scope, thread_id)
        order = Newest("thread-dispatches", thread.pk, by="created_at")
        return Response(_page(order, thread.dispatches.all(), given, limit))


class DeadLettersView(MailboxView):
    @operation(
        400, 422,
        operation_id="list_dead_letters",
        summary="List dead letters",
        tags=["dead letters"],
        parameters=[
            OpenApiParameter("agent", str),
            OpenApiParameter("queue", str),
            OpenApiParameter("code", str, description="The error's `code`."),
            *CREATED, CURSOR, LIMIT,
        ],
        responses={200: serializers.DeadLetterPageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """What failed for good and nobody has dealt with, the latest failure first."""
        given = parameters(request, *_TEXTS, *_TIMES, "cursor", "limit")
        limit, scope = limit_of(given), self.scope
        wanted: dict[str, Any] = {name: text_of(given, name) for name in _TEXTS}
        wanted |= {name: instant_of(given, name) for name in _TIMES}
        rows = replay.matching(scope=scope, **wanted).defer("response")
        found = Newest("dead-letters", scope, wanted, by="completed_at").page(rows, given.get("cursor"), limit)
        found["items"] = [_told(request, letter) for letter in found["items"]]
        return Response(serializers.DeadLetterPageSerializer(found).data)


class DeadLetterReplayView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="replay_dead_letter",
        summary="Run a dead letter again",
        tags=["dead letters"],
        parameters=[DISPATCH_ID, IDEMPOTENCY_KEY, LOCATION, REPLAYED],
        request=requests.ReplaySerializer,
        responses={202: serializers.ReplayedSerializer},
    )  # fmt: skip
    def post(self, request: Request, dispatch_id: str) -> HttpResponseBase:
        """Queue a new run that reads what the dead one had read and goes on with its journal. Once for each."""
        parameters(request)
        wanted, body = path_id("dispatch_id", dispatch_id), optional_body_of(request, _REPLAY_FIELDS)
        fresh, by, scope = _flag(body, "fresh"), principal_of(request)[1], self.scope

        def act() -> Response:
            replayed = replay.one(dispatch_id=wanted, by=by, scope=scope, fresh=fresh)
            told = serializers.ReplayedSerializer(asdict(replayed)).data
            return Response(told, status=202, headers={"Location": self.link("run", run_id=replayed.run_id)})

        return idempotency.once(request, scope=scope, body=body, act=act)


class DeadLetterDiscardView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="discard_dead_letter",
        summary="Discard a dead letter",
        tags=["dead letters"],
        parameters=[DISPATCH_ID],
        request=requests.DiscardSerializer,
        responses={200: serializers.DeadLetterSerializer},
    )  # fmt: skip
    def post(self, request: Request, dispatch_id: str) -> Response:
        """Say that it was looked at and will not be run again."""
        parameters(request)
        wanted, body = path_id("dispatch_id", dispatch_id), optional_body_of(request, _DISCARD_FIELDS)
        by = principal_of(request)[1]
        replay.discard(dispatch_id=wanted, by=by, reason=body.get("reason", ""), scope=self.scope)
        letter = Dispatch.objects.get(pk=wanted)
        return Response(serializers.DeadLetterSerializer(_told(request, letter)).data)


class DeadLettersReplayView(MailboxView):
    @operation(
        400, 413, 415, 422,
        operation_id="replay_dead_letters",
        summary="Run many dead letters again",
        tags=["dead letters"],
        request=requests.ReplayManySerializer,
        responses={200: serializers.ReplayBatchSerializer},
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """Run again what matches the filter, the oldest failure first, each on its own: what one is refused for keeps
        no other back. Asking again goes on with those that are left."""
        parameters(request)
        body = body_of(request, _REPLAY_MANY_FIELDS, required=("filter",))
        filters = fields_of(body["filter"], _FILTER_FIELDS, at="filter")
        wanted: dict[str, Any] = {name: inputs.optional_text(f"filter.{name}", filters.get(name)) for name in _TEXTS}
        wanted |= {name: instant(f"filter.{name}", filters.get(name)) for name in _TIMES}
        limit = inputs.whole("limit", body.get("limit", DEFAULT_LIMIT), least=1, most=MAX_LIMIT)
        batch = replay.many(
            by=principal_of(request)[1], scope=self.scope, limit=limit, fresh=_flag(body, "fresh"), **wanted
        )
        told = {
            "replayed": [asdict(one) for one in batch.replayed],
            "refused": [{"dispatch_id": dispatch_id, "code": code} for dispatch_id, code in batch.refused],
            "has_more": batch.has_more,
        }
        return Response(serializers.ReplayBatchSerializer(told).data)


def _page(order: Newest, rows: Any, given: dict[str, str], limit: int) -> Any:
    return serializers.ActivationPageSerializer(order.page(rows.defer(*_NOT_LISTED), given.get("cursor"), limit)).data


def _told(request: Request, letter: Dispatch) -> Dispatch:
    """The row as the caller may see it: the whole error may hold what a user wrote, or a key in a URL."""
    if not is_staff(request):
        letter.last_error = None  # type: ignore[assignment]
    return letter


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(name, "not_a_boolean", f"{name} must be true or false, not {value!r:.50}")
    return value
