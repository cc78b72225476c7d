"""Threads: what is queued, what runs and what was said on one conversation."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.http import HttpRequest

from mailbox_app.admin import render, sections
from mailbox_app.admin.acting import ActingAdmin
from mailbox_app.admin.acts import PAUSE, RESUME
from mailbox_app.admin.base import age
from mailbox_app.admin.standing import held_up, kept, lineage
from mailbox_app.models import Dispatch, Event, Message, Run, Thread
from mailbox_app.operations import limits, pauses


@admin.register(Thread)
class ThreadAdmin(ActingAdmin):
    """One conversation with its runs, dispatches, messages and events."""

    list_display = ("name", "scope", "title", "open_run", "due", "wakes_at", "blocked_reason", "created_at")
    acts = (PAUSE, RESUME)
    list_filter = (age("created_at"),)
    searched_thread = "pk"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("key", "scope", "title"),
                    ("open_run", "active_run", "latest_run"),
                    ("parent_link", "child_threads"),
                    ("due", "due_agent", "wakes_at", "blocked_reason"),
                    "held_up",
                    "kept",
                    ("created_at", "updated_at", "deleted_at"),
                )
            },
        ),
        (
            "Details",
            {
                "classes": ("collapse",),
                "fields": (
                    ("id", "epoch", "claim_count"),
                    ("last_seq", "last_cursor", "pruned_cursor"),
                    ("next_order", "pending_revision"),
                    "metadata",
                ),
            },
        ),
    )

    def followed(self, obj: Thread) -> UUID | None:
        """The run that is open on it, or else its latest until that is done."""
        if obj.open_run_id is not None or obj.latest_run_id is None:
            return obj.open_run_id
        return Run.objects.filter(pk=obj.latest_run_id).not_done().values_list("pk", flat=True).first()

    def sections(self, request: HttpRequest, obj: Thread) -> Sequence[sections.Section]:
        """Everything on the thread, newest last."""
        return (
            sections.runs(Run.objects.filter(thread=obj), search=obj.pk),
            sections.dispatches(Dispatch.objects.filter(thread=obj), search=obj.pk),
            sections.messages(Message.objects.filter(thread=obj), search=obj.pk),
            sections.timeline(Event.objects.filter(thread=obj), since=obj.created_at, search=obj.pk),
        )

    @admin.display(description="thread")
    def name(self, thread: Thread) -> str:
        """The key a caller chose, else the id."""
        return str(thread)

    @admin.display(description="open run")
    def open_run(self, thread: Thread) -> Any:
        """The run that holds the thread."""
        return render.link_id(Run, thread.open_run_id)

    @admin.display(description="run being executed")
    def active_run(self, thread: Thread) -> Any:
        """The run a worker has claimed."""
        return render.link_id(Run, thread.active_run_id)

    @admin.display(description="latest run")
    def latest_run(self, thread: Thread) -> Any:
        """The run queued or started last."""
        return render.link_id(Run, thread.latest_run_id)

    @admin.display(description="parent thread")
    def parent_link(self, thread: Thread) -> Any:
        """The thread whose run has spawned this one's first."""
        return render.link_id(Thread, thread.parent_id)

    @admin.display(description="child threads")
    def child_threads(self, thread: Thread) -> Any:
        """Where the child runs of its runs are, the latest first."""
        return lineage(Thread.objects.filter(parent=thread.pk).order_by("-created_at", "-id"), of=Thread)

    @admin.display(description="due")
    def due(self, thread: Thread) -> str:
        """Since when the head can be claimed, and where."""
        if thread.due_at is None:
            return render.NOTHING
        return f"{render.instant(thread.due_at)} on {thread.due_queue}, priority {thread.due_priority}"

    @admin.display(description="pauses")
    def held_up(self, thread: Thread) -> Any:
        """What keeps it from going on: who paused what, when and why."""
        return held_up(pauses.of_thread(thread)) or render.NOTHING

    @admin.display(description="limit")
    def kept(self, thread: Thread) -> Any:
        """Which limit is reached and keeps it from going on."""
        return kept(limits.of_thread(thread)) or render.NOTHING
