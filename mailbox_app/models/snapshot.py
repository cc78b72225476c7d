"""`Snapshot`: how a run came about, as `Run.activation` keeps it.

Its shape has a version. An older one is brought up to date when it is read, one step a version, and never rewritten for
that: rows outlive releases. A newer one is refused: code that guesses at what it does not know would run something else
than was asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mailbox_app.errors import SnapshotTooNew, SnapshotUnreadable

# Raise it with the shape, add the step that leads to it, and keep a row of the old shape in tests/operations/snapshots.
VERSION = 2

# Written where there is any.
_RARE = ("trace", "posted", "digest", "replayed_by", "depth", "detached")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a run was asked for with, and by whom.

    `origin`: the door it was asked for at ("rest", "python", …), or what made it: "durable", "requeue", "replay", ….
    `adapter`: the door at which the intent came in first, whatever made this run of it. `sender`: that of its messages,
    blank where they differ. `run_mode`: "foreground" for an interrupt, else "background". `trace`: where it was
    submitted ({"traceparent": …}). `posted`: for `joining`. `digest`: of a durable message, for `deliver`.
    `depth`: how many runs are above a child; `detached`: it goes on also when its parent is cancelled.
    """

    origin: str = ""
    adapter: str = ""
    sender: str = ""
    run_mode: str = "background"
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, str] = field(default_factory=dict)
    posted: dict[str, Any] | None = None
    digest: str | None = None
    replayed_by: str | None = None
    depth: int = 0
    detached: bool = False

    @classmethod
    def read(cls, stored: Any) -> "Snapshot":
        """The snapshot, whatever version wrote it. Raises SnapshotTooNew, SnapshotUnreadable."""
        if not isinstance(stored, dict):
            raise SnapshotUnreadable(f"the snapshot is a {type(stored).__name__}, not an object")
        version = stored.get("version", 0)
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            raise SnapshotUnreadable(f"the snapshot's version is {version!r:.50}")
        if version > VERSION:
            raise SnapshotTooNew(f"the snapshot is of version {version}; this code knows {VERSION}", version=version)
        for known in range(version, VERSION):
            stored = _STEPS[known](stored)
        for name, is_right in _SHAPE.items():
            if name in stored and not is_right(stored[name]):
                raise SnapshotUnreadable(f"{name} of the snapshot is a {type(stored[name]).__name__}")
        return cls(**{name: stored[name] for name in _SHAPE if name in stored})

    @classmethod
    def shown(cls, stored: Any) -> "Snapshot":
        """As much of it as can be told, for those who look and do nothing by it; raises nothing."""
        try:
            return cls.read(stored)
        except (SnapshotTooNew, SnapshotUnreadable):
            found = stored if isinstance(stored, dict) else {}
            return cls(**{name: found[name] for name, is_right in _SHAPE.items() if is_right(found.get(name))})

    def write(self) -> dict[str, Any]:
        """The present shape, for `Run.activation`."""
        names = ("origin", "adapter", "sender", "run_mode", "options", "metadata")
        rare = {name: getattr(self, name) for name in _RARE}
        return {
            "version": VERSION,
            **{name: getattr(self, name) for name in names},
            **{name: value for name, value in rare.items() if value},
        }


def _from_0(stored: dict[str, Any]) -> dict[str, Any]:
    """Rows without a version: options and metadata, where there are any."""
    return {"origin": "", "options": {}, "metadata": {}, **stored}


def _from_1(stored: dict[str, Any]) -> dict[str, Any]:
    """`origin` was all that was known of the door, and the mark of a run that may be joined all of its sender."""
    origin, posted = stored.get("origin", ""), stored.get("posted")
    return {
        "adapter": origin if origin in ("rest", "python", "durable") else "",
        "sender": (posted.get("sender") if isinstance(posted, dict) else None) or "",
        "run_mode": "background",
        **stored,
    }


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _from_0, 1: _from_1}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_posted(value: Any) -> bool:
    return _is_object(value) and _is_text(value.get("sender")) and _is_object(value.get("by"))


def _is_trace(value: Any) -> bool:
    return _is_object(value) and all(_is_text(one) for one in value.values())


_SHAPE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("origin", "adapter", "sender", "run_mode", "digest", "replayed_by"), _is_text),
    **dict.fromkeys(("options", "metadata"), _is_object),
    "trace": _is_trace,
    "depth": _is_count,
    "detached": _is_flag,
    "posted": _is_posted,
}
