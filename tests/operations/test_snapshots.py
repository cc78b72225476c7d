"""How a run came about: read whatever release wrote it, kept from submission to replay."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from mailbox_app.errors import SnapshotTooNew
from mailbox_app.models import Message, Run
from mailbox_app.models.snapshot import VERSION, Snapshot
from mailbox_app.operations import deliver, interrupt, pending, post, replay, settle, submit
from tests.operations import scene

SHAPES = sorted((Path(__file__).parent / "snapshots").glob("*.json"))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_a_snapshot_of_any_release_reads_to_the_present_shape(shape: Path) -> None:
    kept = json.loads(shape.read_text())
    found = Snapshot.read(kept["stored"])
    assert found == Snapshot(**kept["read"])
    assert Snapshot.read(found.write()) == found
    assert found.write()["version"] == VERSION


def test_every_version_there_was_is_kept() -> None:
    assert {json.loads(shape.read_text())["stored"].get("version", 0) for shape in SHAPES} == set(range(VERSION + 1))


def test_the_present_shape_is_what_is_kept_of_the_present_version() -> None:
    """Who changes the shape raises the version: rows of this one exist, and old workers read them."""
    kept = [json.loads(shape.read_text())["stored"] for shape in SHAPES]
    present = [stored for stored in kept if stored.get("version") == VERSION]
    assert present
    for stored in present:
        assert Snapshot.read(stored).write() == stored
    everything = Snapshot(
        posted={"sender": "", "by": {}}, digest="d", trace={"traceparent": "t"}, replayed_by="a", depth=1, detached=True
    )
    assert {name: type(value).__name__ for name, value in everything.write().items()} == {
        **dict.fromkeys(("version", "depth"), "int"),
        "detached": "bool",
        **dict.fromkeys(("origin", "adapter", "sender", "run_mode", "digest", "replayed_by"), "str"),
        **dict.fromkeys(("options", "metadata", "trace", "posted"), "dict"),
    }


def test_a_newer_snapshot_is_refused_and_shown_as_far_as_it_is_known() -> None:
    stored = {"version": VERSION + 1, "origin": "rest", "options": ["other"], "metadata": {"a": 1}, "more": True}
    with pytest.raises(SnapshotTooNew) as refused:
        Snapshot.read(stored)
    assert refused.value.facts == {"version": VERSION + 1}
    assert Snapshot.shown(stored) == Snapshot(origin="rest", metadata={"a": 1})


TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def facts(run: Run) -> tuple[Any, ...]:
    known = run.snapshot
    return known.origin, known.adapter, known.sender, known.trace, known.options


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailbox_app.tracing.inject", lambda: {"trace": TRACE})


@pytest.mark.django_db
@pytest.mark.usefixtures("traced")
def test_origin_sender_adapter_and_trace_are_kept_from_submission_to_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [{"content": "hello", "sender": "ann"}]
    posted = submit.run(scope=scene.SCOPE, agent="echo", messages=said, options={"depth": 2}, origin="rest")
    assert facts(scene.run(posted)) == ("rest", "rest", "ann", TRACE, {"depth": 2})
    monkeypatch.setattr("mailbox_app.tracing.inject", dict)
    one = scene.taken()
    assert (one.trace, one.options) == (TRACE, {"depth": 2})
    later = submit.messages(scope=scene.SCOPE, thread_id=one.thread_id, messages=["and?"], boundary="next_step")
    settle.dead_letter(one, code="broken", message="it broke")
    requeued = Message.objects.get(pk=later.message_ids[0]).run
    assert requeued is not None
    assert facts(requeued) == ("requeue", "rest", "ann", TRACE, {"depth": 2})
    again = replay.one(dispatch_id=one.dispatch_id, by="ben")
    replayed = Run.objects.get(pk=again.run_id)
    assert facts(replayed) == ("replay", "rest", "ann", TRACE, {"depth": 2})
    assert replayed.snapshot.replayed_by == "ben"


@pytest.mark.django_db
def test_a_durable_message_names_its_sender_and_what_is_said_by_several_none() -> None:
    thread_id = scene.post().thread_id
    sent = deliver.message(
        scope=scene.SCOPE, thread_id=thread_id, message_id=str(uuid.uuid4()), content="hi", agent="echo", sender="bot"
    )
    assert facts(Run.objects.get(pk=sent.run_id)) == ("durable", "durable", "bot", {}, {})
    said = [{"content": "a", "sender": "ann"}, {"content": "b", "sender": "ben"}]
    assert scene.run(submit.run(scope=scene.SCOPE, agent="echo", messages=said)).snapshot.sender == ""


@pytest.mark.django_db
def test_an_interrupt_is_asked_for_in_the_foreground() -> None:
    modes = [scene.run(scene.post(if_active=word)).snapshot.run_mode for word in ("interrupt", "enqueue")]
    assert modes == ["foreground", "background"]


@pytest.mark.django_db
def test_a_run_that_an_older_release_made_is_joined_in_the_present_shape() -> None:
    thread_id = scene.posted_and_taken().thread_id
    said = post.to_thread(scope=scene.SCOPE, thread_id=thread_id, messages=["a"], by="ann")
    known = scene.run(said).activation
    old = {name: known[name] for name in ("origin", "options", "metadata", "posted")} | {"version": 1}
    Run.objects.filter(pk=said.run_id).update(activation=old)
    joined = post.to_thread(scope=scene.SCOPE, thread_id=thread_id, messages=["b"], by="ben")
    assert joined.run_id == said.run_id
    found = scene.run(said).snapshot
    assert found.posted is not None
    assert found.posted["by"] == {"ann": [str(said.message_ids[0])], "ben": [str(joined.message_ids[0])]}
    assert (found.adapter, scene.run(said).activation["version"]) == ("python", VERSION)


@pytest.mark.django_db
def test_what_is_released_again_is_as_it_was() -> None:
    posted = submit.run(scope=scene.SCOPE, agent="echo", messages=["a"], options={"depth": 2}, origin="rest")
    interrupt.thread(scope=scene.SCOPE, thread_id=posted.thread_id)
    (run_id,) = pending.release(scope=scene.SCOPE, thread_id=posted.thread_id).run_ids
    assert facts(Run.objects.get(pk=run_id)) == ("requeue", "rest", "", {}, {"depth": 2})
