"""How what is followed looks: for people, a line an event and live text as it comes; for programs, JSON lines.

Texts are an agent's, or those of whoever wrote to it: what a terminal would act on is shown as an escape, and each line
of live text begins with a bar, so that no text looks like an event.
"""

import json
import unicodedata
from datetime import date
from typing import Any, Protocol
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from mailbox_app.models import TERMINAL_KINDS, Event, Kind, Visibility
from mailbox_app.watching.follow import End, Note, Said

# Of an event's payload; --json has it all.
MOST_CHARACTERS = 200
# A value that is longer stands behind those that are not.
_LONG = 40
# What every event repeats, and its line or the first one shows anyway.
_REPEATED = frozenset({"thread_id", "run_id", "producer_run_id", "dispatch_id", "dispatch_epoch"})
# Told only once there is something to count.
_COUNTS = frozenset({"attempt_count", "lost_count"})
_BAR = "  | "
_BAD = frozenset({Kind.RUN_ERRORED, Kind.RUN_TERMINATED, Kind.DELIVERY_FAILED})
_GOOD = frozenset({Kind.RUN_FINISHED})


class Shows(Protocol):
    """Whoever shows what is followed."""

    def show(self, one: Event | Said | Note | End) -> None:
        """Write it out, at once."""

    def close(self) -> None:
        """End the line that is open."""


class Lines:
    """For people: events and live text go to `out`, notes to `notes`."""

    def __init__(self, out: Any, notes: Any, style: Any) -> None:
        self._out, self._notes, self._style = out, notes, style
        self._is_in_text = False
        self._day: date | None = None

    def show(self, one: Event | Said | Note | End) -> None:
        """Write it out, at once."""
        if isinstance(one, Said):
            self._say(one)
        elif isinstance(one, Event):
            self._tell(one)
        else:
            self.note(one.text if isinstance(one, Note) else _ending(one))

    def note(self, text: str) -> None:
        """A sentence about the following itself."""
        self.close()
        _write(self._notes, self._style.MIGRATE_LABEL(f"-- {shown(text)}") + "\n")

    def close(self) -> None:
        """End the line that is open."""
        if self._is_in_text:
            self._is_in_text = False
            _write(self._out, "\n")

    def _tell(self, event: Event) -> None:
        self.close()
        at = timezone.localtime(event.created_at)
        if at.date() != self._day:
            self._day = at.date()
            _write(self._out, f"-- {self._day.isoformat()} {at.tzname()}\n")
        words = [f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}", f"{event.cursor:>6} ", self._kind(event)]
        words += [f"{noun} {short(pk)}" for noun, pk in (("run", event.run_id), ("dispatch", event.dispatch_id)) if pk]
        _write(self._out, " ".join([*words, facts(event.payload)]).rstrip() + "\n")

    def _kind(self, event: Event) -> str:
        kind = f"{shown(event.kind):<20}"
        if event.visibility == Visibility.INTERNAL:
            return str(self._style.HTTP_NOT_MODIFIED(f"{kind} (internal)"))
        if event.kind in _BAD:
            return str(self._style.ERROR(kind))
        if event.kind in TERMINAL_KINDS:
            return str(self._style.SUCCESS(kind) if event.kind in _GOOD else self._style.WARNING(kind))
        return kind

    def _say(self, said: Said) -> None:
        text = ("…" if said.has_gap else "") + said.text.replace("\r\n", "\n").replace("\t", "    ")
        begin = "" if self._is_in_text else _BAR
        self._is_in_text = True
        _write(self._out, begin + f"\n{_BAR}".join(shown(line) for line in text.split("\n")))


class JsonLines:
    """For programs: one object a line on `out`, an event as REST shows it; those without a cursor are not stored."""

    def __init__(self, out: Any, notes: Any) -> None:
        self._out, self._notes = out, notes

    def show(self, one: Event | Said | Note | End) -> None:
        """Write it out, at once."""
        if isinstance(one, Note):
            self.note(one.text)
        elif isinstance(one, Event):
            names = ("cursor", "kind", "payload", "run_id", "dispatch_id", "schema_version", "correlation_id")
            found = {name: getattr(one, name) for name in (*names, "thread_id", "visibility", "created_at")}
            self._write(found)
        elif isinstance(one, Said):
            about = {"run_id": one.run_id, "attempt": one.attempt, "offset": one.offset, "text": one.text}
            self._write({"kind": "delta", **about})
        else:
            about = {"thread_id": one.target.thread_id, "run_id": one.target.run_id, "status": one.status}
            self._write({"kind": "end", **about})

    def note(self, text: str) -> None:
        """A sentence about the following itself."""
        _write(self._notes, f"-- {shown(text)}\n")

    def close(self) -> None:
        """Nothing: every line is whole."""

    def _write(self, found: dict[str, Any]) -> None:
        # All but ASCII is escaped, which leaves one control character.
        _write(self._out, json.dumps(found, cls=DjangoJSONEncoder).replace("\x7f", "\\u007f") + "\n")


def facts(payload: Any) -> str:
    """The beginning of a payload on one line: `name=value`, without what is null, repeated, or counts nothing."""
    if isinstance(payload, dict):
        told = [(name, _value(value)) for name, value in payload.items() if not _is_left_out(name, value)]
        # What is cut is cut at its end: first all that is short.
        text = " ".join(f"{name}={value}" for name, value in sorted(told, key=lambda one: len(one[1]) > _LONG))
    else:
        text = _value(payload)
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    return shown(text)


def shown(text: str) -> str:
    """The text on one line, as no terminal acts on it: what cannot be printed becomes an escape."""
    if text.isprintable():
        return text
    return "".join(one if _is_harmless(one) else one.encode("unicode_escape").decode() for one in text)


def short(pk: UUID) -> str:
    """The end of an id, as in the admin: the beginning of a time-ordered one is that of all rows of an hour."""
    return pk.hex[-8:]


def _is_left_out(name: str, value: Any) -> bool:
    return name in _REPEATED or value is None or (name in _COUNTS and value == 0)


def _is_harmless(one: str) -> bool:
    return one.isprintable() or unicodedata.category(one) == "Zs"  # spaces of all widths


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ending(end: End) -> str:
    words = f"{end.target} is {end.status}" if end.status != "deleted" else f"{end.target} was deleted"
    return f"{words}: {end.how}" if end.how else words


def _write(out: Any, text: str) -> None:
    """Write and flush; what the stream's encoding has no character for becomes an escape."""
    encoding = getattr(out, "encoding", None) or "utf-8"
    # Django's streams would end every piece with a line, and colour all that goes to the second one.
    out.write(text.encode(encoding, "backslashreplace").decode(encoding), style_func=str, ending="")
    out.flush()
