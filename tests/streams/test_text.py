"""Live text: pieces put together whatever is lost, late or doubled; kept for who comes late, in bounded space."""

import contextlib
import json
import random
import uuid
from typing import Any

import pytest
import redis

from mailbox_app import channel, saying
from mailbox_app.api.v1.stream_text import Came, RunText
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from tests.races.actors import until

RUN = uuid.UUID(int=1)


def piece(offset: int, text: str, *, fence: int = 1, closed: int = 0, attempt: int = 1) -> dict[str, Any]:
    return {"fence": fence, "attempt": attempt, "closed": closed, "offset": offset, "text": text}


def test_pieces_in_order_are_the_text() -> None:
    text = RunText(RUN, fence=1)
    assert [text.add(piece(0, "Grüß")), text.add(piece(4, " Gott"))] == [Came.NEW, Came.NEW]
    assert (text.tail(0), text.tail(4), text.tail(9)) == ((0, "Grüß Gott"), (4, " Gott"), (9, ""))


def test_pieces_that_overlap_or_repeat_in_any_order_are_the_text_once() -> None:
    whole = "".join(chr(97 + number % 26) for number in range(200))
    for seed in range(50):
        pick = random.Random(seed)
        text, cut = RunText(RUN, fence=1), [(0, 1)]
        while cut[-1][1] < len(whole):
            start = pick.randint(max(0, cut[-1][0]), cut[-1][1])
            cut.append((start, max(cut[-1][1], min(len(whole), start + pick.randint(1, 40)))))
        for start, end in cut:
            for _ in range(pick.randint(1, 3)):
                text.add(piece(start, whole[start:end]))
        assert text.tail(0) == (0, whole), seed


def test_a_piece_that_comes_too_early_is_refused_or_taken_with_its_gap() -> None:
    text = RunText(RUN, fence=1)
    text.add(piece(0, "one "))
    assert text.add(piece(8, "three")) == Came.AHEAD
    assert text.tail(0) == (0, "one ")
    assert text.add(piece(8, "three"), anyhow=True) == Came.NEW
    assert text.tail(0) == (8, "three")


def test_the_beginning_may_come_last() -> None:
    text = RunText(RUN, fence=1)
    text.add(piece(4, "two"), anyhow=True)
    text.add(piece(0, "one two"))
    assert text.tail(0) == (0, "one two")


def test_another_activation_begins_anew_and_an_older_one_is_not_heard() -> None:
    text = RunText(RUN, fence=2)
    assert text.add(piece(0, "old", fence=1)) == Came.OLD
    text.add(piece(0, "now", fence=2))
    assert text.add(piece(0, "newer", fence=3, attempt=2)) == Came.NEW
    assert (text.tail(0), text.attempt, text.fence) == ((0, "newer"), 2, 3)
    assert text.add(piece(3, "late", fence=2)) == Came.OLD


def test_what_is_closed_is_not_told_again() -> None:
    text = RunText(RUN, fence=1)
    text.add(piece(0, "said."))
    text.close(1)
    assert text.tail(0) == (5, "")
    assert text.add(piece(0, "said.")) == Came.OLD
    assert text.add(piece(3, "d.More")) == Came.NEW
    assert text.tail(0) == (5, "More")
    text.add(piece(9, "Next", closed=9))
    assert text.tail(0) == (9, "Next")


def test_what_is_told_is_made_once_for_all_who_are_as_far_and_anew_with_each_piece() -> None:
    text = RunText(RUN, fence=1)
    text.add(piece(0, "One."))
    whole, rest = text.told(0), text.told(2)
    assert text.told(0) is whole
    assert [json.loads(one.split(b"data: ")[1])["text"] for one in (whole, rest)] == ["One.", "e."]
    text.add(piece(4, "Two."))
    assert json.loads(text.told(0).split(b"data: ")[1])["text"] == "One.Two."
    text.close(1)
    assert text.told(0) == text.told(8) == b""


def test_only_the_end_of_a_long_text_is_kept() -> None:
    text = RunText(RUN, fence=1)
    for number in range(30):
        text.add(piece(number * 10_000, str(number % 10) * 10_000))
    offset, kept = text.tail(0)
    assert (offset, len(kept)) == (300_000 - saying.MOST_TEXT, saying.MOST_TEXT)
    assert kept.endswith("9" * 10_000)


@pytest.fixture
def _own(own_redis: Redis, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": own_redis.url, "stream_buffer_entries": 4}
    channel.forget_failures()


def kept_of(run_id: uuid.UUID) -> str:
    """What Redis keeps, as who comes late puts it together."""
    found = redis.Redis.from_url(conf.redis_url).lrange(f"mailbox:text:{run_id}:1", 0, -1)
    assert len(found) <= conf.stream_buffer_entries
    text = RunText(run_id, fence=1)
    for number, one in enumerate(found):
        text.add(json.loads(one), anyhow=number == 0)
    return text.tail(0)[1]


@pytest.mark.usefixtures("_own")
def test_however_many_pieces_the_text_is_kept_whole_in_few_entries_for_a_while() -> None:
    run_id = uuid.uuid4()
    speech, whole = saying.Speech(run_id=run_id, fence=1, attempt=1), ""
    server = redis.Redis.from_url(conf.redis_url)
    listener = server.pubsub()
    listener.subscribe(f"mailbox:run:{run_id}")  # somebody listens: pieces go out one by one
    assert listener.get_message(timeout=10)
    for number in range(11):
        assert speech.say(f"{number} ") == len(whole)
        whole += f"{number} "
        until(lambda: kept_of(run_id) == whole, f"piece {number} is kept")  # noqa: B023
    assert 0 < server.ttl(f"mailbox:text:{run_id}:1") <= 300
    listener.close()


@pytest.mark.usefixtures("_own")
def test_what_redis_loses_of_a_text_is_kept_again_with_the_next_piece(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_buffer_entries": 256}  # not because there are too many
    run_id = uuid.uuid4()
    speech = saying.Speech(run_id=run_id, fence=1, attempt=1)
    speech.say("one ")
    until(lambda: kept_of(run_id) == "one ", "it is kept")
    redis.Redis.from_url(conf.redis_url).flushall()

    def is_whole() -> bool:
        speech.say(".")
        return kept_of(run_id).startswith("one ")

    until(is_whole, "it is kept again")


@pytest.mark.usefixtures("_own")
def test_what_waits_to_be_sent_keeps_its_place_when_nothing_is_sent_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saying._mouth_of_process(), "speak", lambda speech: None)
    speech = saying.Speech(run_id=uuid.uuid4(), fence=1, attempt=1)
    speech.say("said ")
    with channel.silenced():
        speech.say("unheard ")
    speech.say("later")
    told = json.loads(speech.commands()[-1][-1])
    assert (told["offset"], told["text"]) == (13, "later")


def test_what_was_said_durably_is_kept_no_longer() -> None:
    run_id = uuid.uuid4()
    speech = saying.Speech(run_id=run_id, fence=1, attempt=1)
    speech.say("said")
    until(lambda: kept_of(run_id) == "said", "it is kept")
    speech.close()
    until(lambda: kept_of(run_id) == "", "it is closed")
    assert speech.say("more") == 4
    until(lambda: kept_of(run_id) == "more", "the rest is kept")


@pytest.mark.usefixtures("_own")
def test_what_an_activation_has_said_is_deleted_with_its_end_and_what_it_says_then_is_not_kept() -> None:
    run_id = uuid.uuid4()
    speech = saying.Speech(run_id=run_id, fence=1, attempt=1)
    server = redis.Redis.from_url(conf.redis_url)
    listener = server.pubsub()
    listener.subscribe(f"mailbox:run:{run_id}")
    assert listener.get_message(timeout=10)
    speech.say("said ")
    until(lambda: kept_of(run_id) == "said ", "it is kept")
    with speech._lock:  # it has not been sent when the end comes
        speech._unsent, speech._end = ["and heard"], 14
    speech.end()
    until(lambda: not server.exists(f"mailbox:text:{run_id}:1"), "it is deleted")
    heard = []
    while len(heard) < 2:
        heard.append(json.loads(listener.get_message(timeout=10)["data"])["text"])
    assert heard == ["said ", "and heard"]
    speech.say("from the grave")
    other = saying.Speech(run_id=run_id, fence=2, attempt=2)
    other.say("anew")
    until(lambda: server.exists(f"mailbox:text:{run_id}:2") == 1, "what is said now has been sent")
    assert not server.exists(f"mailbox:text:{run_id}:1")
    listener.close()


@pytest.mark.usefixtures("_own")
def test_what_was_said_while_redis_was_away_is_kept_and_told_once_it_is_back_though_nothing_more_is_said(
    own_redis: Redis, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "broker_retry_seconds": 3600.0}  # it is tried again when the test says so
    run_id, thread_id = uuid.uuid4(), uuid.uuid4()
    speech = saying.Speech(run_id=run_id, fence=1, attempt=1)
    speech.say("before ")
    until(lambda: kept_of(run_id) == "before ", "it is kept")
    own_redis.stop()
    speech.say("meanwhile ")
    until(lambda: speech._piece == (7, "meanwhile ") and speech._sent == 7, "it was tried and not taken")
    speech.say("and again")
    saying.recorded({thread_id: 5})
    until(lambda: not saying._mouth_of_process()._has_news.is_set(), "all of it has been put off")
    own_redis.start()
    with contextlib.closing(redis.Redis.from_url(conf.redis_url).pubsub()) as listener:
        listener.subscribe(f"mailbox:{saying.EVENTS}", f"mailbox:run:{run_id}")
        assert [listener.get_message(timeout=10)["type"] for _ in range(2)] == ["subscribe", "subscribe"]
        channel.forget_failures()
        until(lambda: kept_of(run_id).endswith("meanwhile and again"), "what was said is kept")
        heard = RunText(run_id, fence=1)
        notices: dict[str, int] = {}

        def has_heard_all() -> bool:
            received = listener.get_message(timeout=1)
            if received is not None and received["type"] == "message":
                told = json.loads(received["data"])
                notices.update(told) if "text" not in told else heard.add(told, anyhow=True)
            return heard.tail(7) == (7, "meanwhile and again") and notices == {str(thread_id): 5}

        until(has_heard_all, "what was said and recorded is told")
    speech.end()


def test_a_message_that_closes_what_was_not_sent_yet_closes_it_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saying._mouth_of_process(), "speak", lambda speech: None)
    speech = saying.Speech(run_id=uuid.uuid4(), fence=1, attempt=1)
    speech.say("said ")
    speech.commands()
    speech.close()
    assert not speech.answered([])
    speech.say("later")
    told = json.loads(speech.commands()[-1][-1])
    assert (told["closed"], told["offset"], told["text"]) == (5, 5, "later")


def test_who_speaks_while_redis_is_away_is_neither_slowed_nor_grows(own_redis: Redis, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": own_redis.url}
    channel.forget_failures()
    own_redis.stop()
    speech = saying.Speech(run_id=uuid.uuid4(), fence=1, attempt=1)
    for _ in range(2_000):
        speech.say("x" * 1_000)
    with speech._lock:
        assert sum(map(len, speech._unsent)) <= 2 * saying.MOST_TEXT
        assert sum(map(len, speech._kept)) <= 2 * saying.MOST_TEXT
    speech.end()
    channel.forget_failures()
