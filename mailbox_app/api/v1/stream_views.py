"""Streams: events as they happen, and what a running agent says."""

from collections.abc import Sequence
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import runs, stream, threads
from mailbox_app.api.v1.base import MailboxView
from mailbox_app.api.v1.events import CURSOR
from mailbox_app.api.v1.pagination import parameters
from mailbox_app.api.v1.schema import RUN_ID, THREAD_ID, operation

LAST_EVENT_ID = OpenApiParameter(
    stream.LAST_EVENT_ID,
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The `id` of the last event received: a client that reconnects sends it, and it wins over `cursor`.",
)


class _StreamView(MailboxView):
    # No HEAD: it would stream to nobody.
    http_method_names: tuple[str, ...] = ("get",)
    renderer_classes: Sequence[type[BaseRenderer]] = (stream.EventStreamRenderer,)

    @property
    def default_response_headers(self) -> dict[str, str]:
        return {**super().default_response_headers, **stream.HEADERS}


class RunStreamView(_StreamView):
    @operation(
        400, 404, 410, 422,
        operation_id="stream_run_events",
        summary="Stream a run's events",
        tags=["runs"],
        parameters=[RUN_ID, CURSOR, LAST_EVENT_ID],
        responses={**stream.ANSWERS, 204: OpenApiResponse(description="The run is done, and all of it was sent.")},
    )  # fmt: skip
    def get(self, request: Request, run_id: str) -> Any:
        """A run's public events as they happen, and its live text (`delta`). `end` says that the run is done."""
        cursor = stream.cursor_of(request, parameters(request, "cursor"))
        run = runs.find(self.scope, run_id)
        return stream.of_run(request, run, cursor=cursor) or Response(status=204)


class ThreadStreamView(_StreamView):
    @operation(
        400, 404, 410, 422,
        operation_id="stream_thread_events",
        summary="Stream a thread's events",
        tags=["threads"],
        parameters=[THREAD_ID, CURSOR, LAST_EVENT_ID],
        responses=stream.ANSWERS,
    )  # fmt: skip
    def get(self, request: Request, thread_id: str) -> Any:
        """A thread's public events as they happen, and the live text of its open run (`delta`)."""
        cursor = stream.cursor_of(request, parameters(request, "cursor"))
        thread = threads.find(self.scope, thread_id)
        return stream.of_thread(request, thread, cursor=cursor)
