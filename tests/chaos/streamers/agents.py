"""An agent that emits, says and speaks live, at a pace; an app of its own (MAILBOX_EXTRA_APPS).

What it speaks says where it is: piece n of attempt a is `piece(a, n)`, so that any part of the text, at its offset, can
be judged by itself.
"""

import time
from typing import Any

from mailbox_app.execution import Context, agent

# Every so many events it says what it has spoken since.
SAYS_EVERY = 10
PIECE_CHARACTERS = 12


def piece(attempt: int, number: int) -> str:
    return f"{attempt:04d}.{number:06d} "


def spoken(attempt: int, offset: int, length: int) -> str:
    """What an attempt speaks there."""
    first = offset // PIECE_CHARACTERS
    last = (offset + length) // PIECE_CHARACTERS
    text = "".join(piece(attempt, number) for number in range(first, last + 1))
    return text[offset - first * PIECE_CHARACTERS :][:length]


@agent("streamer", max_attempts=20, timeout_seconds=600)
def streamer(ctx: Context) -> str:
    """Options: count (of events), rate (a second). The same at every replay."""
    count, rate = int(ctx.options.get("count", 20)), float(ctx.options.get("rate", 10))
    began: Any = time.monotonic()
    for number in range(count):
        ctx.delta(piece(ctx.attempt, number))
        ctx.emit("Told", {"number": number}, visibility="internal" if number % 7 == 3 else "public")
        if number % SAYS_EVERY == SAYS_EVERY - 1:
            ctx.say(f"{number + 1} events")
            # Between, nothing records at once what it emits.
            ctx.checkpoint()
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
    return f"{count} events"
