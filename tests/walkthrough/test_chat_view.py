"""The chat page as a document: who gets it, what it may load, and that all it loads is here."""

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client

from mailbox_app.models import Kind
from mailbox_project.views import KINDS

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "mailbox_project" / "static" / "mailbox_project"


@pytest.fixture
def page(client: Client) -> str:
    client.force_login(User.objects.create_user("ada"))
    answer = client.get("/chat/")
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("path", ["/chat/", "/chat/0190f3d2-7c1e-7000-8000-000000000000/"])
def test_strangers_are_asked_to_sign_in(client: Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/login/?next={path}")


def test_it_is_read_alone_and_kept_by_no_cache(client: Client) -> None:
    client.force_login(User.objects.create_user("ada"))
    assert client.post("/chat/").status_code == 405
    assert "no-store" in client.get("/chat/")["Cache-Control"]


def test_nothing_in_it_is_inline_and_nothing_comes_from_elsewhere(client: Client, page: str) -> None:
    policy = client.get("/chat/")["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
    assert "unsafe" not in policy
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert len(scripts) == 3
    assert [script for script in scripts if "src=" not in script] == ['<script id="facts" type="application/json">']
    assert not re.findall(r"""\s(?:style|on\w+)=|(?:src|href)=["']?(?:https?:)?//""", page)


def test_all_it_loads_is_there(page: str) -> None:
    loaded = re.findall(r"/static/([\w./-]+)", page)
    assert len(loaded) == 3
    assert [path for path in loaded if finders.find(path) is None] == []
    imported = {name for path in STATIC.glob("*.js") for name in re.findall(r'from "\./([\w.]+)"', path.read_text())}
    assert imported == {path.name for path in STATIC.glob("*.js")} - {"chat.js"}


def test_what_is_vendored_has_its_licence() -> None:
    licence = (STATIC / "vendor" / "LICENSE.alpine.txt").read_text()
    for file in (STATIC / "vendor").glob("*.js"):
        assert file.name in licence
    for holder in ("Caleb Porzio and contributors", "Yuxi (Evan) You"):
        assert f"{holder}\n" in licence


def test_it_hears_of_everything_that_is_recorded(page: str) -> None:
    assert set(Kind.values) == set(KINDS)
    assert all(kind in page for kind in KINDS)
