"""The OpenAPI document and the page it is read on."""

import io
import json
import re
from typing import Any

import pytest
import yaml
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import Client
from django.urls import include, path
from drf_spectacular.validation import validate_schema
from rest_framework.response import Response
from rest_framework.views import APIView

from mailbox_app.api.v1 import urls
from tests import make

pytestmark = pytest.mark.django_db


class TheirView(APIView):
    def get(self, request: Any) -> Response:
        return Response()


urlpatterns = [
    path("theirs", TheirView.as_view()),
    path("queue/", include("mailbox_app.api.v1.urls")),
]


def document(path: str = "/v1/schema", **headers: str) -> dict[str, Any]:
    answer = Client().get(path, headers=headers)
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.content)
    return found


def test_the_schema_is_valid_and_drawn_without_a_warning() -> None:
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=io.StringIO())
    validate_schema(document())


def test_the_schema_describes_every_route_and_nothing_else() -> None:
    described = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert described == {
        ("GET", "/v1/agents/{name}/versions"),
        ("POST", "/v1/agents/{name}/versions"),
        ("GET", "/v1/runs"),
        ("POST", "/v1/runs"),
        ("POST", "/v1/runs/batch"),
        ("GET", "/v1/runs/{run_id}"),
        ("GET", "/v1/runs/{run_id}/events"),
        ("GET", "/v1/runs/{run_id}/events/stream"),
        ("GET", "/v1/runs/{run_id}/dispatches"),
        ("GET", "/v1/runs/{run_id}/wait"),
        ("POST", "/v1/runs/{run_id}/cancel"),
        ("POST", "/v1/runs/{run_id}/run-now"),
        ("POST", "/v1/runs/{run_id}/resume"),
        ("POST", "/v1/runs/{run_id}/decision"),
        ("GET", "/v1/waits"),
        ("POST", "/v1/runs/{run_id}/inputs"),
        ("GET", "/v1/threads"),
        ("POST", "/v1/threads"),
        ("GET", "/v1/threads/{thread_id}"),
        ("PATCH", "/v1/threads/{thread_id}"),
        ("DELETE", "/v1/threads/{thread_id}"),
        ("GET", "/v1/threads/{thread_id}/runs"),
        ("GET", "/v1/threads/{thread_id}/runs/active"),
        ("GET", "/v1/threads/{thread_id}/runs/latest"),
        ("GET", "/v1/threads/{thread_id}/dispatches"),
        ("GET", "/v1/threads/{thread_id}/events"),
        ("GET", "/v1/threads/{thread_id}/events/stream"),
        ("POST", "/v1/threads/{thread_id}/interrupt"),
        ("POST", "/v1/threads/{thread_id}/cancel"),
        ("GET", "/v1/threads/{thread_id}/pending"),
        ("PATCH", "/v1/threads/{thread_id}/pending/{message_id}"),
        ("DELETE", "/v1/threads/{thread_id}/pending/{message_id}"),
        ("PUT", "/v1/threads/{thread_id}/pending/order"),
        ("POST", "/v1/threads/{thread_id}/pending/release"),
        ("GET", "/v1/dead-letters"),
        ("GET", "/v1/limits"),
        ("PUT", "/v1/limits"),
        ("DELETE", "/v1/limits"),
        ("GET", "/v1/pauses"),
        ("PUT", "/v1/pauses"),
        ("DELETE", "/v1/pauses"),
        ("POST", "/v1/dead-letters/replay"),
        ("POST", "/v1/dead-letters/{dispatch_id}/replay"),
        ("POST", "/v1/dead-letters/{dispatch_id}/discard"),
        ("GET", "/v1/threads/{thread_id}/messages"),
        ("POST", "/v1/threads/{thread_id}/messages"),
    }
    named = {pattern.name for pattern in urls.urlpatterns if pattern.name}
    assert len(named - {"schema", "docs"}) == len({path for _, path in described})


def test_every_refusal_is_described_as_problem_details() -> None:
    for methods in document()["paths"].values():
        for described in methods.values():
            refusals = {status: answer for status, answer in described["responses"].items() if int(status) >= 400}
            assert {"401", "406", "429", "500", "503"} <= set(refusals)
            for answer in refusals.values():
                assert answer["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }
            assert described["security"] == [{"bearer": []}, {"cookieAuth": []}]


def test_ids_in_addresses_are_described_as_uuids() -> None:
    for address, methods in document()["paths"].items():
        for described in methods.values():
            ids = [parameter for parameter in described.get("parameters", []) if parameter["in"] == "path"]
            assert len(ids) == address.count("{")
            ids = [parameter for parameter in ids if parameter["name"].endswith("_id")]
            assert all(parameter["schema"] == {"type": "string", "format": "uuid"} for parameter in ids)


def test_creating_posts_take_an_idempotency_key() -> None:
    paths = document()["paths"]
    for address in ("/v1/runs", "/v1/runs/batch", "/v1/threads", "/v1/dead-letters/{dispatch_id}/replay"):
        names = {(parameter["in"], parameter["name"]) for parameter in paths[address]["post"]["parameters"]}
        assert ("header", "Idempotency-Key") in names


def test_the_examples_of_the_schema_are_accepted() -> None:
    for route in ("/runs", "/runs/batch"):
        body = document()["paths"][f"/v1{route}"]["post"]["requestBody"]["content"]["application/json"]
        assert body["examples"]
        for example in body["examples"].values():
            assert make.api().post(route, example["value"]).status_code == 202


def test_the_schema_shows_this_api_alone_and_where_it_is_mounted(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    found = document("/queue/schema")
    assert "/queue/runs" in found["paths"]
    assert "/theirs" not in found["paths"]
    assert document("/queue/schema")["info"]["title"] == "Mailbox"


def test_the_schema_is_yaml_for_those_who_ask_for_it() -> None:
    answer = Client().get("/v1/schema", headers={"accept": "application/vnd.oai.openapi"})
    assert yaml.safe_load(answer.content)["openapi"].startswith("3.")


def test_the_docs_page_loads_everything_from_this_server() -> None:
    answer = Client().get("/v1/docs", headers={"accept": "text/html"})
    assert answer.status_code == 200
    page = answer.content.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 4
    for address in loaded:
        assert address.startswith("/static/")
        assert finders.find(address.removeprefix("/static/")), address
    assert "http://" not in page
    assert "https://" not in page
    assert '"/v1/schema"' in page


def test_the_root_of_the_reference_project_leads_to_the_docs() -> None:
    assert Client().get("/")["Location"] == "/v1/docs"
