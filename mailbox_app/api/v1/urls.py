"""Every route. Mount it under a prefix of its own, for it answers whatever is asked for under it:

path("v1/", include("mailbox_app.api.v1.urls"))
"""

from django.urls import path, re_path

from mailbox_app.api.v1.agents import AgentVersionsView
from mailbox_app.api.v1.base import NotFoundView
from mailbox_app.api.v1.batch import BatchView
from mailbox_app.api.v1.decisions import RunDecisionView, WaitsView
from mailbox_app.api.v1.dispatches import (
    DeadLetterDiscardView,
    DeadLetterReplayView,
    DeadLettersReplayView,
    DeadLettersView,
    RunDispatchesView,
    ThreadDispatchesView,
)
from mailbox_app.api.v1.events import RunEventsView, ThreadEventsView
from mailbox_app.api.v1.limits import LimitsView
from mailbox_app.api.v1.messages import RunInputsView, ThreadMessagesView
from mailbox_app.api.v1.pauses import PausesView
from mailbox_app.api.v1.pending import PendingMessageView, PendingOrderView, PendingReleaseView, PendingView
from mailbox_app.api.v1.resume import ResumeView
from mailbox_app.api.v1.runs import (
    RunCancelView,
    RunNowView,
    RunsView,
    RunView,
    RunWaitView,
    ThreadActiveRunView,
    ThreadLatestRunView,
    ThreadRunsView,
)
from mailbox_app.api.v1.schema import DocsView, SchemaView
from mailbox_app.api.v1.stopping import ThreadCancelView, ThreadInterruptView
from mailbox_app.api.v1.stream_views import RunStreamView, ThreadStreamView
from mailbox_app.api.v1.threads import ThreadsView, ThreadView

app_name = "mailbox"

urlpatterns = [
    path("agents/<str:name>/versions", AgentVersionsView.as_view(), name="agent-versions"),
    path("runs", RunsView.as_view(), name="runs"),
    path("runs/batch", BatchView.as_view(), name="runs-batch"),
    path("runs/<str:run_id>", RunView.as_view(), name="run"),
    path("runs/<str:run_id>/events", RunEventsView.as_view(), name="run-events"),
    path("runs/<str:run_id>/events/stream", RunStreamView.as_view(), name="run-stream"),
    path("runs/<str:run_id>/dispatches", RunDispatchesView.as_view(), name="run-dispatches"),
    path("runs/<str:run_id>/wait", RunWaitView.as_view(), name="run-wait"),
    path("runs/<str:run_id>/cancel", RunCancelView.as_view(), name="run-cancel"),
    path("runs/<str:run_id>/run-now", RunNowView.as_view(), name="run-now"),
    path("runs/<str:run_id>/resume", ResumeView.as_view(), name="run-resume"),
    path("runs/<str:run_id>/decision", RunDecisionView.as_view(), name="run-decision"),
    path("waits", WaitsView.as_view(), name="waits"),
    path("runs/<str:run_id>/inputs", RunInputsView.as_view(), name="run-inputs"),
    path("threads", ThreadsView.as_view(), name="threads"),
    path("threads/<str:thread_id>", ThreadView.as_view(), name="thread"),
    path("threads/<str:thread_id>/messages", ThreadMessagesView.as_view(), name="thread-messages"),
    path("threads/<str:thread_id>/interrupt", ThreadInterruptView.as_view(), name="thread-interrupt"),
    path("threads/<str:thread_id>/cancel", ThreadCancelView.as_view(), name="thread-cancel"),
    path("threads/<str:thread_id>/pending", PendingView.as_view(), name="thread-pending"),
    path("threads/<str:thread_id>/pending/order", PendingOrderView.as_view(), name="thread-pending-order"),
    path("threads/<str:thread_id>/pending/release", PendingReleaseView.as_view(), name="thread-pending-release"),
    path("threads/<str:thread_id>/pending/<str:message_id>", PendingMessageView.as_view(), name="pending-message"),
    path("threads/<str:thread_id>/runs", ThreadRunsView.as_view(), name="thread-runs"),
    path("threads/<str:thread_id>/runs/active", ThreadActiveRunView.as_view(), name="thread-run-active"),
    path("threads/<str:thread_id>/runs/latest", ThreadLatestRunView.as_view(), name="thread-run-latest"),
    path("threads/<str:thread_id>/dispatches", ThreadDispatchesView.as_view(), name="thread-dispatches"),
    path("threads/<str:thread_id>/events", ThreadEventsView.as_view(), name="thread-events"),
    path("threads/<str:thread_id>/events/stream", ThreadStreamView.as_view(), name="thread-stream"),
    path("dead-letters", DeadLettersView.as_view(), name="dead-letters"),
    path("dead-letters/replay", DeadLettersReplayView.as_view(), name="dead-letters-replay"),
    path("dead-letters/<str:dispatch_id>/replay", DeadLetterReplayView.as_view(), name="dead-letter-replay"),
    path("dead-letters/<str:dispatch_id>/discard", DeadLetterDiscardView.as_view(), name="dead-letter-discard"),
    path("limits", LimitsView.as_view(), name="limits"),
    path("pauses", PausesView.as_view(), name="pauses"),
    path("schema", SchemaView.as_view(), name="schema"),
    path("docs", DocsView.as_view(), name="docs"),
    re_path(r"", NotFoundView.as_view()),
]
