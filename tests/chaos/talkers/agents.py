"""An agent that talks: it reads, asks and waits, as its run's id has it, and writes down what it was handed.

An app of its own (MAILBOX_EXTRA_APPS). The file is named by TALKER_LOG; its lines are judged by `proof/spoken.py`.
"""

import json
import os
import random
import time
from collections.abc import Iterable
from typing import Any

from mailbox_app.execution import Context, Question, agent


@agent("talker", max_attempts=20, timeout_seconds=60)
def talker(ctx: Context) -> str:
    """Read at the start, at checkpoints and after a wait; the same at every replay of a turn."""
    _tell(ctx, "enters")
    _reads(ctx, ctx.messages)
    dice = random.Random(f"{ctx.run_id} {ctx.turn}")
    for _ in range(dice.randint(1, 4)):
        time.sleep(dice.uniform(0.0, 0.4))
        _reads(ctx, ctx.checkpoint())
    match dice.choice(("return", "return", "ask", "ask both", "listen", "listen", "sleep")):
        case "ask":
            expires_in = dice.choice((None, 1.0, 30.0))
            _hears(ctx, [ctx.ask("first", schema={"type": "object"}, expires_in=expires_in)])
        case "ask both":
            _hears(ctx, ctx.ask_all([Question(name="first"), Question(name="second", expires_in=20.0)]))
        case "listen":
            _reads(ctx, ctx.suspend("user_input", seconds=4.0))
        case "sleep":
            ctx.suspend("rate_limit", seconds=0.2)
    _reads(ctx, ctx.checkpoint())
    return "said"


def _reads(ctx: Context, messages: Iterable[Any]) -> None:
    found = [[str(message.id), message.text] for message in messages]
    if found:
        _tell(ctx, "reads", messages=found)


def _hears(ctx: Context, answers: Iterable[Any]) -> None:
    for answer in answers:
        facts = {"decision": answer.decision_id, "action": answer.action, "payload": answer.payload}
        _tell(ctx, "hears", name=answer.name, expired=answer.expired, **facts)


def _tell(ctx: Context, what: str, **facts: Any) -> None:
    line = {
        "what": what, "run": str(ctx.run_id), "thread": str(ctx.thread_id), "turn": ctx.turn,
        "fence": ctx.fence_token, "pid": os.getpid(), **facts,
    }  # fmt: skip
    # One write to a file opened for appending: lines of several processes do not mix.
    with open(os.environ["TALKER_LOG"], "ab", buffering=0) as log:
        log.write(json.dumps(line).encode() + b"\n")
