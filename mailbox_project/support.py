"""An example agent that shows it off: `support` tells about orders, asks a human before it refunds much, and hands the
letter to a child run. It needs no network: `examples/orders.csv` is its shop, and plain rules are its wits.

What is said is said once. Each answer is spoken inside a journalled step, live word by word; a worker that goes on with
the run after a crash, an approval or the child's end finds the words in the journal and speaks only what is missing.
Who steers the run in mid-answer is heard at the end of the sentence: the rest of that answer is dropped, and the new
message answered next.
"""

import csv
import re
import time
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any

from django.conf import settings

from mailbox_app.execution import Answer, Context, agent
from mailbox_app.execution.contract import IncomingMessage

ORDERS = Path(__file__).resolve().parent / "examples" / "orders.csv"
# Up to here the agent refunds by itself; above, somebody has to approve.
LIMIT = Decimal("50.00")
APPROVAL_SECONDS = 86_400
# The agent that children run.
LETTER = "support.letter"

_NUMBER = re.compile(r"\b[A-Z]-\d{5}\b", re.IGNORECASE)
_AMOUNT = re.compile(r"(?<![\w.,-])(\d{1,6}(?:[.,]\d{1,2})?)(?![\w-])")
_REFUND = re.compile(r"\b(refund|money back|pay back|return)", re.IGNORECASE)
_BRIEF = re.compile(r"\b(short|brief|briefly|quick|enough)\b", re.IGNORECASE)
_MOST_QUOTED = 60


@agent("support", version="1", max_attempts=3, timeout_seconds=300)
def support(ctx: Context) -> str:
    """Answer each message of the turn, and what is steered here meanwhile, one after the other."""
    talk = Talk(ctx)
    while talk.todo:
        _answer(talk, talk.todo.pop(0))
    ctx.state["order"], ctx.state["refunded"] = talk.order_number, talk.refunded
    return talk.unsaid


class Talk:
    """What one turn has said, and still has to answer."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.todo: list[IncomingMessage] = list(ctx.messages)
        self.unsaid = ""
        # "Refund it" is about the order that was spoken of last, in this turn or before.
        self.order_number: str | None = ctx.state.get("order")
        self.refunded: dict[str, str] = dict(ctx.state.get("refunded", {}))

    def speak(self, name: str, about: IncomingMessage, *sentences: str) -> None:
        """Say these sentences live, until somebody steers; they are the answer, or part of it if more follows."""
        self.commit()
        spoken = self.ctx.step(name, partial(self._spoken, sentences), key=str(about.id))
        self.unsaid = str(spoken["text"])
        self._hear(self.ctx.checkpoint(), spoken["heard"])

    def commit(self) -> None:
        """Make what was spoken a message of the thread."""
        if self.unsaid:
            self.ctx.say(self.unsaid)
        self.unsaid = ""

    def _spoken(self, sentences: Sequence[str]) -> dict[str, Any]:
        """The record of a speech: {"text", "heard": the ids of the messages that broke it off}."""
        said: list[str] = []
        for sentence in sentences:
            _stream(self.ctx, f" {sentence}" if said else sentence)
            said.append(sentence)
            arrived = self.ctx.checkpoint()
            if arrived:
                said.append(f"— You say “{_quoted(arrived[-1].text)}”: I come to that now.")
                _stream(self.ctx, f" {said[-1]}")
                self._hear(arrived, ())
                return {"text": " ".join(said), "heard": [str(message.id) for message in arrived]}
        return {"text": " ".join(said), "heard": []}

    def _hear(self, arrived: Sequence[IncomingMessage], first: Sequence[str]) -> None:
        """Answer these too, and those that broke off a speech before all others.

        After a replay all that came to the run is handed over at once: the journal says what was heard when.
        """
        waiting = [*self.todo, *arrived]
        self.todo = sorted(waiting, key=lambda message: str(message.id) not in first)


def _answer(talk: Talk, message: IncomingMessage) -> None:
    """Answer one message: about an order, or with a refund."""
    ctx, text = talk.ctx, message.text
    named = _NUMBER.search(text)
    number = named.group().upper() if named else talk.order_number
    if number is None:
        talk.speak("help", message, *_HELP)
        return
    order = ctx.step("look-up", partial(_find, number), key=str(message.id))
    if order is None:
        talk.speak("help", message, f"I find no order {number}.", *_HELP)
        return
    talk.order_number = number
    if _REFUND.search(text):
        _refund(talk, message, order)
    elif named or _BRIEF.search(text):
        facts = _described(order)
        talk.speak("describe", message, *(facts[:1] if _BRIEF.search(text) else facts))
    else:
        talk.speak("help", message, f"We were speaking of order {number}.", *_HELP)


def _refund(talk: Talk, message: IncomingMessage, order: dict[str, str]) -> None:
    """Pay back what is asked for, or the whole order: up to LIMIT at once, above it once somebody has approved."""
    ctx, number, key = talk.ctx, order["order_id"], str(message.id)
    if number in talk.refunded:
        talk.speak("refunded", message, f"{talk.refunded[number]} EUR of order {number} were refunded already.")
        return
    amount = _amount(message.text, Decimal(order["total"]))
    has_asked, note = amount > LIMIT, ""
    if has_asked:
        talk.speak(
            "announce",
            message,
            f"{amount} EUR for order {number} are above the {LIMIT} EUR that I may refund by myself.",
            "I am asking somebody who may decide.",
        )
        talk.commit()
        answer = ctx.ask(
            "approve-refund",
            question=f"Refund {amount} EUR of order {number} ({order['product']})?",
            arguments={"order": number, "product": order["product"], "total": order["total"], "asked": str(amount)},
            schema=_approval(amount, Decimal(order["total"])),
            expires_in=APPROVAL_SECONDS,
            key=key,
        )
        if answer.action == "cancel" or not answer.payload["approved"]:
            talk.speak("refuse", message, *_refusal(answer, number))
            return
        amount = _cents(answer.payload.get("amount", amount))
        note = str(answer.payload.get("note", "")).strip()
    paid = ctx.step("refund", partial(_pay_back, number, amount), key=key)
    ctx.emit("RefundPaid", {"order": number, "amount": paid["amount"]}, key=f"refund {number}")
    talk.refunded[number] = paid["amount"]
    talk.speak("paid", message, f"Done: {paid['amount']} EUR of order {number} go back to the customer.")
    if has_asked:
        _have_letter_written(talk, key, {**order, "amount": paid["amount"], "note": note})


def _have_letter_written(talk: Talk, key: str, facts: dict[str, str]) -> None:
    """Hand the letter to a child run on a thread of its own, and wait for it without a worker."""
    talk.commit()
    task = f"Write to the customer of order {facts['order_id']}."
    child = talk.ctx.spawn(task, agent=LETTER, options={"facts": facts}, key=key)
    [ended] = talk.ctx.wait_for_children([child], message="the letter is being written", key=key)
    if ended["termination"]["type"] == "natural_end":
        talk.unsaid = f"This is the letter for the customer:\n\n{ended['output']}"
    else:
        talk.unsaid = "The letter for the customer could not be written; please write it by hand."


@agent(LETTER, version="1", max_attempts=3, timeout_seconds=300)
def letter(ctx: Context) -> str:
    """Write the letter that goes with a refund, paragraph by paragraph."""
    written: list[str] = []
    for paragraph in _paragraphs(ctx.options["facts"]):
        _stream(ctx, f"\n\n{paragraph}" if written else paragraph)
        written.append(paragraph)
        ctx.checkpoint()
    return "\n\n".join(written)


def _paragraphs(facts: dict[str, str]) -> list[str]:
    day = date.fromisoformat(facts["ordered_on"])
    what = f"{facts['product'].lower()}, order {facts['order_id']} of {day.day} {day:%B %Y}"
    return [
        "Dear customer,",
        f"we are sorry that you are not happy with your {what}.",
        f"Today we have sent {facts['amount']} EUR back to you, the same way as you paid. {facts['note']}".rstrip(),
        "Yours, the support team",
    ]


def _approval(amount: Decimal, total: Decimal) -> dict[str, Any]:
    """What an answer must look like: yes with an amount, or no, and why."""
    return {
        "type": "object",
        "properties": {
            "approved": {"type": "boolean"},
            "amount": {
                "title": "Amount in EUR",
                "type": "number",
                "minimum": 0.01,
                "maximum": float(total),
                "default": float(amount),
            },
            "note": {"title": "Note to the customer", "type": "string", "maxLength": 200},
        },
        "required": ["approved"],
        "additionalProperties": False,
    }


def _refusal(answer: Answer, number: str) -> list[str]:
    if answer.expired:
        return [f"Nobody could look at order {number} in time, so nothing is refunded yet.", "Please ask again."]
    note = str((answer.payload or {}).get("note", "")).strip()
    said = [f"I am sorry: the refund of order {number} was not approved."]
    return [*said, f"The reason given: {note}"] if note else said


def _pay_back(number: str, amount: Decimal) -> dict[str, str]:
    """Where a shop would call its payment provider. A step may run again after a crash: a key makes that harmless."""
    return {"amount": str(amount), "idempotency_key": f"refund-{number}"}


# The shop


@cache
def _orders() -> dict[str, dict[str, str]]:
    with ORDERS.open(newline="") as file:
        return {row["order_id"]: row for row in csv.DictReader(file)}


def _find(number: str) -> dict[str, str] | None:
    return _orders().get(number)


def _described(order: dict[str, str]) -> list[str]:
    """What is known of an order, a sentence each, the most important first."""
    day = date.fromisoformat(order["ordered_on"])
    item = order["product"].lower() + ("s" if int(order["quantity"]) > 1 else "")
    coupon = f" with the coupon {order['coupon']}" if order["coupon"] else ""
    alike = [one for one in _orders().values() if one["product"] == order["product"]]
    abroad = sorted({one["country"] for one in alike} - {order["country"]})
    return [
        f"Order {order['order_id']} is {order['quantity']} {item} for {order['total']} EUR.",
        f"It was placed from {order['country']} on {day.day} {day:%B %Y}.",
        f"One costs {order['unit_price']} EUR, which makes {order['total']} EUR{coupon}.",
        f"The {order['product'].lower()} was ordered {len(alike)} times this season, also from {', '.join(abroad)}.",
        f"If something is wrong with it, I can refund it: up to {LIMIT} EUR at once, and more when it is approved.",
    ]


_HELP = (
    "I look after the orders A-10417 to A-10536.",
    "Ask me about one, say “Tell me about A-10420”, or have it refunded: “Refund A-10420”, “Refund 30 of A-10420”.",
)


# Words and money


def _stream(ctx: Context, text: str) -> None:
    """Show a text to who watches, at the pace of somebody who types fast."""
    for word in re.findall(r"\s*\S+", text):
        ctx.delta(word)
        time.sleep(settings.MAILBOX_SUPPORT_WORD_SECONDS)


def _amount(text: str, total: Decimal) -> Decimal:
    """The amount the text asks for, at most what was paid; all of it if it names none."""
    named = _AMOUNT.search(_NUMBER.sub("", text))
    return min(_cents(named.group(1).replace(",", ".")), total) if named else total


def _cents(value: Any) -> Decimal:
    return Decimal(str(value)).quantize(Decimal("0.01"))


def _quoted(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MOST_QUOTED else words[: _MOST_QUOTED - 1] + "…"
