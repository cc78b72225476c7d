"""Threads: make one, list them, change and delete one."""

from typing import Any

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import finding, flow, idempotency, requests, serializers
from mailbox_app.api.v1.base import MailboxView, body_of, path_id
from mailbox_app.api.v1.pagination import Newest, id_of, limit_of, parameters
from mailbox_app.api.v1.schema import CURSOR, IDEMPOTENCY_KEY, LIMIT, LOCATION, REPLAYED, THREAD_ID, operation
from mailbox_app.errors import Gone, ThreadNotFound
from mailbox_app.models import Thread
from mailbox_app.operations import inputs, limits, pauses, submit
from mailbox_app.operations import threads as verbs

_FIELDS = set(requests.NewThreadSerializer().fields)
_CHANGES = set(requests.ThreadChangeSerializer().fields)


class ThreadsView(MailboxView):
    @operation(
        400, 422,
        operation_id="list_threads",
        summary="List threads",
        tags=["threads"],
        parameters=[
            OpenApiParameter("key", str, description="Only the thread of this key."),
            OpenApiParameter("parent_id", str, description="Only the threads of child runs of this thread."),
            CURSOR,
            LIMIT,
        ],
        responses={200: serializers.ThreadPageSerializer},
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """Threads, the latest activity first."""
        given = parameters(request, "key", "parent_id", "cursor", "limit")
        limit, scope = limit_of(given), self.scope
        rows = Thread.objects.in_scope(scope).not_deleted()
        if "key" in given:
            rows = rows.filter(key=inputs.text("key", given["key"]))
        parent_id = id_of(given, "parent_id")
        if parent_id is not None:
            rows = rows.filter(parent_id=parent_id)
        found = Newest("threads", scope, [given.get("key", ""), str(parent_id)]).page(rows, given.get("cursor"), limit)
        return Response(serializers.ThreadPageSerializer(found).data)

    @operation(
        400, 409, 413, 415, 422,
        operation_id="create_thread",
        summary="Create a thread",
        tags=["threads"],
        request=requests.NewThreadSerializer,
        responses={201: serializers.ThreadDetailSerializer},
        parameters=[IDEMPOTENCY_KEY, LOCATION, REPLAYED],
    )  # fmt: skip
    def post(self, request: Request) -> HttpResponseBase:
        """Create a thread without a run. `POST /runs` makes one by itself; this is for those who need it before."""
        parameters(request)
        body = body_of(request, _FIELDS)
        scope = self.scope

        def act() -> Response:
            thread_id = submit.thread(scope=scope, **body).pk
            # Read anew: the times in the row are the database's.
            answer = _shown(request, find(scope, str(thread_id)))
            return Response(answer, status=201, headers={"Location": self.link("thread", thread_id=thread_id)})

        return idempotency.once(request, scope=scope, body=body, act=act)


class ThreadView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="get_thread",
        summary="Look at a thread",
        tags=["threads"],
        parameters=[THREAD_ID],
        responses={200: serializers.ThreadDetailSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """A thread."""
        parameters(request)
        return Response(_shown(request, find(self.scope, thread_id)))

    @operation(
        400, 404, 410, 413, 415, 422,
        operation_id="change_thread",
        summary="Change a thread",
        tags=["threads"],
        parameters=[THREAD_ID],
        request=requests.ThreadChangeSerializer,
        responses={200: serializers.ThreadDetailSerializer},
    )  # fmt: skip
    def patch(self, request: Request, thread_id: str) -> Response:
        """Give a thread another title, other metadata, or both."""
        parameters(request)
        wanted = path_id("thread_id", thread_id)
        verbs.change(scope=self.scope, thread_id=wanted, **body_of(request, _CHANGES))
        return Response(_shown(request, find(self.scope, thread_id)))

    @operation(
        400, 404, 409, 410, 422,
        operation_id="delete_thread",
        summary="Delete a thread",
        tags=["threads"],
        parameters=[
            THREAD_ID,
            OpenApiParameter(
                "child_strategy",
                str,
                enum=verbs.CHILD_STRATEGIES,
                description="What becomes of the threads of its child runs. `detach`, the default, leaves them; "
                "`reject` refuses while there is one; `cascade` deletes all that are below it, or none.",
            ),
        ],
        responses={204: None},
    )  # fmt: skip
    def delete(self, request: Request, thread_id: str) -> Response:
        """Delete a thread none of whose runs is open or queued. From then on it is 410, and its key is free again."""
        given = parameters(request, "child_strategy")
        wanted = given.get("child_strategy", verbs.DETACH)
        verbs.delete(scope=self.scope, thread_id=path_id("thread_id", thread_id), child_strategy=wanted)
        return Response(status=204)


def find(scope: str, given: str) -> Thread:
    """The thread of this id. Raises ThreadNotFound (also for another scope's thread) and Gone."""
    thread_id = path_id("thread_id", given)
    thread = finding.thread_of(scope, thread_id)
    if thread is None:
        raise ThreadNotFound(f"thread not found: {thread_id}", thread_id=thread_id)
    if thread.deleted_at is not None:
        raise Gone(f"thread {thread_id} was deleted at {thread.deleted_at.isoformat()}", thread_id=thread_id)
    return thread


def _shown(request: Request, thread: Thread) -> Any:
    thread.pauses = pauses.of_thread(thread)  # type: ignore[attr-defined]
    thread.limits = flow.told(request, limits.of_thread(thread))  # type: ignore[attr-defined]
    return serializers.ThreadDetailSerializer(thread).data
