"""An OpenAI-compatible endpoint as a process of its own, which behaves as the model asked for says.

Standard library only: `chat_server.py LOG` listens on a free loopback port, prints it, and appends each request to LOG
as a line of JSON. The models: `talk` answers; the others are named after their misbehaviour.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-right"
# A date header that is hours off: an endpoint's clock need not be ours.
ITS_CLOCK = 7_200


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, streamed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(sys.argv[1]).open("a") as log:
            log.write(json.dumps(body) + "\n")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._refuse(401, "invalid_api_key", f"Incorrect API key provided: {self.headers.get('Authorization')}")
            return
        getattr(self, f"_{body['model'].replace('-', '_')}", self._no_such_model)(body)

    # What the models do

    def _talk(self, body: dict[str, Any]) -> None:
        self._stream(self._words(body))

    def _slowly(self, body: dict[str, Any]) -> None:
        self._stream(self._words(body), pause=0.1)

    def _limit_seconds(self, body: dict[str, Any]) -> None:
        self._refuse(429, "rate_limit_exceeded", "slow down", {"Retry-After": "17"})

    def _limit_date(self, body: dict[str, Any]) -> None:
        at = formatdate(time.time() + ITS_CLOCK + 90, usegmt=True)
        self._refuse(429, "rate_limit_exceeded", "slow down", {"Retry-After": at})

    def _limit_silent(self, body: dict[str, Any]) -> None:
        self._refuse(429, "rate_limit_exceeded", "slow down")

    def _limit_babble(self, body: dict[str, Any]) -> None:
        self._refuse(429, "rate_limit_exceeded", "slow down", {"Retry-After": "soon"})

    def _no_money(self, body: dict[str, Any]) -> None:
        self._refuse(429, "insufficient_quota", "check your billing")

    def _broken(self, body: dict[str, Any]) -> None:
        self._refuse(500, "server_error", "secret stack trace")

    def _overloaded(self, body: dict[str, Any]) -> None:
        self._refuse(503, "overloaded", "later", {"Retry-After": "5"})

    def _forbidden(self, body: dict[str, Any]) -> None:
        self._refuse(403, "unsupported_country", "not here")

    def _too_long(self, body: dict[str, Any]) -> None:
        self._refuse(400, "context_length_exceeded", f"too long: {body['messages']}")

    def _teapot(self, body: dict[str, Any]) -> None:
        self._refuse(418, "teapot", "short and stout")

    def _hang(self, body: dict[str, Any]) -> None:
        time.sleep(30)

    def _hang_midway(self, body: dict[str, Any]) -> None:
        self._begin()
        self._send(self._chunk("Well, "))
        time.sleep(30)

    def _drop(self, body: dict[str, Any]) -> None:
        """Close the connection in mid-answer, in the middle of the transfer encoding."""
        self._begin()
        self._send(self._chunk("Well, "))
        self.close_connection = True

    def _end_early(self, body: dict[str, Any]) -> None:
        """End the transfer in order, but before the answer is over."""
        self._begin()
        self._send(self._chunk("Well, "))
        self._finish()

    def _fail_midway(self, body: dict[str, Any]) -> None:
        self._begin()
        self._send(self._chunk("Well, "))
        self._send({"error": {"message": "secret engine trouble", "code": "engine"}})
        self._finish()

    def _garble(self, body: dict[str, Any]) -> None:
        self._begin()
        self._write(b"data: {not json\n\n")
        self._finish()

    def _silent(self, body: dict[str, Any]) -> None:
        self._stream([])

    def _no_such_model(self, body: dict[str, Any]) -> None:
        self._refuse(404, "model_not_found", f"The model {body['model']} does not exist")

    # The protocol

    @staticmethod
    def _words(body: dict[str, Any]) -> list[str]:
        last = body["messages"][-1]["content"]
        return [f"{word} " for word in f"You said {last}".split()]

    def _stream(self, words: list[str], pause: float = 0.0) -> None:
        self._begin()
        for word in words:
            self._send(self._chunk(word))
            time.sleep(pause)
        self._send(self._chunk(None, ending="stop"))
        usage = {"prompt_tokens": 11, "completion_tokens": len(words), "total_tokens": 11 + len(words)}
        self._send({**self._chunk(None), "choices": [], "usage": usage})
        self._write(b"data: [DONE]\n\n")
        self._finish()

    @staticmethod
    def _chunk(text: str | None, ending: str | None = None) -> dict[str, Any]:
        delta = {} if text is None else {"role": "assistant", "content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": ending}
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send(self, event: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _finish(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        data = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header."""
        return formatdate(time.time() + ITS_CLOCK, usegmt=True)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Endpoint:
    """A running endpoint, as its tests see it."""

    url: str
    log: Path

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests it has had."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@contextmanager
def running(log: Path) -> Iterator[Endpoint]:
    """Run it while the block lasts."""
    process = subprocess.Popen([sys.executable, __file__, str(log)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield Endpoint(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
