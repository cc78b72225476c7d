"""mailbox_publish and mailbox_agents: what an operator types, and what they are told."""

import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from mailbox_app.models import AgentVersion
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def said(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def file(folder: Path, content: Any) -> str:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_configuration_is_published_from_a_file(tmp_path: Path) -> None:
    config = file(tmp_path, {"prompt": "Grüße"})
    out = said("mailbox_publish", "echo", "v1", "--config", config, "--note", "polite")
    [row] = AgentVersion.objects.all()
    assert (row.agent, row.version, row.configuration, row.note) == ("echo", "v1", {"prompt": "Grüße"}, "polite")
    assert out.startswith("echo v1 is published since 20")
    with scene.nothing_changes():
        assert said("mailbox_publish", "echo", "v1", "--config", config) == out


def test_a_configuration_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}'))
    said("mailbox_publish", "echo", "v1", "--config", "-")
    assert AgentVersion.objects.get().configuration == {"a": 1}


REFUSED = {
    "no file": (None, "cannot be read: No such file or directory"),
    "no JSON": ("{", "is not JSON in UTF-8"),
    "no object": ([1], "invalid_input: configuration must be an object, not list"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_published_ends_with_one_sentence(content: Any, message: str, tmp_path: Path) -> None:
    config = str(tmp_path / "none.json") if content is None else file(tmp_path, content)
    with scene.nothing_changes(), pytest.raises(CommandError, match=message):
        said("mailbox_publish", "echo", "v1", "--config", config)


def test_other_content_for_a_version_is_a_refusal(tmp_path: Path) -> None:
    given.agent_version(agent="echo", version="v1", configuration={"a": 1})
    with scene.nothing_changes(), pytest.raises(CommandError, match=r"^already_exists: version 'v1' of agent 'echo'"):
        said("mailbox_publish", "echo", "v1", "--config", file(tmp_path, {"a": 2}))


def test_agents_are_listed_with_their_live_workers_and_versions() -> None:
    given.registration(worker="a@one", version="2", options={"accepts": ["1"]}, slots=4)
    given.registration(worker="b@two", version="1", options={"accepts": []})
    given.registration(worker="c@three", version="1", seen_at=Now() - timedelta(hours=1))
    given.registration(worker="d@four", agent="retired", gone_at=Now())
    given.registration(worker="e@five", agent="forgotten", seen_at=Now() - timedelta(days=8))
    for number in range(7):
        given.agent_version(version=f"v{number}", note="kinder" if number == 6 else "")
    given.agent_version(agent="planned", version="v1")
    lines = said("mailbox_agents").splitlines()
    assert lines[:3] == [
        "echo",
        "  code 2, goes on with 1: a@one (mailbox.default; 4 slots)",
        "  code 1, goes on with no other: b@two (mailbox.default; 1 slots)",
    ]
    assert [line.split(":")[0] for line in lines[3:8]] == [f"  config v{number}" for number in (6, 5, 4, 3, 2)]
    assert lines[3].endswith("  kinder")
    assert lines[8] == "  and older ones"
    assert [line.split(":")[0] for line in lines[9:]] == [
        "planned",
        "  no live worker",
        "  config v1",
        "retired",
        "  no live worker",
    ]
    assert said("mailbox_agents", "retired").splitlines() == ["retired", "  no live worker"]


def test_an_empty_house_says_so() -> None:
    assert said("mailbox_agents") == "no worker has registered an agent, and nothing is published\n"
