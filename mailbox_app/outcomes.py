"""How an activation ends, as the runner tells it to `operations/settle.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The agent returned. `output` is JSON or None; a str also becomes an assistant message."""

    output: Any = None
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The activation failed and may succeed later. `after`: seconds, replaces the backoff; `detail`: for operators."""

    code: str
    message: str
    detail: str = ""
    after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The activation failed for good. `detail`: for operators."""

    code: str
    message: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The activation noticed that the run was cancelled."""

    reason: str = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Suspended:
    """The run waits, and the worker is free. `name`: what a resume must say to be meant for this wait.

    It ends at `until`, or `seconds` after it has begun (neither: the setting `wait_ttl_seconds`); a rate limit is then
    over, any other wait has expired. `entry` names the wait in the journal: name, key, n, arguments_hash. A wait for
    answers names its tickets instead, each of which has an end of its own; one for child runs names those besides.
    """

    reason: str
    name: str = ""
    message: str = ""
    seconds: float | None = None
    until: datetime | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    ticket_ids: Sequence[str] = ()
    child_run_ids: Sequence[str] = ()


Outcome = Finished | Retry | Failed | Stopped | Suspended
