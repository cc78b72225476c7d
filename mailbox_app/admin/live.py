"""What a page asks that follows a run: whether anything of it has changed, and what its agent says live.

The page asks every second, by one statement; it renders itself anew only when something has changed. Nothing is kept
open, so it works under WSGI, and without Redis but for live text.
"""

import time
import uuid

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import NoReverseMatch, reverse

from mailbox_app.models import Run
from mailbox_app.watching import rows, text

# Of live text, the end is what somebody reads who follows it.
MOST_CHARACTERS = 4_000
# What has no mark of its own (pauses, limits, children, how long ago something was) is shown anew so often.
_STALE_SECONDS = 10


def url_for(request: HttpRequest, run_id: uuid.UUID | None) -> str:
    """Where a page asks that follows this run; blank if there is none, or who looks may not view it."""
    if run_id is None or not _may(request):
        return ""
    try:
        return reverse("admin:mailbox_run_live", args=[run_id])
    except NoReverseMatch:  # a project's site without our page of runs
        return ""


def answer(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """What is new since the mark that is sent: 204 if nothing is; else the mark of now, that of the rows, the text."""
    if not _may(request):
        raise PermissionDenied
    found = rows.mark(run_id)
    if found is None:
        raise Http404
    kept = None if found.fence is None else text.kept(run_id, found.fence)
    said = "" if kept is None else kept.text[-MOST_CHARACTERS:]
    of_rows = f"{found.text}/{int(time.time() / _STALE_SECONDS)}".replace(" ", "-")
    heard = "" if kept is None or not said else f"{found.fence}-{kept.turn}-{kept.end}-{kept.closed}"
    mark = f"{of_rows} {heard}"
    if request.GET.get("mark") == mark:
        return HttpResponse(status=204)
    return JsonResponse({"mark": mark, "rows": of_rows, "text": said})


def _may(request: HttpRequest) -> bool:
    opts = Run._meta
    return bool(request.user.has_perm(f"{opts.app_label}.view_{opts.model_name}"))
