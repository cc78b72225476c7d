"""What a refusal looks like over HTTP: RFC 9457 problem details, and the one table code → status."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest
from django.http.request import UnreadablePostError
from django.utils.log import log_response
from rest_framework.exceptions import APIException, NotAuthenticated, Throttled
from rest_framework.response import Response

from mailbox_app.errors import InvalidInput, MailboxError, Retryable

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Problem:
    """One kind of refusal. `title` never changes; `retry_after` (seconds) says that the same request may succeed."""

    status: int
    title: str
    retry_after: int | None = None


# Code → status, here and nowhere else. A code is API: it is never renamed.
PROBLEMS: dict[str, Problem] = {
    "malformed_request": Problem(400, "The request breaks the rules of HTTP or of this server"),
    "malformed_json": Problem(400, "The body is not well-formed JSON"),
    "malformed_id": Problem(400, "An id in the address is not a UUID"),
    "malformed_cursor": Problem(400, "The cursor was not made by this listing"),
    "malformed_parameter": Problem(400, "A query parameter has the wrong form"),
    "malformed_idempotency_key": Problem(400, "The Idempotency-Key has the wrong form"),
    "not_authenticated": Problem(401, "Credentials are required"),
    "authentication_failed": Problem(401, "The credentials are not valid"),
    "permission_denied": Problem(403, "The credentials do not allow this"),
    "not_found": Problem(404, "There is nothing at this address"),
    "thread_not_found": Problem(404, "There is no such thread"),
    "run_not_found": Problem(404, "There is no such run"),
    "message_not_found": Problem(404, "There is no such message in the thread"),
    "ticket_not_found": Problem(404, "The run has no such question"),
    "dead_letter_not_found": Problem(404, "There is no such dead letter"),
    "not_paused": Problem(404, "There is no such pause"),
    "not_limited": Problem(404, "There is no such limit"),
    "method_not_allowed": Problem(405, "The address does not support this method"),
    "not_acceptable": Problem(406, "No representation matches the Accept header"),
    "conflict": Problem(409, "The state has moved on"),
    "active_run_conflict": Problem(409, "The thread's open run is not what was expected"),
    "duplicate_key": Problem(409, "Another run holds this dedupe key"),
    "already_exists": Problem(409, "It exists already"),
    "immutable": Problem(409, "What is published is never changed"),
    "revision_conflict": Problem(409, "Somebody has changed it since you looked"),
    "already_consumed": Problem(409, "An agent has read the message"),
    "thread_busy": Problem(409, "The thread has a run that is not done"),
    "thread_has_children": Problem(409, "Threads of child runs are below the thread"),
    "not_scheduled": Problem(409, "The run has nothing queued that could start now"),
    "already_resolved": Problem(409, "The dead letter has been replayed or discarded"),
    "already_decided": Problem(409, "The question has been answered"),
    "ticket_expired": Problem(409, "The question was not answered in time"),
    "nothing_to_replay": Problem(409, "The run of the dead letter had read nothing"),
    "idempotency_key_reused": Problem(409, "The Idempotency-Key belongs to another request"),
    "request_in_flight": Problem(409, "The first request with this Idempotency-Key is still running", 1),
    "gone": Problem(410, "It was here and has been deleted"),
    "cursor_pruned": Problem(410, "Events after this cursor are past their retention"),
    "body_too_large": Problem(413, "The body is too large"),
    "unsupported_media_type": Problem(415, "The body must be JSON"),
    "invalid_input": Problem(422, "Something in the request is not acceptable"),
    "unknown_agent": Problem(422, "No worker knows this agent"),
    "throttled": Problem(429, "Too many requests, or runs, in this minute"),
    "mailbox_full": Problem(429, "The thread holds as many queued runs as are allowed", 5),
    "internal_error": Problem(500, "The server failed"),
    "retryable": Problem(503, "Nothing was written: try again", 1),
    "unavailable": Problem(503, "The database cannot be reached just now", 1),
}

# Where the class of the error tree says less than a caller over HTTP needs.
_MEANINGS = {
    "malformed_request": "Mend the request.",
    "malformed_json": "Mend the body; `detail` says where it breaks off.",
    "malformed_id": "Ids are UUIDs with hyphens.",
    "malformed_cursor": "Pass `next_cursor` back as it was, with the same filters.",
    "malformed_parameter": "Mend the parameter that `errors` names.",
    "malformed_idempotency_key": "Send 1 to 200 visible ASCII characters.",
    "not_authenticated": "Send `Authorization: Bearer <token>`, or log in.",
    "authentication_failed": "Get another token: this one is unknown, expired or revoked, or its user is not active.",
    "permission_denied": "Ask somebody who may.",
    "not_found": "Look the address up in the API's document.",
    "method_not_allowed": "`Allow` lists the methods.",
    "not_acceptable": "Accept `application/json`.",
    "body_too_large": "Send less: `max_bytes` is the limit (setting `max_body_bytes`).",
    "unsupported_media_type": "Send `Content-Type: application/json`, in UTF-8.",
    "throttled": "Wait for as long as `Retry-After` says.",
    "internal_error": "Tell an operator; the error has been logged.",
    "unavailable": "Repeat the request, with the same Idempotency-Key if it had one.",
}

_RESERVED = frozenset({"type", "title", "status", "detail", "code", "errors", "instance"})


class Malformed(MailboxError):
    """The request cannot be read; `code` says which part of it."""

    code = "malformed_request"

    def __init__(self, code: str, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.code = code


def problem(
    code: str, detail: str, *, errors: list[dict[str, str]] | None = None, facts: Mapping[str, Any] | None = None
) -> Response:
    """Answer with problem details; a fact `field` becomes an entry of `errors`."""
    kind = PROBLEMS[code]
    known = dict(facts or {})
    if errors is None and "field" in known:
        errors = [{"field": known.pop("field"), "code": code, "message": detail}]
    body: dict[str, Any] = {
        "type": f"urn:mailbox:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": _printable(detail),
        "code": code,
    }
    if errors:
        body["errors"] = [{name: _printable(value) for name, value in entry.items()} for entry in errors]
    body |= {name: _fact(value) for name, value in known.items() if name not in _RESERVED and value is not None}
    headers = {} if kind.retry_after is None else {"Retry-After": str(kind.retry_after)}
    return Response(body, status=kind.status, headers=headers, content_type=MEDIA_TYPE)


def answer(error: Exception, context: dict[str, Any]) -> Response:
    """Turn whatever a view raised into problem details. What nobody foresaw is logged and told to nobody else."""
    match error:
        case InvalidInput():
            return problem(error.code, error.message, errors=error.errors, facts=error.facts)
        case MailboxError() if error.code in PROBLEMS:
            return problem(error.code, error.message, facts=error.facts)
        case Retryable():
            return problem("retryable", error.message, facts=error.facts)
        case Http404():
            return problem("not_found", "There is nothing at this address.")
        case PermissionDenied():
            return problem("permission_denied", str(error) or "The credentials do not allow this.")
        case RequestDataTooBig():
            limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
            return problem("body_too_large", f"the body must have at most {limit} bytes", facts={"max_bytes": limit})
        case SuspiciousOperation() | UnreadablePostError():
            return problem("malformed_request", "The request cannot be read.")
        case APIException() if error.default_code in PROBLEMS:
            return _of_framework(error)
        case OperationalError() | InterfaceError():
            return _logged(
                problem(
                    "unavailable",
                    "The database did not answer. Whether anything was written is not known: repeat the request, "
                    "with the same Idempotency-Key if it had one.",
                ),
                error,
                context,
            )
        case _:
            return _logged(problem("internal_error", "The request failed; the error has been logged."), error, context)


def reference() -> str:
    """Every code as a Markdown table."""
    classes = {one.code: one for one in _tree(MailboxError)}
    lines = ["| code | status | title | what it means, what to do |", "|---|---|---|---|"]
    for code, kind in PROBLEMS.items():
        meaning = _MEANINGS.get(code) or (classes[code].__doc__ or "").splitlines()[0]
        again = "" if kind.retry_after is None else f" `Retry-After: {kind.retry_after}`."
        lines.append(f"| `{code}` | {kind.status} | {kind.title} | {meaning}{again} |")
    return "\n".join(lines) + "\n"


def _tree(root: type[MailboxError]) -> list[type[MailboxError]]:
    return [one for child in root.__subclasses__() for one in (child, *_tree(child))]


def _of_framework(error: APIException) -> Response:
    unauthenticated = isinstance(error, NotAuthenticated)
    detail = "send `Authorization: Bearer <token>`, or log in" if unauthenticated else str(error.detail)
    response = problem(error.default_code, detail)
    challenge = getattr(error, "auth_header", None)
    if challenge:
        response["WWW-Authenticate"] = challenge
    if isinstance(error, Throttled):
        response["Retry-After"] = str(max(math.ceil(getattr(error, "wait", None) or 0), 1))
    return response


def _logged(response: Response, error: Exception, context: dict[str, Any]) -> Response:
    """Log as Django does an exception that reaches it: same logger, same signal, so that error trackers see it."""
    view, request = context.get("view"), context["request"]
    plain: HttpRequest = getattr(request, "_request", request)
    got_request_exception.send(sender=type(view), request=plain)
    log_response("%s: %s", response.reason_phrase, plain.path, response=response, request=plain, exception=error)
    return response


def _fact(value: Any) -> Any:
    return value if isinstance(value, int | float) else _printable(str(value))


def _printable(text: str) -> str:
    """The text with lone surrogates escaped: a message may quote what the client sent, and must still be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
