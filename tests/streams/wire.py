"""A stream's client without input and output of its own: bytes of an answer in, whole events out, as EventSource does.

Who uses it decides when to read, how much, and where to stop: in the middle of an event too, which then was not heard.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h11

STREAM = "text/event-stream"


@dataclass(frozen=True)
class Told:
    """One whole event; the stream's own have no cursor."""

    name: str
    raw: str
    cursor: int | None

    @cached_property
    def data(self) -> Any:
        return json.loads(self.raw)


class Answer:
    """The answer to one request, as far as its bytes have come."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._rest = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_over = False

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: Any = None, accept: str = STREAM
    ) -> bytes:
        """The bytes that ask for it."""
        raw = b"" if body is None else json.dumps(body).encode()
        more = {"Host": "127.0.0.1", "Accept": accept, "Content-Length": str(len(raw)), **headers}
        if raw:
            more["Content-Type"] = "application/json"
        request = h11.Request(method=method, target=path, headers=list(more.items()))
        return b"".join(
            self._http.send(part) or b""
            for part in (request, *([h11.Data(data=raw)] if raw else []), h11.EndOfMessage())
        )

    def take(self, received: bytes) -> list[Told]:
        """The events that these bytes made whole; b"" says that the connection is closed."""
        whole: list[Told] = []
        try:
            self._http.receive_data(received)
            while True:
                found = self._http.next_event()
                if isinstance(found, h11.Response):
                    self.status = found.status_code
                    self.headers = {name.decode(): value.decode() for name, value in found.headers}
                elif isinstance(found, h11.Data):
                    whole += self._told(bytes(found.data))
                elif found is h11.NEED_DATA:
                    return whole
                else:
                    self.is_over = True
                    return whole
        except h11.RemoteProtocolError:  # closed in the middle
            self.is_over = True
            return whole

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith(STREAM)

    @property
    def problem(self) -> Any:
        """The details of a refusal, once all of it is here."""
        return json.loads(self.body)

    def _told(self, data: bytes) -> list[Told]:
        if not self.is_stream:
            self.body += data
            return []
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [told for told in map(_parsed, blocks) if told is not None]


def _parsed(block: bytes) -> Told | None:
    name, raw, cursor = "message", [], None
    for line in block.decode().split("\n"):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            raw.append(value)
        elif key == "id":
            cursor = int(value)
    return Told(name, "\n".join(raw), cursor) if raw else None
