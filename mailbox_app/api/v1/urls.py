"""Every route. Mount it under a prefix of its own, for it answers whatever is asked for under it:

path("v1/", include("mailbox_app.api.v1.urls"))
"""

from django.urls import path, re_path

from mailbox_app.api.v1.agents import AgentVersionsView
from mailbox_app.api.v1.base import NotFoundView
from mailbox_app.api.v1.events import RunEventsView
from mailbox_app.api.v1.runs import RunsView, RunView
from mailbox_app.api.v1.schema import DocsView, SchemaView
from mailbox_app.api.v1.threads import ThreadMessagesView, ThreadsView, ThreadView

app_name = "mailbox"

urlpatterns = [
    path("agents/<str:name>/versions", AgentVersionsView.as_view(), name="agent-versions"),
    path("runs", RunsView.as_view(), name="runs"),
    path("runs/<str:run_id>", RunView.as_view(), name="run"),
    path("runs/<str:run_id>/events", RunEventsView.as_view(), name="run-events"),
    path("threads", ThreadsView.as_view(), name="threads"),
    path("threads/<str:thread_id>", ThreadView.as_view(), name="thread"),
    path("threads/<str:thread_id>/messages", ThreadMessagesView.as_view(), name="thread-messages"),
    path("schema", SchemaView.as_view(), name="schema"),
    path("docs", DocsView.as_view(), name="docs"),
    re_path(r"", NotFoundView.as_view()),
]
