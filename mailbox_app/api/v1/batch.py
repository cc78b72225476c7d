"""Many runs in one request: all are accepted, or none."""

from dataclasses import asdict
from typing import Any

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiExample
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import idempotency, requests, serializers
from mailbox_app.api.v1.base import MailboxView, body_of, fields_of
from mailbox_app.api.v1.fields import instant
from mailbox_app.api.v1.pagination import parameters
from mailbox_app.api.v1.runs import FIELDS as RUN_FIELDS
from mailbox_app.api.v1.schema import IDEMPOTENCY_KEY, REPLAYED, operation
from mailbox_app.api.v1.throttling import charge_submissions
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.operations import submit

_FIELDS = set(requests.NewBatchSerializer().fields)

_EXAMPLE = OpenApiExample(
    "Ask twice",
    value={
        "runs": [
            {"agent": "echo", "messages": [{"content": "Hello"}]},
            {"agent": "echo", "thread_key": "customer-42", "messages": [{"content": "Hello again"}]},
        ]
    },
    request_only=True,
)


class BatchView(MailboxView):
    @operation(
        400, 404, 409, 410, 413, 415, 422,
        operation_id="submit_runs",
        summary="Submit many runs",
        tags=["runs"],
        request=requests.NewBatchSerializer,
        responses={202: serializers.BatchSerializer},
        parameters=[IDEMPOTENCY_KEY, REPLAYED],
        examples=[_EXAMPLE],
    )  # fmt: skip
    def post(self, request: Request) -> HttpResponseBase:
        """Submit up to `max_batch_runs` runs in one transaction: one that is refused refuses them all.

        A field of `errors` names the run: `runs[3].messages[0].content`.
        """
        parameters(request)
        body = body_of(request, _FIELDS, required=("runs",))
        submissions = _submissions(body["runs"])
        charge_submissions(request, len(submissions))
        scope = self.scope

        def act() -> Response:
            receipts = submit.many(scope=scope, submissions=submissions, origin="rest")
            told = {"items": [asdict(receipt) for receipt in receipts]}
            return Response(serializers.BatchSerializer(told).data, status=202)

        return idempotency.once(request, scope=scope, body=body, act=act)


def _submissions(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise InvalidInput("runs", "not_a_list", "runs must be an array")
    if not given:
        raise InvalidInput("runs", "empty", "runs must hold at least one run")
    if len(given) > conf.max_batch_runs:
        raise InvalidInput(
            "runs", "too_many", f"runs holds {len(given)} entries, at most {conf.max_batch_runs} are allowed"
        )
    found = []
    for index, one in enumerate(given):
        at = f"runs[{index}]"
        fields = fields_of(one, RUN_FIELDS, required=("messages",), at=at)
        found.append({**fields, "available_at": instant(f"{at}.available_at", fields.get("available_at"))})
    return found
