"""What is said: to a thread or to a run, and the log of what was read."""

from dataclasses import asdict

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiExample, OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import idempotency, requests, serializers, threads
from mailbox_app.api.v1.base import MailboxView, body_of, path_id
from mailbox_app.api.v1.pagination import choice_of, limit_of, number_of, page, parameters
from mailbox_app.api.v1.permissions import principal_of
from mailbox_app.api.v1.schema import IDEMPOTENCY_KEY, LIMIT, LOCATION, REPLAYED, RUN_ID, THREAD_ID, operation
from mailbox_app.api.v1.throttling import charge_submissions
from mailbox_app.models import Message, Visibility
from mailbox_app.operations import post

_FIELDS = set(requests.PostSerializer().fields)
_INPUTS = set(requests.NewInputsSerializer().fields)
_ORDERS = ("asc", "desc")
_VISIBILITIES = (*Visibility.values, "all")

_EXAMPLES = [
    OpenApiExample("Say something", value={"messages": [{"content": "And another thing"}]}, request_only=True),
    OpenApiExample(
        "Steer the run that is at work",
        value={"messages": [{"content": "Only the last quarter, please"}], "if_active": "steer"},
        request_only=True,
    ),
]


class ThreadMessagesView(MailboxView):
    @operation(
        400, 404, 410, 422,
        operation_id="list_thread_messages",
        summary="Read a thread's log",
        tags=["threads"],
        parameters=[
            THREAD_ID,
            OpenApiParameter("after", int, description="Messages with a greater `seq`."),
            OpenApiParameter("before", int, description="Messages with a smaller `seq`."),
            OpenApiParameter("order", str, enum=_ORDERS, default="asc"),
            OpenApiParameter("visibility", str, enum=_VISIBILITIES, default="public"),
            LIMIT,
        ],
        responses={200: serializers.MessagePageSerializer},
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Response:
        """The messages that were read or said, in order. What no agent has read yet is not among them."""
        given = parameters(request, "after", "before", "order", "visibility", "limit")
        after, before, limit = number_of(given, "after"), number_of(given, "before"), limit_of(given)
        descends = choice_of(given, "order", _ORDERS) == "desc"
        visibility = choice_of(given, "visibility", _VISIBILITIES)
        thread = threads.find(self.scope, thread_id)
        rows = Message.objects.filter(thread=thread).committed()
        if visibility != "all":
            rows = rows.filter(visibility=visibility)
        if after is not None:
            rows = rows.filter(seq__gt=after)
        if before is not None:
            rows = rows.filter(seq__lt=before)
        items, has_more = page(rows.order_by("-seq" if descends else "seq")[: limit + 1], limit)
        stands = items[-1].seq if items else (before if descends else after or 0)
        found = {"items": items, "next_cursor": stands, "has_more": has_more}
        return Response(serializers.MessagePageSerializer(found).data)

    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="post_messages",
        summary="Say something to a thread",
        tags=["threads"],
        parameters=[THREAD_ID, IDEMPOTENCY_KEY, LOCATION, REPLAYED],
        request=requests.PostSerializer,
        responses={202: serializers.ReceiptSerializer},
        examples=_EXAMPLES,
    )  # fmt: skip
    def post(self, request: Request, thread_id: str) -> HttpResponseBase:
        """Post messages; `run_id` is the run that will answer them.

        What is said while a run waits to start joins it, unless it was asked for otherwise. A run that waits for input
        goes on with them.
        """
        parameters(request)
        wanted = path_id("thread_id", thread_id)
        charge_submissions(request, 1)
        body = body_of(request, _FIELDS, required=("messages",))
        scope, by = self.scope, principal_of(request)[0]

        def act() -> Response:
            receipt = post.to_thread(scope=scope, thread_id=wanted, origin="rest", by=by, **body)
            return _accepted(self, receipt)

        return idempotency.once(request, scope=scope, body=body, act=act)


class RunInputsView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="post_run_inputs",
        summary="Say something to an open run",
        tags=["runs"],
        parameters=[RUN_ID, IDEMPOTENCY_KEY, LOCATION, REPLAYED],
        request=requests.NewInputsSerializer,
        responses={202: serializers.ReceiptSerializer},
    )  # fmt: skip
    def post(self, request: Request, run_id: str) -> HttpResponseBase:
        """Have the run read messages at its next step or, if it waits for input, go on with them."""
        parameters(request)
        wanted = path_id("run_id", run_id)
        charge_submissions(request, 1)
        body = body_of(request, _INPUTS, required=("messages",))
        scope = self.scope

        def act() -> Response:
            return _accepted(self, post.to_run(scope=scope, run_id=wanted, origin="rest", **body))

        return idempotency.once(request, scope=scope, body=body, act=act)


def _accepted(view: MailboxView, receipt: post.Receipt) -> Response:
    answer = serializers.ReceiptSerializer(asdict(receipt))
    return Response(answer.data, status=202, headers={"Location": view.link("run", run_id=receipt.run_id)})
