"""Traces: the activation links to who submitted it, and says how it was settled; without OpenTelemetry all works."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mailbox_app import tracing
from mailbox_app.errors import InvalidInput, Permanent, Transient
from mailbox_app.execution import Context, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.execution.conftest import Perform, Register
from tests.operations import scene

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "the customer's own words"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """A real SDK, for this test alone."""
    made = TracerProvider()
    monkeypatch.setattr(tracing, "get_tracer", made.get_tracer)
    return made


@pytest.fixture
def spans(provider: TracerProvider) -> Callable[[SpanKind], list[ReadableSpan]]:
    """The finished spans of one kind, in the order in which they ended."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return lambda kind: [span for span in exporter.get_finished_spans() if span.kind is kind]


Spans = Callable[[SpanKind], list[ReadableSpan]]


def test_a_trace_leads_from_post_to_settle(provider: TracerProvider, spans: Spans, keeper: LeaseKeeper) -> None:
    with provider.get_tracer("client").start_as_current_span("POST") as request:
        answer = make.api().post("/runs", {"agent": "echo", "messages": [{"role": "user", "content": SECRET}]})
    assert answer.status_code == 202
    claim = scene.taken()
    runner.run(claim, keeper=keeper, own_process=False)

    [submitted], [executed] = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    assert submitted.parent is not None
    assert submitted.parent.span_id == request.get_span_context().span_id
    assert executed.parent is None, "a run may start hours later: it is no child of the request"
    assert [link.context.span_id for link in executed.links] == [submitted.context.span_id]
    assert [link.context.trace_id for link in executed.links] == [request.get_span_context().trace_id]
    for span in (submitted, executed):
        assert span.attributes is not None
        assert span.attributes["mailbox.run_id"] == str(claim.run_id)
        assert span.attributes["mailbox.dispatch_id"] == str(claim.dispatch_id)
    assert executed.attributes is not None
    assert (executed.attributes["mailbox.outcome"], executed.attributes["mailbox.attempt"]) == ("natural_end", 1)
    assert executed.name == "execute echo"
    assert SECRET not in submitted.to_json() + executed.to_json()


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [(Transient(SECRET), "retry", "transient"), (Permanent(SECRET), "dead_letter", "permanent")],
)
def test_a_failure_is_told_by_its_code(
    error: Exception, outcome: str, code: str, spans: Spans, perform: Perform
) -> None:
    def agent(ctx: Context) -> None:
        raise error

    perform(agent)
    [executed] = spans(SpanKind.CONSUMER)
    assert executed.attributes is not None
    assert (executed.attributes["mailbox.outcome"], executed.attributes["error.type"]) == (outcome, code)
    assert executed.status.status_code is StatusCode.ERROR
    assert SECRET not in executed.to_json()


def test_each_attempt_is_a_trace_of_its_own_with_the_same_link(
    spans: Spans, perform: Perform, again: Callable[..., Claim]
) -> None:
    def agent(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Transient(retry_after=0)

    scene.make_available(perform(agent))
    again()
    first, second = spans(SpanKind.CONSUMER)
    assert first.context.trace_id != second.context.trace_id
    assert [link.context for link in first.links] == [link.context for link in second.links] != []
    attempts = [span.attributes["mailbox.attempt"] for span in (first, second) if span.attributes]
    assert attempts == [1, 2]


def test_a_worker_that_lost_its_lease_says_so(spans: Spans, perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE mailbox_dispatch SET claim_token = gen_random_uuid() WHERE id = %s", [str(ctx.dispatch_id)]
            )
        return "too late"

    perform(agent)
    [executed] = spans(SpanKind.CONSUMER)
    assert executed.attributes is not None
    assert executed.attributes["mailbox.outcome"] == "lease_lost"
    assert executed.status.status_code is StatusCode.ERROR


def test_spans_of_an_agent_s_own_are_inside_its_activation(
    provider: TracerProvider, spans: Spans, perform: Perform
) -> None:
    def agent(ctx: Context) -> None:
        with provider.get_tracer("team").start_as_current_span("call model"):
            pass

    perform(agent)
    [executed], [inner] = spans(SpanKind.CONSUMER), spans(SpanKind.INTERNAL)
    assert inner.parent is not None
    assert inner.parent.span_id == executed.context.span_id


def test_a_refused_submission_is_an_error_and_leaves_no_run(spans: Spans) -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput):
        scene.post(agent="nobody")
    [submitted] = spans(SpanKind.PRODUCER)
    assert submitted.attributes is not None
    assert submitted.attributes["error.type"] == "unknown_agent"


def test_without_an_sdk_nothing_is_stored_and_nothing_is_traced(register: Register, keeper: LeaseKeeper) -> None:
    seen: list[bool] = []
    register(lambda ctx: seen.append(trace.get_current_span().is_recording()))
    posted = scene.post(agent="probe")
    assert "trace" not in scene.run(posted).activation
    runner.run(scene.taken(agents=("probe",)), keeper=keeper, own_process=False)
    assert seen == [False]


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import django
django.setup()
from django.db import connection
connection.settings_dict["NAME"] = sys.argv[1]
import json, uuid
from mailbox_app.execution import runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Run
from mailbox_app.operations import claim, submit

receipt = submit.run(scope="acme", agent="echo", messages=["all the same"])
[taken] = claim.due(queue="mailbox.default", agents=["echo"], worker="w@here:1", tokens=[uuid.uuid4()]).claims
runner.run(taken, keeper=LeaseKeeper(lambda tokens: claim.renew(tokens=tokens)), own_process=False)
run = Run.objects.get(pk=receipt.run_id)
traced = [name for name in sys.modules if name.startswith("opentelemetry")]
print(json.dumps([run.status, run.final_output, sorted(run.activation), traced]))
"""


def test_without_the_package_everything_works() -> None:
    name = str(connection.settings_dict["NAME"])
    done = subprocess.run([sys.executable, "-c", WITHOUT, name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout.splitlines()[-1])
    assert found == [
        "done",
        "all the same",
        ["adapter", "metadata", "options", "origin", "run_mode", "sender", "version"],
        [],
    ]
