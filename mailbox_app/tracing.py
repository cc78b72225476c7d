"""One trace from POST to settle, where OpenTelemetry is installed (extra `tracing`) and an SDK is set up; else nothing.

The submitter's span is stored with the run (`activation["trace"]`), and each activation is a trace of its own that
links to it: a run may start hours later and several times, which no parent should wait for. A wake-up carries nothing,
so its trace says nothing either. Spans hold ids, codes and outcomes, never a payload.
"""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mailbox_app.telemetry import observed

try:
    from opentelemetry import context, propagate
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span, get_tracer
except ImportError:
    _is_installed = False
else:
    _is_installed = True

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NAME = "mailbox"
# Spans of the activations that this process executes, by dispatch.
_open: dict[uuid.UUID, "Span"] = {}
_lock = threading.Lock()


def inject() -> dict[str, dict[str, str]]:
    """The current trace context, to be stored with a run: {"trace": {"traceparent": …}}; {} where there is none."""
    if not _is_installed:
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # What is kept for days names a span, and is no place for a caller's baggage.
    kept = {name: value for name, value in carrier.items() if name in ("traceparent", "tracestate")}
    return {"trace": kept} if kept else {}


@contextmanager
def submit_span(**attributes: Any) -> Iterator[Callable[..., None]]:
    """A producer span around a submission, the one that `inject` then names; an error is recorded, and passed on.

    The block gets a function that adds attributes: `note(run_id=…)`.
    """
    if not _is_installed:
        yield lambda **_: None
        return
    with get_tracer(_NAME).start_as_current_span(
        "submit run",
        kind=SpanKind.PRODUCER,
        attributes=_named({"operation.name": "submit", "operation.type": "create", **attributes}),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield lambda **more: span.set_attributes(_named(more))
        except Exception as error:
            _failed(span, str(getattr(error, "code", type(error).__name__)))
            raise


@contextmanager
def activation_span(
    trace: Mapping[str, str], *, dispatch_id: uuid.UUID, agent: str, attempt: int, **ids: Any
) -> Iterator[None]:
    """A consumer span around an activation, from its claim until its outcome is settled, linked to who submitted it.

    The outcome becomes an attribute when the transaction that settles it has committed, whoever settles it.
    """
    if not _is_installed:
        yield
        return
    submitter = get_current_span(propagate.extract(dict(trace), context=context.Context())).get_span_context()
    attributes = _named({"operation.name": "execute", "operation.type": "process", "agent": agent, "attempt": attempt})
    with get_tracer(_NAME).start_as_current_span(
        f"execute {agent}",
        context=context.Context(),  # whatever was current here has nothing to do with the run
        kind=SpanKind.CONSUMER,
        links=[Link(submitter)] if submitter.is_valid else [],
        attributes=attributes | _named({"dispatch_id": dispatch_id, **ids}),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        with _lock:
            _open[dispatch_id] = span
        try:
            yield
        finally:
            with _lock:
                _open.pop(dispatch_id, None)


def connect() -> None:
    """Begin to tell spans how their activations were settled; a second call does nothing."""
    observed.connect(_hear, dispatch_uid="mailbox.tracing")


def _hear(name: str, fields: dict[str, Any], **_: Any) -> None:
    if not _open:
        return
    if name == "dispatch.moved":
        with _lock:
            span = _open.get(fields["dispatch_id"])
        if span is not None:
            _settled(span, fields)
    elif name == "settle.refused":
        with _lock:
            span = _open.get(fields["dispatch_id"])
        if span is not None:
            _failed(span, "lease_lost")
            span.set_attribute("mailbox.outcome", "lease_lost")


def _settled(span: "Span", fields: Mapping[str, Any]) -> None:
    outcome = fields["outcome"]
    if outcome:
        span.set_attribute("mailbox.outcome", outcome)
    if fields["code"]:
        _failed(span, fields["code"])


def _failed(span: "Span", code: str) -> None:
    span.set_attribute("error.type", code)
    # The code, not the text: that may hold what a user wrote.
    span.set_status(Status(StatusCode.ERROR, code))


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes under the names of OpenTelemetry's messaging conventions, and ours where it has none."""
    found: dict[str, Any] = {"messaging.system": "mailbox"}
    for name, value in attributes.items():
        if value is not None:
            prefix = "messaging" if name.startswith("operation.") else "mailbox"
            found[f"{prefix}.{name}"] = value if isinstance(value, int) else str(value)
    return found
