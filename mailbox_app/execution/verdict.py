"""Whether an error will pass: by the nearest of its types that anybody classified, else by its HTTP status.

Of one type, the agent's word (`@agent(transient=, permanent=)`) goes before the process's (`classify`) and that before
ours. What is known of HTTP libraries and of the clients of model providers is known by name: none is imported for it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from mailbox_app import catalogue
from mailbox_app.errors import InvalidInput, MailboxError, Permanent, Stop, Transient


class Verdict(StrEnum):
    """What another attempt is worth."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, the code it is told by, and after how many seconds another attempt is welcome (None: not said)."""

    verdict: Verdict
    code: str
    after: float | None = None


# A longer wait is a mistake, and a far longer one no timestamp can hold.
_LONGEST_RETRY_SECONDS = 7 * 86_400.0

_ours: dict[type[BaseException], Verdict] = {
    Transient: Verdict.TRANSIENT,
    Permanent: Verdict.PERMANENT,
    InvalidInput: Verdict.PERMANENT,
    TimeoutError: Verdict.TRANSIENT,
    ConnectionError: Verdict.TRANSIENT,
}
_of_the_team: dict[type[BaseException], Verdict] = {}

# (package, class): what its instances mean that carry no HTTP status. A subclass that is named goes before its base.
_BY_NAME: dict[tuple[str, str], Verdict] = {
    ("httpx", "InvalidURL"): Verdict.PERMANENT,
    ("httpx", "UnsupportedProtocol"): Verdict.PERMANENT,
    ("httpx", "RequestError"): Verdict.TRANSIENT,
    ("requests", "InvalidURL"): Verdict.PERMANENT,
    ("requests", "MissingSchema"): Verdict.PERMANENT,
    ("requests", "InvalidSchema"): Verdict.PERMANENT,
    ("requests", "Timeout"): Verdict.TRANSIENT,
    ("requests", "ConnectionError"): Verdict.TRANSIENT,
    # The rest of these two trees: no credentials, a filtered or overlong answer, a misused client.
    **{(package, "APIError"): Verdict.TRANSIENT for package in ("openai", "anthropic")},
    ("openai", "WebSocketConnectionClosedError"): Verdict.TRANSIENT,
    ("openai", "WebSocketQueueFullError"): Verdict.TRANSIENT,
    ("openai", "OpenAIError"): Verdict.PERMANENT,
    ("anthropic", "AnthropicError"): Verdict.PERMANENT,
    ("pydantic_core", "ValidationError"): Verdict.PERMANENT,
    ("pydantic", "ValidationError"): Verdict.PERMANENT,
    ("django", "ValidationError"): Verdict.PERMANENT,
    ("jsonschema", "ValidationError"): Verdict.PERMANENT,
}

# Of the 4xx, those that the same request may outlive: timeout, conflict (a lock, says who sends it), too early, limit.
_PASSING = (408, 409, 425, 429)


def classify(exception_type: type[BaseException], verdict: Verdict | str) -> None:
    """Say what errors of this type, and of types below it that nobody names, mean to the agents of this process.

    `verdict`: "transient" (try again) or "permanent" (a dead letter at once). Raises ValueError for anything else, and
    for a type that is no exception.
    """
    if not (isinstance(exception_type, type) and issubclass(exception_type, BaseException)):
        raise ValueError(f"{exception_type!r} is no exception type")
    if issubclass(exception_type, Stop):
        raise ValueError(f"{exception_type.__name__} ends an activation by itself; it cannot be classified")
    _of_the_team[exception_type] = Verdict(verdict)


def judge(error: BaseException, spec: catalogue.AgentSpec | None = None) -> Judgement:
    """What an agent's exception means. Nobody's type and no HTTP status: transient.

    Of a group (`asyncio.TaskGroup`), one permanent error decides; else the last of them to be tried again.
    """
    if isinstance(error, BaseExceptionGroup):
        judged = [judge(one, spec) for one in _leaves(error)]
        permanent = [one for one in judged if one.verdict is Verdict.PERMANENT]
        return (permanent or sorted(judged, key=lambda one: one.after or 0.0, reverse=True))[0]
    verdict = _by_type(error, spec)
    if isinstance(error, MailboxError | Stop):
        after = _seconds(error.retry_after) if isinstance(error, Transient) else None
        return Judgement(verdict=verdict or Verdict.TRANSIENT, code=str(error.code), after=after)
    status = _status(error)
    if status is None:
        return Judgement(
            verdict=verdict or _by_name(error) or Verdict.TRANSIENT,
            code=type(error).__name__,
            after=_seconds(_read(error, "retry_after")),
        )
    is_refused = 400 <= status < 500 and status not in _PASSING
    verdict = verdict or (Verdict.PERMANENT if is_refused else Verdict.TRANSIENT)
    return Judgement(verdict=verdict, code=f"http_{status}", after=_retry_after(error))


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


def _by_type(error: BaseException, spec: catalogue.AgentSpec | None) -> Verdict | None:
    """The verdict of the nearest of its types that somebody classified."""
    of_agent: dict[type[BaseException], Verdict] = {}
    if spec is not None:
        of_agent = dict.fromkeys(spec.transient, Verdict.TRANSIENT) | dict.fromkeys(spec.permanent, Verdict.PERMANENT)
    known = (of_agent, _of_the_team, _ours)
    return next((table[kind] for kind in type(error).__mro__ for table in known if kind in table), None)


def _by_name(error: BaseException) -> Verdict | None:
    for kind in type(error).__mro__:
        found = _BY_NAME.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status an error stands for, as requests, httpx, aiohttp, urllib and the providers' clients carry it."""
    response = _read(error, "response")
    for found in (_read(error, "status_code"), _read(response, "status_code"), _read(error, "status")):
        if isinstance(found, int) and not isinstance(found, bool) and 400 <= found <= 599:
            return int(found)
    return None


def _retry_after(error: BaseException) -> float | None:
    """Seconds until another attempt is welcome, from the response's Retry-After: seconds, or an HTTP date."""
    headers = _read(_read(error, "response"), "headers")
    if headers is None:
        headers = _read(error, "headers")
    text = _header(headers, "Retry-After")
    if text is None:
        return None
    seconds = _seconds(text)
    if seconds is not None:
        return seconds
    until, sent_at = _date(text), _date(_header(headers, "Date") or "")
    # Both by the server's clock where it tells it: this one's may be wrong.
    return None if until is None else _seconds((until - (sent_at or datetime.now(UTC))).total_seconds())


def _header(headers: Any, name: str) -> str | None:
    try:
        found = headers.get(name) or headers.get(name.lower())
    except Exception:  # no headers at all, or somebody's own kind of them
        return None
    return found if isinstance(found, str) else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _read(of: Any, name: str) -> Any:
    """An attribute of somebody else's object, or an item of a mapping; None whatever reading it raises."""
    try:
        return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)
    except Exception:  # a property of theirs
        return None


def _seconds(retry_after: Any) -> float | None:
    """A wait in seconds, within what a row can hold; None, the ordinary backoff, for what is no number."""
    try:
        seconds = float(retry_after)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RETRY_SECONDS)
