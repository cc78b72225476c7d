"""The chat page: a window on one conversation. All it shows and does goes through the REST API of this same process."""

import uuid

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from mailbox_app.models import Kind

AGENT = "support"
# A browser hears of a stream's event only by its name. An agent's own kinds are read with the next of these.
KINDS = sorted(Kind.values)
# Everything the page loads comes from here, nothing in it is inline, and no other site may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@require_safe
@never_cache
@login_required
def chat(request: HttpRequest, thread_id: uuid.UUID | None = None) -> HttpResponse:
    """Show a conversation, or the beginning of a new one."""
    facts = {
        "agent": AGENT,
        "api": reverse("mailbox:runs").rpartition("/")[0],
        "home": reverse("chat"),
        "thread": str(thread_id or ""),
        "kinds": KINDS,
    }
    answer = render(request, "mailbox_project/chat.html", {"facts": facts})
    answer["Content-Security-Policy"] = POLICY
    return answer
