"""An example agent that talks: `chat` answers through any OpenAI-compatible endpoint, and leaves retries to the queue.

What a replay pays. One call of the model is one journalled step, and its text streams live from inside that step. So a
worker that dies after the answer was recorded costs nothing: the next one finds the answer in the journal and asks
nobody. One that dies in mid-answer costs that answer: it is asked for anew, and streams anew, as the next attempt's.
Between the model's last word and the commit of the record lie milliseconds in which a crash pays twice; no client can
close that gap while the endpoint has no idempotency. Live text of a journalled answer is not sent again: who comes late
reads the message.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from django.conf import settings

from mailbox_app.errors import Permanent, Transient
from mailbox_app.execution import Context, agent
from mailbox_app.execution.contract import IncomingMessage

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionMessageParam

# Messages of the thread that the model is told, the newest ones.
_MOST_HISTORY = 50
# How often the run is asked whether it was cancelled, or steered, while the model speaks: each look is a transaction.
_LOOK_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
# Tool messages belong to calls that this agent does not make.
_ROLES = ("system", "user", "assistant")

_REFUSALS = {
    400: ("bad_request", "refused the request"),
    401: ("bad_credentials", "does not know the API key (MAILBOX_CHAT_API_KEY)"),
    403: ("forbidden", "does not allow this to the API key"),
    404: ("unknown_model", "knows no such model, or no such path (MAILBOX_CHAT_MODEL, MAILBOX_CHAT_BASE_URL)"),
    413: ("bad_request", "found the conversation too long"),
    422: ("bad_request", "refused the request"),
}


class Refusal(Permanent):
    """The endpoint will refuse this again; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Trouble(Transient):
    """The endpoint may do better later; `code` says what was wrong."""

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code


@agent("chat", max_attempts=6, timeout_seconds=600)
def chat(ctx: Context) -> str:
    """Answer the thread's last messages; one that is steered here in mid-answer is answered next."""
    said = [*ctx.history(limit=_MOST_HISTORY), *ctx.messages]
    conversation = [_told(message.role, message.text) for message in said if message.role in _ROLES]
    arrived: list[IncomingMessage] = []
    while True:
        spoken = ctx.step("complete", partial(_complete, ctx, conversation, arrived))
        ctx.usage(input_tokens=spoken["input_tokens"], output_tokens=spoken["output_tokens"])
        # After a replay the messages that came meanwhile arrive together; the record says which of them were heard.
        arrived += ctx.checkpoint()
        unheard = [message for message in arrived if str(message.id) not in spoken["heard"]]
        if not unheard:
            return str(spoken["text"])
        ctx.say(spoken["text"])
        conversation += [_told(one.role, one.text) for one in arrived if one not in unheard]
        conversation.append(_told("assistant", spoken["text"]))
        arrived = unheard


def _complete(
    ctx: Context, conversation: "list[ChatCompletionMessageParam]", arrived: list[IncomingMessage]
) -> dict[str, Any]:
    """One call of the model, streamed: {"text", "heard", "input_tokens", "output_tokens"}.

    `arrived` are answered too, and `heard` names them; what comes in meanwhile is added to them, and is not.
    """
    heard = list(arrived)
    pieces: list[str] = []
    ending, usage, looked_at = None, None, time.monotonic()
    messages = [*conversation, *(_told(message.role, message.text) for message in heard)]
    with (
        _client() as client,
        _explained(client),
        client.chat.completions.create(
            model=settings.MAILBOX_CHAT_MODEL,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices[:1]:
                ending = choice.finish_reason or ending
                piece = choice.delta.content or ""
                pieces.append(piece)
                ctx.delta(piece)
            if time.monotonic() - looked_at >= _LOOK_SECONDS:
                arrived += ctx.checkpoint()
                looked_at = time.monotonic()
    text = "".join(pieces)
    if ending is None:
        raise Trouble("stream_dropped", f"the answer broke off after {len(text)} characters")
    if not text.strip():
        raise Refusal("empty_answer", f"the model said nothing (finish_reason {ending})")
    return {
        "text": text,
        "heard": [str(message.id) for message in heard],
        "input_tokens": usage.prompt_tokens if usage else 0,
        "output_tokens": usage.completion_tokens if usage else 0,
    }


def _told(role: str, text: str) -> Any:
    return {"role": role, "content": text}


def _client() -> "openai.OpenAI":
    """A client of the configured endpoint that neither retries nor waits for ever."""
    missing = [name for name in ("MAILBOX_CHAT_BASE_URL", "MAILBOX_CHAT_MODEL") if not getattr(settings, name, "")]
    if missing:
        raise Refusal("chat_not_configured", f"no endpoint to talk to: {' and '.join(missing)} not set")
    try:
        import openai
    except ImportError as error:
        message = "the package openai is missing: pip install 'django-mailbox-queue[chat]'"
        raise Refusal("chat_not_installed", message) from error
    silence = float(settings.MAILBOX_CHAT_TIMEOUT_SECONDS)
    return openai.OpenAI(
        base_url=settings.MAILBOX_CHAT_BASE_URL,
        # Servers of one's own want no key, the client does.
        api_key=settings.MAILBOX_CHAT_API_KEY or "none",
        timeout=openai.Timeout(silence, connect=min(_CONNECT_SECONDS, silence)),
        max_retries=0,
    )


@contextmanager
def _explained(client: "openai.OpenAI") -> Iterator[None]:
    """Raise what the endpoint did as what the queue should do about it.

    The message is read by whoever may see the run: it holds a status and a code of the provider, never its text, which
    may quote a key or a prompt.
    """
    import httpx
    import openai

    where = f"{client.base_url.host}:{client.base_url.port or client.base_url.scheme}"
    try:
        yield
    except (openai.APITimeoutError, httpx.TimeoutException) as error:
        raise Trouble("model_timeout", f"{where} was silent for {settings.MAILBOX_CHAT_TIMEOUT_SECONDS:g} s") from error
    except openai.APIConnectionError as error:
        raise Trouble("model_unreachable", f"{where} could not be reached") from error
    except httpx.TransportError as error:
        raise Trouble("stream_dropped", f"{where} closed the connection in mid-answer") from error
    except openai.APIStatusError as error:
        raise _judged(where, error) from error
    except (openai.APIError, ValueError) as error:  # an error, or what is no JSON, in the stream
        raise Trouble("model_error", f"{where} reported an error in mid-answer") from error


def _judged(where: str, error: "openai.APIStatusError") -> Refusal | Trouble:
    status, told = error.status_code, f" ({error.code})" if error.code else ""
    if status == 429 and error.code == "insufficient_quota":
        return Refusal("quota_exhausted", f"{where} answered 429{told}: nothing is left to pay with")
    if status == 429:
        after = _retry_after(error.response.headers)
        return Trouble("rate_limited", f"{where} answered 429{told}", retry_after=after)
    if status in _REFUSALS:
        code, what = _REFUSALS[status]
        return Refusal(code, f"{where} answered {status}{told}: it {what}")
    if status >= 500 or status in (408, 409):
        after = _retry_after(error.response.headers)
        return Trouble("model_error", f"{where} answered {status}{told}", retry_after=after)
    return Refusal("bad_request", f"{where} answered {status}{told}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the endpoint wants to be asked again, which it says as a number or a date; None if it does not."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        # Its own clock against its own clock: ours may be wrong.
        now = headers.get("date")
        told_at = parsedate_to_datetime(now).timestamp() if now else time.time()
        return max(0.0, parsedate_to_datetime(text).timestamp() - told_at)
    except ValueError:
        return None
