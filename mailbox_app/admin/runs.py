"""Runs with everything that explains them, their journal and their questions."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from mailbox_app.admin import render, sections
from mailbox_app.admin.base import ReadOnlyAdmin, words
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run, Thread, Ticket


def explanation(run: Run) -> Sequence[sections.Section]:
    """What explains a run at a glance: its activations, journal, questions, events and messages."""
    # A message is found by its thread: it has no index on the run that wrote it.
    spoken = Message.objects.filter(Q(run_id=run.pk) | Q(producer_run_id=run.pk), thread_id=run.thread_id)
    return (
        sections.dispatches(Dispatch.objects.of_run(run.pk), search=run.pk),
        sections.journal(run.pk),
        sections.tickets(run.pk),
        sections.timeline(Event.objects.filter(run_id=run.pk), search=run.pk),
        sections.messages(spoken, search=run.thread_id),
    )


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    """One intent and its outcome."""

    list_display = (
        *("end_of_id", "thread_link", "agent", "status", "turn", "ended_by", "failure"),
        *("created_at", "started_at", "finished_at"),
    )
    list_select_related = ("thread",)
    list_annotations = {
        "error_excerpt": render.excerpt("error"),
        "termination_excerpt": render.excerpt("termination"),
    }
    list_filter = (words("open", "not_done", "done"),)
    searched_ids = ("pk", "thread_id")
    searched_thread = "thread_id"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("thread", "agent", "code_version"),
                    ("status", "turn", "steps"),
                    "error",
                    "final_output",
                    ("created_at", "started_at", "finished_at"),
                )
            },
        ),
        ("Outcome", {"fields": ("termination", "waiting", ("resume_at", "input_tokens", "output_tokens"))}),
        (
            "How it came about",
            {
                "classes": ("collapse",),
                "fields": (
                    ("id", "scope", "client_id", "dedupe_key"),
                    ("config_version", "parent_run", "replay_of", "order", "updated_at"),
                    "activation",
                    "input",
                    "output",
                    "state",
                ),
            },
        ),
    )

    def sections(self, request: HttpRequest, obj: Run) -> Sequence[sections.Section]:
        """What explains the run."""
        return explanation(obj)

    @admin.display(description="run")
    def end_of_id(self, run: Run) -> str:
        """The end of the id."""
        return render.short_id(run.pk)

    @admin.display(description="thread")
    def thread_link(self, run: Run) -> Any:
        """The thread it is on."""
        return render.link(Thread, run.thread_id, run.thread)

    @admin.display(description="ended by")
    def ended_by(self, run: Any) -> str:
        """Why it stopped."""
        return render.cell(run.termination_excerpt)

    @admin.display(description="error")
    def failure(self, run: Any) -> str:
        """What went wrong."""
        return render.cell(run.error_excerpt)


@admin.register(JournalEntry)
class JournalEntryAdmin(ReadOnlyAdmin):
    """One completed effect, which a replay does not repeat."""

    list_display = ("id", "run_link", "turn", "verb", "name", "key", "n", "beginning", "created_at")
    list_annotations = {"excerpt": render.excerpt("result")}
    searched_ids = ("run_id",)

    @admin.display(description="run")
    def run_link(self, entry: JournalEntry) -> Any:
        """The run whose effect it is."""
        return render.link_id(Run, entry.run_id)

    @admin.display(description="result")
    def beginning(self, entry: Any) -> str:
        """The beginning of the result."""
        return render.cell(entry.excerpt)


@admin.register(Ticket)
class TicketAdmin(ReadOnlyAdmin):
    """One question to a human."""

    list_display = ("ticket_id", "run_link", "status", "shown_question", "answered_by", "created_at", "expires_at")
    list_filter = (words("open"),)
    searched_ids = ("pk", "run_id")

    @admin.display(description="run")
    def run_link(self, ticket: Ticket) -> Any:
        """The run that asks."""
        return render.link_id(Run, ticket.run_id)

    @admin.display(description="question")
    def shown_question(self, ticket: Ticket) -> str:
        """The beginning of the question."""
        return render.cell(ticket.question)
