"""Dispatches, and those of them that are dead letters: what an operator looks at first."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.http import HttpRequest

from mailbox_app.admin import render, sections
from mailbox_app.admin.acting import ActingAdmin
from mailbox_app.admin.acts import CANCEL, DISCARD, REPLAY, REPLAY_FRESH, RUN_NOW
from mailbox_app.admin.base import age, words
from mailbox_app.admin.runs import explanation, going_on
from mailbox_app.admin.standing import Standing, lineage
from mailbox_app.models import DeadLetter, Dispatch, Run, Thread
from mailbox_app.states import DispatchStatus


class _ActivationAdmin(ActingAdmin):
    """What both lists of dispatches share."""

    list_select_related = ("thread",)
    searched_ids = ("pk", "thread_id", "run_id")
    searched_thread = "thread_id"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("thread_link", "run_link", "agent", "versions"),
                    ("status", "attempts", "dealt_with"),
                    "stands",
                    "last_error",
                    ("created_at", "claimed_at", "completed_at"),
                )
            },
        ),
        ("Result", {"fields": (("run_status", "replays"), "termination", "error", "response")}),
        (
            "Queue and claim",
            {
                "classes": ("collapse",),
                "fields": (
                    ("id", "queue", "priority", "order"),
                    ("available_at", "unrunnable_since", "cancel_requested_at"),
                    ("claimed_by", "lease_until", "claim_token"),
                    ("instance_id", "fence", "epoch", "updated_at"),
                ),
            },
        ),
    )

    def followed(self, obj: Dispatch) -> UUID | None:
        """The run it activates, until that is done."""
        return going_on(obj.run)

    def sections(self, request: HttpRequest, obj: Dispatch) -> Sequence[sections.Section]:
        """What explains the run it activates."""
        return explanation(obj.run)

    @admin.display(description="dispatch")
    def end_of_id(self, dispatch: Dispatch) -> str:
        """The end of the id."""
        return render.short_id(dispatch.pk)

    @admin.display(description="thread")
    def thread_link(self, dispatch: Dispatch) -> Any:
        """The thread it is on."""
        return render.link(Thread, dispatch.thread_id, dispatch.thread)

    @admin.display(description="run")
    def run_link(self, dispatch: Dispatch) -> Any:
        """The run it activates."""
        return render.link_id(Run, dispatch.run_id)

    @admin.display(description="code, configuration")
    def versions(self, dispatch: Dispatch) -> str:
        """What the run is bound to."""
        run = dispatch.run
        return f"{run.code_version or render.NOTHING}, {run.config_version or render.NOTHING}"

    @admin.display(description="where its run stands")
    def stands(self, dispatch: Dispatch) -> Standing:
        """What the run waits for, what is in front of it, or how it ended."""
        return Standing(dispatch.run, dispatch)

    @admin.display(description="dealt with")
    def dealt_with(self, dispatch: Dispatch) -> Any:
        """What somebody did about a dead letter; a link to where that is done."""
        if dispatch.resolution:
            return f"{dispatch.resolution} {render.when(dispatch.resolved_at)}"
        if dispatch.status != DispatchStatus.DEAD_LETTER:
            return render.NOTHING
        return render.link(DeadLetter, dispatch.pk, "not yet")

    @admin.display(description="replayed as")
    def replays(self, dispatch: Dispatch) -> Any:
        """The runs that the dead letter became."""
        return lineage(Run.objects.filter(replay_of=dispatch.run_id).order_by("-order"))

    @admin.display(description="attempts")
    def attempts(self, dispatch: Dispatch) -> str:
        """Failures and lost leases."""
        return render.attempts(dispatch)

    @admin.display(description="error")
    def failure(self, dispatch: Dispatch) -> str:
        """The last error."""
        return render.cell(dispatch.last_error)


@admin.register(Dispatch)
class DispatchAdmin(_ActivationAdmin):
    """One activation of a run: its claim, attempts and result, and what explains the run."""

    list_display = (
        *("end_of_id", "thread_link", "run_link", "agent", "status", "attempts", "failure"),
        *("claimed_by", "available_at", "completed_at"),
    )
    list_filter = (words("queued", "claimed", "terminal"), age("created_at"))
    acts = (CANCEL, RUN_NOW)

    def get_ordering(self, request: HttpRequest) -> Any:
        """The newest first; of the queued ones by their runs, which have an index of just these.

        By its own id, an old backlog would be looked for among all that was done since.
        """
        return ("-run_id", "-pk") if request.GET.get("state") == "queued" else self.ordering


@admin.register(DeadLetter)
class DeadLetterAdmin(_ActivationAdmin):
    """Dispatches that failed for good and that nobody has dealt with; the newest first."""

    list_display = (
        "end_of_id",
        "agent",
        "thread_link",
        "run_link",
        "failure",
        "attempts",
        "completed_at",
    )
    list_filter = (age("completed_at", is_order_of_ids=False),)
    acts = (REPLAY, REPLAY_FRESH, DISCARD)
    ordering = ("-completed_at", "-pk")
    sortable_by = ("completed_at",)

    def get_queryset(self, request: HttpRequest) -> Any:
        """Unresolved dead letters; a resolved one is found among the dispatches."""
        rows: Any = super().get_queryset(request)
        return rows.dead_letters()
