"""Events, the facts in the order they became true; and the outbox, effects on other threads."""

from typing import Any

from django.contrib import admin

from mailbox_app.admin import render
from mailbox_app.admin.base import ReadOnlyAdmin, age
from mailbox_app.models import Dispatch, Event, Outbox, Run, Thread


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """One durable fact of a thread."""

    list_display = ("id", "thread_link", "cursor", "kind", "run_link", "dispatch_link", "beginning", "created_at")
    list_select_related = ("thread",)
    list_annotations = {"excerpt": render.excerpt_of_payload("payload")}
    list_filter = (age("created_at", is_order_of_ids=False),)
    searched_ids = ("thread_id", "run_id")
    searched_thread = "thread_id"
    fieldsets = (
        (None, {"fields": (("thread", "cursor", "kind"), ("run_link", "dispatch_link", "created_at"), "payload")}),
        ("Details", {"fields": (("id", "visibility", "schema_version"), ("correlation_id", "key"))}),
    )

    @admin.display(description="thread")
    def thread_link(self, event: Event) -> Any:
        """The thread it is on."""
        return render.link(Thread, event.thread_id, event.thread)

    @admin.display(description="run")
    def run_link(self, event: Event) -> Any:
        """The run it speaks of; the row may be pruned."""
        return render.link_id(Run, event.run_id)

    @admin.display(description="dispatch")
    def dispatch_link(self, event: Event) -> Any:
        """The dispatch it speaks of; the row may be pruned."""
        return render.link_id(Dispatch, event.dispatch_id)

    @admin.display(description="payload")
    def beginning(self, event: Any) -> str:
        """The beginning of the payload."""
        return render.cell(event.excerpt)


@admin.register(Outbox)
class OutboxAdmin(ReadOnlyAdmin):
    """One effect on another thread, applied or still to be applied."""

    list_display = (
        *("end_of_id", "kind", "source_link", "target_link", "status", "attempt_count", "failure"),
        *("available_at", "completed_at"),
    )
    list_select_related = ("source_thread",)
    searched_ids = ("pk", "source_thread_id")
    searched_thread = "source_thread_id"

    @admin.display(description="entry")
    def end_of_id(self, entry: Outbox) -> str:
        """The end of the id."""
        return render.short_id(entry.pk)

    @admin.display(description="from thread")
    def source_link(self, entry: Outbox) -> Any:
        """The thread that wrote it."""
        return render.link(Thread, entry.source_thread_id, entry.source_thread)

    @admin.display(description="to thread")
    def target_link(self, entry: Outbox) -> Any:
        """The thread it is meant for, which may not exist."""
        return render.link_id(Thread, entry.target_thread_id)

    @admin.display(description="error")
    def failure(self, entry: Outbox) -> str:
        """The last error."""
        return render.cell(entry.last_error)
