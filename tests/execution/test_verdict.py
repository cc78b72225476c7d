"""What an agent's exception means: by a team's own word, by its type, by its HTTP status, with the real classes."""

import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import httpx
import openai
import pydantic
import pytest
import requests

from mailbox_app import catalogue
from mailbox_app.errors import Cancelled, InvalidInput, Permanent, ReplayMismatch, TimedOut, Transient
from mailbox_app.execution import classify, verdict
from mailbox_app.execution.contract import outcome_of
from mailbox_app.execution.verdict import Judgement, Verdict, judge
from mailbox_app.outcomes import Failed, Retry
from tests.execution.conftest import Perform
from tests.operations import scene

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1")


def answered(status: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, request=REQUEST)


def of_httpx(status: int, **headers: str) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("refused", request=REQUEST, response=answered(status, **headers))


def of_requests(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("refused", response=response)


def of_openai(kind: type[openai.APIStatusError], status: int, **headers: str) -> openai.APIStatusError:
    return kind("refused", response=answered(status, **headers), body=None)


def of_pydantic() -> pydantic.ValidationError:
    class Answer(pydantic.BaseModel):
        cents: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Answer.model_validate({"cents": "many"})
    return caught.value


class Overquota(Exception):
    status_code = 403


class OddProperties(Exception):
    @property
    def status_code(self) -> int:
        raise ZeroDivisionError

    @property
    def response(self) -> Any:
        raise ZeroDivisionError


class HeadersOfTheirOwn(Exception):
    status_code = 429
    headers = object()


TRANSIENT: dict[str, tuple[BaseException, str]] = {
    "unknown": (KeyError("oops"), "KeyError"),
    "stdlib timeout": (TimeoutError(), "TimeoutError"),
    "asyncio timeout": (TimeoutError(), "TimeoutError"),
    "stdlib connection": (ConnectionRefusedError(), "ConnectionRefusedError"),
    "a loss on the way": (urllib.error.URLError("unreachable"), "URLError"),
    "our own": (Transient("later"), "transient"),
    "our time limit": (TimedOut("late"), "timed_out"),
    "a stop of its own": (Cancelled("I say so"), "cancelled"),
    "httpx timeout": (httpx.ReadTimeout("late"), "ReadTimeout"),
    "httpx pool": (httpx.PoolTimeout("late"), "PoolTimeout"),
    "httpx connection": (httpx.ConnectError("refused"), "ConnectError"),
    "httpx protocol": (httpx.RemoteProtocolError("cut off"), "RemoteProtocolError"),
    "requests timeout": (requests.exceptions.ReadTimeout(), "ReadTimeout"),
    "requests connection": (requests.exceptions.ConnectionError(), "ConnectionError"),
    "openai connection": (openai.APIConnectionError(request=REQUEST), "APIConnectionError"),
    "openai timeout": (openai.APITimeoutError(REQUEST), "APITimeoutError"),
    "openai stream": (openai.APIError("overloaded", REQUEST, body=None), "APIError"),
    **{f"httpx {status}": (of_httpx(status), f"http_{status}") for status in (408, 409, 425, 429, 500, 502, 503, 529)},
    "requests 503": (of_requests(503), "http_503"),
    "urllib 503": (urllib.error.HTTPError("http://127.0.0.1", 503, "busy", Message(), None), "http_503"),
    "openai 409": (of_openai(openai.ConflictError, 409), "http_409"),
    "openai 429": (of_openai(openai.RateLimitError, 429), "http_429"),
    "openai 500": (of_openai(openai.InternalServerError, 500), "http_500"),
    "a redirect": (of_httpx(302), "HTTPStatusError"),
    "odd properties": (OddProperties(), "OddProperties"),
    "odd headers": (HeadersOfTheirOwn(), "http_429"),
    "a group": (ExceptionGroup("both", [KeyError(1), httpx.ConnectError("refused")]), "KeyError"),
}
PERMANENT: dict[str, tuple[BaseException, str]] = {
    "our own": (Permanent("no"), "permanent"),
    "another path": (ReplayMismatch("other"), "replay_mismatch"),
    "refused input": (InvalidInput("kind", "blank", "kind must not be blank"), "invalid_input"),
    **{f"httpx {status}": (of_httpx(status), f"http_{status}") for status in (400, 401, 403, 404, 413, 422)},
    "requests 401": (of_requests(401), "http_401"),
    "urllib 404": (urllib.error.HTTPError("http://127.0.0.1", 404, "gone", Message(), None), "http_404"),
    "openai credentials": (of_openai(openai.AuthenticationError, 401), "http_401"),
    "openai model": (of_openai(openai.NotFoundError, 404), "http_404"),
    "openai request": (of_openai(openai.BadRequestError, 400), "http_400"),
    "openai without a key": (openai.OpenAIError("api_key must be set"), "OpenAIError"),
    "openai filter": (openai.ContentFilterFinishReasonError(), "ContentFilterFinishReasonError"),
    "httpx address": (httpx.UnsupportedProtocol("ftp"), "UnsupportedProtocol"),
    "requests address": (requests.exceptions.MissingSchema(), "MissingSchema"),
    "pydantic": (of_pydantic(), "ValidationError"),
    "a status of its own": (Overquota(), "http_403"),
    "a group": (ExceptionGroup("g", [KeyError(1), ExceptionGroup("h", [of_httpx(401)])]), "http_401"),
}


@pytest.mark.parametrize(("error", "code"), TRANSIENT.values(), ids=TRANSIENT.keys())
def test_a_transient_error_is_worth_another_attempt(error: BaseException, code: str) -> None:
    assert judge(error) == Judgement(verdict=Verdict.TRANSIENT, code=code)
    outcome = outcome_of(error)
    assert isinstance(outcome, Retry)
    assert (outcome.code, outcome.after) == (code, None)


@pytest.mark.parametrize(("error", "code"), PERMANENT.values(), ids=PERMANENT.keys())
def test_a_permanent_error_is_not(error: BaseException, code: str) -> None:
    assert judge(error) == Judgement(verdict=Verdict.PERMANENT, code=code)
    assert isinstance(outcome_of(error), Failed)


def in_the_future(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


AN_HOUR_OFF = datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry_after": "7"}, 7, 7),
        ({"retry_after": "0.5"}, 0.5, 0.5),
        ({"retry_after": "-3"}, 0, 0),
        ({"retry_after": "1e9"}, 604_800, 604_800),
        ({"retry_after": in_the_future(7200)}, 3600, 7200),
        ({"retry_after": in_the_future(-120)}, 0, 0),
        (
            {
                "date": format_datetime(AN_HOUR_OFF, usegmt=True),
                "retry_after": format_datetime(AN_HOUR_OFF + timedelta(seconds=30), usegmt=True),
            },
            30,
            30,
        ),
    ],
    ids=["seconds", "fraction", "negative", "endless", "date", "past date", "the server's clock"],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_s_retry_after_is_honoured(status: int, headers: dict[str, str], least: float, most: float) -> None:
    kind = openai.RateLimitError if status == 429 else openai.InternalServerError
    for error in (of_httpx(status, **headers), of_requests(status, **headers), of_openai(kind, status, **headers)):
        after = judge(error).after
        assert after is not None
        assert least <= after <= most


@pytest.mark.parametrize("text", ["", "soon", "nan", "Wed, 99 Foo 2026"])
def test_a_retry_after_nobody_can_read_leaves_the_backoff(text: str) -> None:
    assert judge(of_httpx(429, retry_after=text)).after is None


def test_of_several_errors_the_longest_wait_counts() -> None:
    group = ExceptionGroup("g", [of_httpx(429, retry_after="3"), of_httpx(503, retry_after="9"), KeyError(1)])
    assert judge(group) == Judgement(verdict=Verdict.TRANSIENT, code="http_503", after=9.0)


class Ours(Exception):
    pass


class OursBelow(Ours):
    pass


@pytest.fixture
def _own_words() -> Iterator[None]:
    before = dict(verdict._of_the_team)
    yield
    verdict._of_the_team.clear()
    verdict._of_the_team.update(before)


def agent(**words: Any) -> catalogue.AgentSpec:
    return catalogue.AgentSpec(name="probe", function=lambda ctx: None, **words)


@pytest.mark.usefixtures("_own_words")
def test_the_nearest_type_somebody_classified_decides_and_the_agent_before_the_process() -> None:
    assert judge(OursBelow()).verdict == "transient"
    classify(Ours, "permanent")
    assert judge(OursBelow()).verdict == "permanent"
    assert judge(OursBelow(), agent(transient=(Ours,))).verdict == "transient"
    classify(OursBelow, Verdict.TRANSIENT)
    assert [judge(Ours()).verdict, judge(OursBelow()).verdict] == ["permanent", "transient"]
    assert judge(OursBelow(), agent(permanent=(Exception,))).verdict == "transient"
    classify(OSError, "permanent")
    assert judge(FileNotFoundError()).verdict == "permanent"
    assert judge(ConnectionResetError()).verdict == "transient", "nearer than OSError"
    assert judge(Permanent("no"), agent(transient=(Exception,))).verdict == "permanent"


@pytest.mark.usefixtures("_own_words")
def test_a_team_s_word_goes_before_the_status_and_keeps_its_code_and_wait() -> None:
    classify(openai.NotFoundError, "transient")
    error = of_openai(openai.NotFoundError, 404, retry_after="2")
    assert judge(error) == Judgement(verdict=Verdict.TRANSIENT, code="http_404", after=2.0)
    assert judge(of_httpx(503), agent(permanent=(httpx.HTTPStatusError,))).verdict == "permanent"


@pytest.mark.parametrize(("kind", "word"), [(Ours, "maybe"), (Ours(), "transient"), (int, "transient")], ids=repr)
def test_what_is_no_exception_type_or_no_verdict_is_refused(kind: Any, word: str) -> None:
    before = dict(verdict._of_the_team)
    with pytest.raises(ValueError, match=r"exception type|is not a valid Verdict"):
        classify(kind, word)
    assert verdict._of_the_team == before


def test_how_an_activation_ends_by_itself_cannot_be_classified() -> None:
    with pytest.raises(ValueError, match="ends an activation by itself"):
        classify(Cancelled, "permanent")


@pytest.mark.django_db
def test_an_agent_s_own_words_decide_over_its_dispatch(perform: Perform) -> None:
    def fails(ctx: Any) -> None:
        raise OursBelow("Bearer sk-live-4711")

    buried = perform(fails, permanent=[Ours])
    assert scene.dispatch(buried).status == "dead_letter"
    assert scene.run(buried).error == {"code": "OursBelow", "message": "the agent raised OursBelow"}
    again = perform(fails, transient=[OursBelow], permanent=[Ours])
    assert (scene.dispatch(again).status, scene.dispatch(again).attempt_count) == ("queued", 1)


@pytest.mark.django_db
def test_a_provider_s_wait_replaces_the_backoff(perform: Perform) -> None:
    def limited(ctx: Any) -> None:
        raise of_openai(openai.RateLimitError, 429, retry_after="90")

    before = scene.database_now()
    claim = perform(limited)
    delay = (scene.dispatch(claim).available_at - before).total_seconds()
    assert 90 <= delay < 100
    assert scene.dispatch(claim).last_error.startswith("http_429: RateLimitError")
