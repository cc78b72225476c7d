"""Messages: the entries of threads."""

from typing import Any

from django.contrib import admin

from mailbox_app.admin import render
from mailbox_app.admin.base import ReadOnlyAdmin, age
from mailbox_app.models import Message, Run, Thread


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    """One entry of a thread, who reads it and how it is delivered."""

    list_display = ("end_of_id", "thread_link", "seq", "role", "state", "beginning", "reader", "created_at")
    list_select_related = ("thread",)
    list_annotations = {"excerpt": render.excerpt("content")}
    list_filter = (age("created_at"),)
    searched_ids = ("pk", "thread_id", "run_id")
    searched_thread = "thread_id"
    fieldsets = (
        (None, {"fields": (("thread", "role", "state", "seq"), "content", ("sender", "created_at"), "metadata")}),
        ("Read", {"fields": (("run", "read_turn", "read_at"), ("writer", "retract_reason"))}),
        (
            "Delivery",
            {
                "classes": ("collapse",),
                "fields": (
                    ("id", "client_id", "scope", "visibility"),
                    ("position", "revision", "held", "updated_at"),
                    ("boundary", "granularity", "barrier"),
                    ("target_run_id", "fallback"),
                ),
            },
        ),
    )

    @admin.display(description="message")
    def end_of_id(self, message: Message) -> str:
        """The end of the id."""
        return render.short_id(message.pk)

    @admin.display(description="thread")
    def thread_link(self, message: Message) -> Any:
        """The thread it is on."""
        return render.link(Thread, message.thread_id, message.thread)

    @admin.display(description="content")
    def beginning(self, message: Any) -> str:
        """The beginning of the content."""
        return render.cell(message.excerpt)

    @admin.display(description="read by")
    def reader(self, message: Message) -> Any:
        """The run that reads it."""
        return render.link_id(Run, message.run_id)

    @admin.display(description="written by run")
    def writer(self, message: Message) -> Any:
        """The run that produced it."""
        return render.link_id(Run, message.producer_run_id)
