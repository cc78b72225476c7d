"""Runs with everything that explains them and what to do about them, their journal and their questions."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.urls import path

from mailbox_app.admin import live, render, sections
from mailbox_app.admin.acting import ActingAdmin
from mailbox_app.admin.acts import ANSWER, ANSWER_NO, CANCEL, RUN_NOW
from mailbox_app.admin.base import ReadOnlyAdmin, age, words
from mailbox_app.admin.standing import Standing, lineage
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run, Thread, Ticket
from mailbox_app.states import RunStatus


def explanation(run: Run) -> Sequence[sections.Section]:
    """What explains a run at a glance: its activations, journal, questions, children, events and messages."""
    # A message is found by its thread: it has no index on the run that wrote it.
    spoken = Message.objects.filter(Q(run_id=run.pk) | Q(producer_run_id=run.pk), thread_id=run.thread_id)
    return (
        sections.dispatches(Dispatch.objects.of_run(run.pk), search=run.pk),
        sections.journal(run.pk),
        sections.tickets(run.pk),
        sections.runs(Run.objects.filter(parent_run=run.pk), search=run.pk, title="Child runs"),
        sections.timeline(Event.objects.filter(run_id=run.pk), since=run.created_at, search=run.pk),
        sections.messages(spoken, search=run.thread_id),
    )


def going_on(run: Run) -> UUID | None:
    """The run's id, until it is done."""
    return None if run.status == RunStatus.DONE else run.pk


def _standing(run: Run) -> Standing:
    """Where it stands, read once a page: several fields show parts of it."""
    found: Standing = run.__dict__.setdefault("_standing", Standing(run))
    return found


@admin.register(Run)
class RunAdmin(ActingAdmin):
    """One intent, where it stands and its outcome."""

    acts = (CANCEL, RUN_NOW)

    list_display = (
        *("end_of_id", "thread_link", "agent", "status", "turn", "ended_by", "failure"),
        *("created_at", "started_at", "finished_at"),
    )
    list_select_related = ("thread",)
    list_annotations = {
        "error_excerpt": render.excerpt("error"),
        "termination_excerpt": render.excerpt("termination"),
    }
    # What is queued is listed by its dispatches, which have indexes for it.
    list_filter = (words("open", "done"), age("created_at"))
    searched_ids = ("pk", "thread_id", "parent_run_id")
    searched_thread = "thread_id"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("thread_link", "agent", "code_version", "config_version"),
                    ("status", "turn", "steps", "attempts"),
                    "stands",
                    "error",
                    "final_output",
                    ("parent_link", "replay_of_link", "replays"),
                    ("created_at", "started_at", "finished_at"),
                )
            },
        ),
        ("Outcome", {"fields": ("termination", "waiting", "resumes", ("input_tokens", "output_tokens"))}),
        (
            "How it came about",
            {
                "classes": ("collapse",),
                "fields": (
                    ("id", "scope", "client_id", "dedupe_key"),
                    ("order", "updated_at"),
                    "activation",
                    "input",
                    "output",
                    "state",
                ),
            },
        ),
    )

    def get_urls(self) -> list[Any]:
        """One more: what a page asks that follows the run."""
        ask = path("<uuid:run_id>/live/", self.admin_site.admin_view(live.answer), name="mailbox_run_live")
        return [ask, *super().get_urls()]

    def followed(self, obj: Run) -> UUID | None:
        """The run itself, until it is done."""
        return going_on(obj)

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

    @admin.display(description="where it stands")
    def stands(self, run: Run) -> Standing:
        """What it waits for, what is in front of it, or how it ended."""
        return _standing(run)

    @admin.display(description="attempts")
    def attempts(self, run: Run) -> str:
        """Failures and lost leases of its latest activation."""
        dispatch = _standing(run).dispatch
        return render.NOTHING if dispatch is None else render.attempts(dispatch)

    @admin.display(description="parent run")
    def parent_link(self, run: Run) -> Any:
        """The run that spawned it."""
        return render.link_id(Run, run.parent_run_id)

    @admin.display(description="replay of")
    def replay_of_link(self, run: Run) -> Any:
        """The run whose dead letter it replays."""
        return render.link_id(Run, run.replay_of_id)

    @admin.display(description="replayed as")
    def replays(self, run: Run) -> Any:
        """The runs it was replayed as, the latest first."""
        return lineage(Run.objects.filter(replay_of=run.pk).order_by("-order"))

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
class TicketAdmin(ActingAdmin):
    """One question to a human, to be answered here too."""

    acts = (ANSWER, ANSWER_NO)
    list_display = ("name", "run_link", "status", "shown_question", "answered_by", "created_at", "expires_at")
    list_filter = (words("open", "overdue"),)
    searched_ids = ("pk", "run_id")

    @admin.display(description="run")
    def run_link(self, ticket: Ticket) -> Any:
        """The run that asks."""
        return render.link_id(Run, ticket.run_id)

    @admin.display(description="question")
    def shown_question(self, ticket: Ticket) -> str:
        """The beginning of the question."""
        return render.cell(ticket.question)
