"""Probes: is the process alive, can it do its work. Mount it anywhere: `path("health/", include("….health"))`."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

_PATIENCE_SECONDS = 2.0
# In threads of their own: a server that does not answer holds up a probe, and no more probes than these.
_probes = ThreadPoolExecutor(max_workers=4, thread_name_prefix="mailbox-health")


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """200 while the process can answer at all."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 if requests can be served: PostgreSQL answers and has the tables. Without Redis work is only slower."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    database, redis = _probes.submit(_database), _probes.submit(_redis)
    components = {
        **_by(deadline, database, otherwise={"database": "unavailable", "migrations": "unknown"}),
        **_by(deadline, redis, otherwise={"redis": "unavailable"}),
    }
    if components["database"] != "ok" or components["migrations"] != "ok":
        return JsonResponse({"status": "unavailable", "components": components}, status=503)
    status = "ok" if components["redis"] in ("ok", "not_configured") else "degraded"
    return JsonResponse({"status": status, "components": components})


def _by(deadline: float, probe: "Future[dict[str, str]]", *, otherwise: dict[str, str]) -> dict[str, str]:
    """What the probe found by then. The error stays in the log: it may hold addresses."""
    try:
        return probe.result(timeout=max(deadline - time.monotonic(), 0))
    except Exception as error:
        probe.cancel()
        observe("health.failed", level=logging.WARNING, component=next(iter(otherwise)), error=type(error).__name__)
        return otherwise


def _database() -> dict[str, str]:
    connection = connections[DEFAULT_DB_ALIAS]
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{_PATIENCE_SECONDS}s"])
            executor = MigrationExecutor(connection)
            pending = executor.migration_plan(executor.loader.graph.leaf_nodes("mailbox"))
    finally:
        connection.close()
    return {"database": "ok", "migrations": "pending" if pending else "ok"}


def _redis() -> dict[str, str]:
    if not conf.redis_url:
        return {"redis": "not_configured"}
    return {"redis": "ok" if channel.is_reachable() else "unavailable"}


urlpatterns = [path("live", live, name="mailbox-live"), path("ready", ready, name="mailbox-ready")]
