"""The configurations of an agent over HTTP: for staff in their session, and for nobody else."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from mailbox_app.models import AgentVersion
from tests import given, make

pytestmark = pytest.mark.django_db

PATH = "/v1/agents/echo/versions"
BODY = {"version": "v1", "configuration": {"prompt": "Be kind."}, "note": "kinder"}


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("ada", is_staff=True))
    return client


def post(client: Client, body: Any = BODY, **headers: str) -> Any:
    return client.post(PATH, body, content_type="application/json", headers=headers)


def test_staff_publish_a_version_and_see_it(staff: Client) -> None:
    answer = post(staff)
    assert answer.status_code == 201, answer.content
    row = AgentVersion.objects.get()
    assert answer.json() == {
        "agent": "echo",
        "version": "v1",
        "configuration": {"prompt": "Be kind."},
        "note": "kinder",
        "published_by": "ada",
        "published_at": row.published_at.isoformat().replace("+00:00", "Z"),
    }
    listed = staff.get(PATH).json()
    assert listed == {"items": [answer.json()], "next_cursor": None, "has_more": False}


def test_the_same_again_is_the_same_answer_and_other_content_is_409(staff: Client) -> None:
    first = post(staff)
    before = make.row_counts()
    assert (post(staff).status_code, post(staff).json()) == (201, first.json())
    refused = post(staff, {**BODY, "configuration": {}})
    assert (refused.status_code, make.problem_of(refused)["code"]) == (409, "already_exists")
    assert make.row_counts() == before


def test_versions_are_read_page_by_page_the_latest_first(staff: Client) -> None:
    for number in range(5):
        given.agent_version(version=f"v{number}")
    given.agent_version(agent="another", version="v9")
    seen, cursor = [], None
    while True:
        page = staff.get(PATH, {"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen.append([item["version"] for item in page["items"]])
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert seen == [["v4", "v3"], ["v2", "v1"], ["v0"]]


WRONG = [
    ({"version": "v1"}, "configuration", "required"),
    ({"version": "v1", "configuration": [1]}, "configuration", "not_an_object"),
    ({"version": "", "configuration": {}}, "version", "blank"),
    ({"version": "v1", "configuration": {}, "model": "x"}, "model", "unknown_field"),
]


@pytest.mark.parametrize(("body", "field", "code"), WRONG)
def test_a_wrong_body_is_422_and_names_the_field(staff: Client, body: Any, field: str, code: str) -> None:
    answer = post(staff, body)
    assert answer.status_code == 422
    [error] = make.problem_of(answer)["errors"]
    assert (error["field"], error["code"]) == (field, code)
    assert AgentVersion.objects.count() == 0


@pytest.mark.parametrize("method", ["get", "post"])
def test_nobody_else_may(method: str) -> None:
    anyone = Client()
    anyone.force_login(User.objects.create_user("eve"))
    admin = User.objects.create_user("root", is_staff=True)
    token = make.token(user=admin)[1]
    for client, headers, status in (
        (Client(), {}, 401),
        (anyone, {}, 403),
        (Client(), {"authorization": f"Bearer {token}"}, 403),
    ):
        answer = getattr(client, method)(PATH, headers=headers)
        assert answer.status_code == status
    assert AgentVersion.objects.count() == 0
