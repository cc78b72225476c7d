"""`/metrics` for Prometheus. Mount it anywhere: `path("metrics", include("mailbox_app.api.v1.metrics"))`.

Who may read it: the bearer token `metrics_token`, a staff user's session, a staff user's own API token. Being on the
same host is no proof of anything: behind a proxy everybody is.
"""

import hmac

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from mailbox_app import gauges, metrics
from mailbox_app.api.v1.permissions import BearerAuthentication
from mailbox_app.conf import conf


@never_cache
@require_safe
def show(request: HttpRequest) -> HttpResponse:
    """Gauges sampled now, counters and histograms of every process that shares `metrics_folder`."""
    if not _may_read(request):
        is_known = bool(getattr(getattr(request, "user", None), "is_authenticated", False))
        refusal = HttpResponse("metrics are for staff and the metrics_token\n", "text/plain", 403 if is_known else 401)
        if not is_known:
            refusal["WWW-Authenticate"] = 'Bearer realm="mailbox"'
        return refusal
    return HttpResponse(metrics.exposition(gauges.sampled, metrics.counted), content_type=metrics.CONTENT_TYPE)


def _may_read(request: HttpRequest) -> bool:
    scheme, _, secret = request.headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        token = conf.metrics_token
        if token and hmac.compare_digest(secret.strip().encode(), token.encode()):
            return True
        try:
            found = BearerAuthentication().authenticate(Request(request))
        except AuthenticationFailed:
            return False
        user = found[0] if found else None
    else:
        user = getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff)


urlpatterns = [path("", show, name="mailbox-metrics")]
