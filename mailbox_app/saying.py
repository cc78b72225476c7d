"""What is told to whoever streams, by one thread of each process: nobody who commits or speaks waits for Redis.

Notices of new events and pieces of live text are left here and sent together, at once after a silence, and then every
few milliseconds at most. While nobody listens that is every quarter of a second, so that a busy worker pays nothing for
streams nobody has open. What Redis did not take is sent again when it answers, as far as it is kept: an agent may say
nothing more for long. All of it may be lost: events are rows, and live text is closed by its durable message.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from mailbox_app import channel
from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

# The topic of notices: {thread id: its last cursor}.
EVENTS = "events"
# The topic of a run's live text, and the key under which the text of one activation is kept for who comes late.
TEXT = "run:{run_id}"
KEPT = "text:{run_id}:{fence}"
# Characters of live text that are kept and sent at most; of more, the last ones.
MOST_TEXT = 262_144

# How long after a sending the next one waits, so that much becomes few: less than anybody sees; and a sending takes a
# hundredth of that.
_REST_SECONDS = 0.02
_UNHEARD_REST_SECONDS = 0.25
# How long after a sending that failed what was in it is sent again, unless there is news before.
_AGAIN_SECONDS = 1.0
# Threads with unsaid events; more than a process commits in a rest. Past that, streams find them by looking.
_MOST_NOTICES = 10_000
# Commands of one piece: keep it, for a while, and tell it.
_OF_A_PIECE = 3
# How long the text of an activation is kept that has gone silent, or whose process died before it could delete it.
_KEPT_SECONDS = 300

# The last event this process has recorded on a thread, for what is said after it; of as many threads as there may be
# notices, then from the start: text whose place among the events is not known is shown as it comes.
_latest: dict[str, int] = {}
_noting = threading.Lock()


def recorded(cursors: Mapping[uuid.UUID, int]) -> None:
    """Tell that these threads have events up to these cursors."""
    if conf.redis_url:
        with _noting:
            if len(_latest) > _MOST_NOTICES:
                _latest.clear()
            for thread_id, cursor in cursors.items():
                _latest[str(thread_id)] = max(cursor, _latest.get(str(thread_id), 0))
    if _is_said():
        _mouth_of_process().notice(cursors)


def doubt(thread_id: uuid.UUID) -> None:
    """A transaction on the thread may have won though its answer was lost: which event is its last is not known."""
    with _noting:
        _latest.pop(str(thread_id), None)


class Speech:
    """The live text of one turn of an activation: a bounded tail of it, and what of that has not been sent.

    Each piece names the event it was said `after`, so that who hears of both in another order can tell what a durable
    message closes; `thread_id`: where that event is.
    """

    def __init__(
        self, *, run_id: uuid.UUID, fence: int, attempt: int, turn: int = 1, thread_id: uuid.UUID | None = None
    ) -> None:
        self._about = {"fence": fence, "turn": turn, "attempt": attempt}
        self._thread_id = str(thread_id)
        self._topic = channel.PREFIX + TEXT.format(run_id=run_id)
        self._key = channel.PREFIX + KEPT.format(run_id=run_id, fence=fence)
        self._lock = threading.Lock()
        # Characters said, and how many of them are closed, kept up to, and sent.
        self._end = self._closed = self._kept_to = self._sent = 0
        self._after = _latest.get(self._thread_id, 0)
        self._is_over = False
        self._kept: list[str] = []
        self._unsent: list[str] = []
        # Where what is being sent begins, and what it is.
        self._piece = (0, "")
        # Pieces in Redis, as far as is known; None: they have to be written anew.
        self._entries: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether its agent says no more."""
        return self._is_over

    def say(self, text: str) -> int:
        """Add to it; returns its offset in characters."""
        with self._lock:
            offset = self._end
            self._end += len(text)
            if self._is_over:
                return offset
            if not _is_said():
                # With what waited to be sent: it would be sent as if it came after this.
                self._unsent, self._sent = [], self._end
                return offset
            self._unsent.append(text)
            if self._end - self._sent > 2 * MOST_TEXT:
                self._shorten()
        _mouth_of_process().speak(self)
        return offset

    def close(self) -> None:
        """All that was said is in a durable message now: nobody who comes later gets it."""
        with self._lock:
            self._kept, self._unsent, self._entries = [], [], None
            self._closed = self._kept_to = self._sent = self._end
            self._after = _latest.get(self._thread_id, 0)
        if self._end and not self._is_over and _is_said():
            _mouth_of_process().speak(self)

    def end(self) -> None:
        """The agent says no more: what is kept for who comes later is deleted. Lost: it is forgotten after a while."""
        with self._lock:
            is_kept, self._is_over = bool(self._end) and not self._is_over, True
        if is_kept and _is_said():
            _mouth_of_process().speak(self)

    def commands(self) -> list[tuple[str | int, ...]]:
        """What is to be sent now: the pieces kept in Redis first, then the news."""
        with self._lock:
            if self._end - self._sent > MOST_TEXT:
                self._shorten()
            offset, piece = self._sent, "".join(self._unsent)
            self._unsent, self._sent, self._piece = [], self._end, (offset, piece)
            if self._is_over:
                self._kept, self._entries = [], None
                last = [("PUBLISH", self._topic, self._encoded(offset, piece))] if piece else []
                return [("DEL", self._key), *last]
            if offset != self._kept_to:  # something between was dropped
                self._kept, self._entries = [], None
            self._kept.append(piece)
            self._kept_to = self._end
            said = kept = self._encoded(offset, piece)
            is_full = (self._entries or 0) >= conf.stream_buffer_entries or sum(map(len, self._kept)) > 2 * MOST_TEXT
            is_anew = self._entries is None or is_full
            if is_anew:
                self._kept = ["".join(self._kept)[-MOST_TEXT:]]
                kept = self._encoded(self._end - len(self._kept[0]), self._kept[0])
                self._entries = 0
            self._entries = (self._entries or 0) + 1
        return [
            *([("DEL", self._key)] if is_anew else []),
            ("RPUSH", self._key, kept),
            ("EXPIRE", self._key, _KEPT_SECONDS),
            ("PUBLISH", self._topic, said),
        ]

    def answered(self, answers: list[Any]) -> bool:
        """Take Redis's answers, none if it was away: then the same is to be sent again. Whether anybody heard it."""
        if not answers:
            self._take_back()
        if self._is_over or len(answers) < _OF_A_PIECE:
            self._entries = None
            return False
        # Another length than expected: Redis has lost what it kept.
        if answers[-_OF_A_PIECE] != self._entries:
            self._entries = None
        return bool(answers[-1])

    def _take_back(self) -> None:
        with self._lock:
            offset, piece = self._piece
            # Else a message holds it by now, or so much has been said since that it is among what was dropped.
            if self._closed <= offset and self._sent == offset + len(piece):
                self._unsent, self._sent = [piece, *self._unsent], offset
                kept = "".join(self._kept)
                self._kept, self._kept_to = [kept[: len(kept) - len(piece)]], offset
                if self._end - self._sent > MOST_TEXT:
                    self._shorten()

    def _shorten(self) -> None:
        left = "".join(self._unsent)[-MOST_TEXT:]
        self._unsent, self._sent = [left], self._end - len(left)

    def _encoded(self, offset: int, text: str) -> str:
        place = {"after": self._after, "closed": self._closed, "offset": offset}
        return json.dumps({"type": "delta", **self._about, **place, "text": text})


def _is_said() -> bool:
    return bool(conf.redis_url) and not channel.is_silenced()


class _Mouth:
    """The thread of one process that sends, and what it is to send next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_news = threading.Event()
        self._cursors: dict[str, int] = {}
        self._speeches: dict[Speech, None] = {}
        self._is_owing = False
        threading.Thread(target=self._run, name="mailbox-saying", daemon=True).start()

    def notice(self, cursors: Mapping[uuid.UUID, int]) -> None:
        with self._lock:
            self._note({str(thread_id): cursor for thread_id, cursor in cursors.items()})
        self._wake()

    def speak(self, speech: Speech) -> None:
        with self._lock:
            self._speeches[speech] = None
        self._wake()

    def _note(self, cursors: Mapping[str, int]) -> None:
        if len(self._cursors) < _MOST_NOTICES:
            # In any order: of two transactions the earlier may come here later.
            for thread_id, cursor in cursors.items():
                self._cursors[thread_id] = max(cursor, self._cursors.get(thread_id, 0))

    def _wake(self) -> None:
        if not self._has_news.is_set():
            self._has_news.set()

    def _run(self) -> None:
        while True:
            self._has_news.wait(_AGAIN_SECONDS if self._is_owing else None)
            self._has_news.clear()
            is_heard = False
            try:
                is_heard = self._send()
            except Exception as error:  # it would end the live text and the notices of this process for good
                observe("saying.failed", level=logging.ERROR, error=type(error).__name__, message=str(error)[:200])
            time.sleep(_REST_SECONDS if is_heard else _UNHEARD_REST_SECONDS)

    def _send(self) -> bool:
        with self._lock:
            cursors, self._cursors = self._cursors, {}
            speeches, self._speeches = list(self._speeches), {}
            self._is_owing = False
        if channel.is_left_alone():
            return self._owe(cursors, speeches)
        said = [(speech, speech.commands()) for speech in speeches]
        # Text first: who hears of an event has all that was said before it.
        commands = [command for _, some in said for command in some]
        if cursors:
            commands.append(("PUBLISH", channel.PREFIX + EVENTS, json.dumps(cursors)))
        answers = channel.send(commands)
        is_heard = bool(answers and cursors and answers[-1])
        at = 0
        for speech, some in said:
            is_heard = speech.answered(answers[at : at + len(some)]) or is_heard
            at += len(some)
        return is_heard if answers else self._owe(cursors, speeches)

    def _owe(self, cursors: Mapping[str, int], speeches: Iterable[Speech]) -> bool:
        """Keep it for the next time; what is over is forgotten by Redis without us."""
        if not conf.redis_url:
            return False
        with self._lock:
            self._note(cursors)
            still = [speech for speech in speeches if not speech.is_over]
            self._speeches = {**dict.fromkeys(still), **self._speeches}
            self._is_owing = bool(self._cursors or self._speeches)
        return False


_mouths: dict[int, _Mouth] = {}
_starting = threading.Lock()


def _mouth_of_process() -> _Mouth:
    """This process's thread: a forked child has none of its parent's."""
    mouth = _mouths.get(os.getpid())
    if mouth is None:
        with _starting:
            mouth = _mouths.get(os.getpid())
            if mouth is None:
                mouth = _mouths[os.getpid()] = _Mouth()
    return mouth


def _begin_anew() -> None:
    global _starting, _noting
    _starting, _noting = threading.Lock(), threading.Lock()


# A fork while another thread holds one would leave the child a lock nobody gives back.
os.register_at_fork(after_in_child=_begin_anew)
