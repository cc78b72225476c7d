"""Tables of what belongs to a row: its runs, dispatches, messages, journal and events, each bounded and linked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib.auth import get_permission_codename
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse
from django.utils.text import slugify

from mailbox_app.admin import render
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Permit, Run, Thread, Ticket, Visibility

# What an operator needs at a glance; the rest is one click away.
MOST_ROWS = 50


@dataclass(frozen=True)
class Section:
    """One table; `read` is called only for those who may view the model."""

    title: str
    model: type[Model]
    columns: Sequence[str]
    read: Callable[[], tuple[list[Any], bool]]
    cells: Callable[[Any], Sequence[object]]
    search: object

    def may(self, request: HttpRequest) -> bool:
        """Whether this user may view rows of the model."""
        opts = self.model._meta
        return bool(request.user.has_perm(f"{opts.app_label}.{get_permission_codename('view', opts)}"))

    @property
    def slug(self) -> str:
        return slugify(self.title)

    @property
    def rows(self) -> list[Sequence[object]]:
        """The last rows, oldest first."""
        return [self.cells(row) for row in self._found[0]]

    @property
    def rest_url(self) -> str:
        """Where all rows are listed, if there are more than shown here."""
        if not self._found[1]:
            return ""
        opts = self.model._meta
        return f"{reverse(f'admin:{opts.app_label}_{opts.model_name}_changelist')}?q={self.search}"

    @cached_property
    def _found(self) -> tuple[list[Any], bool]:
        return self.read()


def _last(newest_first: Any) -> Callable[[], tuple[list[Any], bool]]:
    def read() -> tuple[list[Any], bool]:
        rows: Iterable[Any] = newest_first[: MOST_ROWS + 1]
        found = list(rows)
        return list(reversed(found[:MOST_ROWS])), len(found) > MOST_ROWS

    return read


def runs(rows: Any, *, search: object, title: str = "Runs") -> Section:
    """Runs in the order of their thread; of several threads, in the order they were made."""
    return Section(
        title,
        Run,
        ("run", "agent", "status", "turn", "error", "created", "finished"),
        _last(
            rows.order_by("-order", "-id")
            .defer("activation", "state", "input", "output", "final_output", "error")
            .annotate(error_text=render.excerpt("error"))
        ),
        lambda run: (
            render.link_id(Run, run.pk),
            run.agent,
            run.status,
            run.turn,
            render.cell(run.error_text),
            render.instant(run.created_at),
            render.instant(run.finished_at),
        ),
        search,
    )


def dispatches(rows: Any, *, search: object) -> Section:
    """Dispatches in the order they were made."""
    return Section(
        "Dispatches",
        Dispatch,
        ("dispatch", "run", "status", "attempts", "last error", "worker", "available", "completed"),
        _last(rows.order_by("-created_at", "-id").defer("response", "termination", "error")),
        lambda dispatch: (
            render.link_id(Dispatch, dispatch.pk),
            render.link_id(Run, dispatch.run_id),
            dispatch.status,
            render.attempts(dispatch),
            render.cell(dispatch.last_error),
            dispatch.claimed_by or render.NOTHING,
            render.instant(dispatch.available_at),
            render.instant(dispatch.completed_at),
        ),
        search,
    )


def holders(limit_id: UUID) -> Section:
    """Who holds a permit of the limit, and since when; the first of them have held it longest."""
    holding = Permit.objects.held().filter(limit_id=limit_id).values("dispatch_id")
    rows = Dispatch.objects.filter(pk__in=holding).order_by("claimed_at", "id").select_related("thread")
    return Section(
        "Permits held",
        Dispatch,
        ("dispatch", "run", "thread", "scope", "agent", "worker", "since"),
        # The rest has no list of its own; how many there are stands above.
        lambda: (list(rows.defer("response", "termination", "error", "thread__metadata")[:MOST_ROWS]), False),
        lambda dispatch: (
            render.link_id(Dispatch, dispatch.pk),
            render.link_id(Run, dispatch.run_id),
            render.link(Thread, dispatch.thread_id, dispatch.thread),
            dispatch.thread.scope,
            dispatch.agent,
            dispatch.claimed_by or render.NOTHING,
            render.when(dispatch.claimed_at),
        ),
        limit_id,
    )


def messages(rows: Any, *, search: object) -> Section:
    """Messages in the order of the log, then those nobody has read."""
    return Section(
        "Messages",
        Message,
        ("message", "seq", "role", "state", "content", "read by", "written by", "created"),
        _last(
            rows.order_by("-seq", "-position", "-id")
            .defer("content", "metadata")
            .annotate(excerpt=render.excerpt("content"))
        ),
        lambda message: (
            render.link_id(Message, message.pk),
            message.seq or render.NOTHING,
            message.role,
            message.state,
            render.cell(message.excerpt),
            render.link_id(Run, message.run_id),
            render.link_id(Run, message.producer_run_id),
            render.instant(message.created_at),
        ),
        search,
    )


def journal(run_id: UUID) -> Section:
    """What the run has done and need not do again."""
    return Section(
        "Journal",
        JournalEntry,
        ("turn", "verb", "name", "key", "use", "result", "recorded"),
        _last(
            JournalEntry.objects.filter(run_id=run_id)
            .order_by("-id")
            .defer("result")
            .annotate(excerpt=render.excerpt("result"))
        ),
        lambda entry: (
            entry.turn,
            entry.verb,
            render.link(JournalEntry, entry.pk, entry.name),
            entry.key or render.NOTHING,
            entry.n,
            render.cell(entry.excerpt),
            render.instant(entry.created_at),
        ),
        run_id,
    )


def tickets(run_id: UUID) -> Section:
    """The run's questions to humans."""
    return Section(
        "Tickets",
        Ticket,
        ("ticket", "name", "status", "question", "answer", "answered by", "expires"),
        _last(
            Ticket.objects.filter(run_id=run_id)
            .order_by("-created_at", "-id")
            .defer("arguments", "schema", "answer")
            .annotate(excerpt=render.excerpt("answer"))
        ),
        lambda ticket: (
            render.link(Ticket, ticket.pk, ticket.ticket_id),
            ticket.name,
            ticket.status,
            render.cell(ticket.question),
            render.cell(ticket.excerpt),
            ticket.answered_by or render.NOTHING,
            render.instant(ticket.expires_at),
        ),
        run_id,
    )


def timeline(rows: Any, *, since: datetime, search: object) -> Section:
    """Events in the order they became true, each with its distance from `since`."""
    return Section(
        "Timeline",
        Event,
        ("cursor", "time", "after", "event", "dispatch", "payload"),
        _last(rows.order_by("-cursor").defer("payload").annotate(excerpt=render.excerpt_of_payload("payload"))),
        lambda event: (
            render.link(Event, event.pk, event.cursor),
            render.instant(event.created_at),
            render.after(since, event.created_at),
            event.kind if event.visibility == Visibility.PUBLIC else f"{event.kind} (internal)",
            render.link_id(Dispatch, event.dispatch_id),
            render.cell(event.excerpt),
        ),
        search,
    )
