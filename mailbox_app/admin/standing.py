"""Where a run stands, in sentences: what it waits for, what is in front of it, or how it ended."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from mailbox_app.admin import render
from mailbox_app.models import AgentRegistration, Dispatch, Limit, Pause, Run, Thread
from mailbox_app.operations import limits, pauses
from mailbox_app.states import DispatchStatus, RunStatus


class Standing:
    """One run with its latest activation; reads what it needs once, when it is first asked."""

    def __init__(self, run: Run, dispatch: Dispatch | None = None) -> None:
        self._run = run
        self._given = dispatch

    @cached_property
    def dispatch(self) -> Dispatch | None:
        """The activation that was made last."""
        if self._given is not None and self._given.completed_at is None:
            return self._given
        rows = Dispatch.objects.of_run(self._run.pk).order_by("-created_at", "-id")
        return rows.defer("response", "termination").first()

    @cached_property
    def sentences(self) -> list[str | SafeString]:
        """What an operator wants to know first."""
        if self._run.status == RunStatus.DONE:
            return [_ended(self._run)]
        return [*self._waiting(), *self._activation()]

    def __html__(self) -> str:
        return format_html_join(SafeString("<br>"), "{}", ((one,) for one in self.sentences))

    __str__ = __html__

    def _waiting(self) -> Iterator[str | SafeString]:
        waiting = self._run.waiting
        if waiting:
            says = f": {render.cell(str(waiting['message']))}" if waiting.get("message") else ""
            yield f"Waits for {waiting.get('reason', 'somebody')}{says}"
            if waiting.get("child_run_ids"):
                still = Run.objects.filter(pk__in=waiting["child_run_ids"]).not_done().order_by("created_at", "id")
                yield format_html("Child runs still to end: {}", lineage(still))
            if self._run.resume_at is not None:
                yield f"Resumes {render.when(self._run.resume_at)}"
            if self._run.wait_until is not None:
                yield f"The wait ends {render.when(self._run.wait_until)}"

    def _activation(self) -> Iterator[str | SafeString]:
        dispatch = self.dispatch
        if dispatch is None:
            return
        if dispatch.status == DispatchStatus.CLAIMED:
            yield f"Executed by {dispatch.claimed_by} since {render.when(dispatch.claimed_at)}"
            yield f"Its lease ends {render.when(dispatch.lease_until)}, unless it is renewed"
        elif dispatch.status == DispatchStatus.QUEUED:
            yield from self._queued(dispatch)
        if dispatch.cancel_requested_at is not None and dispatch.completed_at is None:
            yield f"Asked to stop {render.when(dispatch.cancel_requested_at)}"

    def _queued(self, dispatch: Dispatch) -> Iterator[str | SafeString]:
        if dispatch.available_at > timezone.now():
            what = f"Backs off after {render.attempts(dispatch)} attempts" if dispatch.last_error else "Scheduled"
            yield f"{what}: may start {render.when(dispatch.available_at)}"
        else:
            yield f"Queued on {dispatch.queue}: may start since {render.when(dispatch.available_at)}"
        standing = pauses.of_dispatch(dispatch)
        if standing:
            yield held_up(standing)
        dispatch.thread = self._run.thread
        reached = limits.of_dispatch(dispatch)
        if reached:
            yield kept(reached)
        else:
            yield from self._blocked(self._run.thread)
        if dispatch.unrunnable_since is not None:
            yield f"Unrunnable: no live worker can run it since {render.when(dispatch.unrunnable_since)}"
        elif (
            not AgentRegistration.objects.live().filter(agent=dispatch.agent, queues__contains=dispatch.queue).exists()
        ):
            yield f"Unrunnable now: no live worker of {dispatch.queue} has the agent {dispatch.agent}"

    def _blocked(self, thread: Thread) -> Iterator[str | SafeString]:
        if thread.open_run_id is not None and thread.open_run_id != self._run.pk:
            yield format_html("Blocked: run {} is open on its thread", render.link_id(Run, thread.open_run_id))
        elif thread.blocked_reason and not thread.is_paused:
            yield f"Blocked: {thread.get_blocked_reason_display().lower()}"


def held_up(standing: Sequence[Pause]) -> SafeString:
    """A line for each pause: what, by whom, since when and why."""
    return format_html_join(
        SafeString("<br>"),
        "Paused: {} {} by {} {}{}",
        (
            (
                one.kind,
                render.cell(one.name),
                one.paused_by or "somebody",
                render.when(one.paused_at),
                f": {render.cell(one.note)}" if one.note else "",
            )
            for one in standing
        ),
    )


def kept(reached: Sequence[Limit]) -> SafeString:
    """A line for each limit: what it allows, how many hold a permit, and why."""
    return format_html_join(
        SafeString("<br>"),
        "Kept by the limit of {}: {}{}{}",
        (
            (
                render.link(Limit, one.pk, f"{one.kind} {render.cell(one.name)}"),
                one.bounds,
                "" if one.most is None else f" ({one.held} held)",  # type: ignore[attr-defined]
                f": {render.cell(one.note)}" if one.note else "",
            )
            for one in reached
        ),
    )


def _ended(run: Run) -> str:
    termination: dict[str, Any] = run.termination or {}
    error: dict[str, Any] = run.error or {}
    words = [f"Ended {render.when(run.finished_at)}: {termination.get('type', 'no reason given')}"]
    if error:
        words.append(f"{error.get('code', 'error')}: {render.cell(str(error.get('message', '')))}")
    elif termination.get("detail"):
        words.append(render.cell(str(termination["detail"])))
    return ", ".join(words)


def lineage(rows: Any, *, of: type[Run] | type[Thread] = Run) -> str | SafeString:
    """Links to up to ten runs, or threads."""
    links = [(render.link_id(of, pk),) for pk in rows.values_list("pk", flat=True)[:10]]
    return format_html_join(", ", "{}", links) or render.NOTHING
