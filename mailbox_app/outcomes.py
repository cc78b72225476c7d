"""How an activation ends, as the runner tells it to `operations/settle.py`."""

from dataclasses import dataclass, field
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


Outcome = Finished | Retry | Failed | Stopped
