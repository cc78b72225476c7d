"""HTTP as the demo and the tests speak it: the standard library, and an answer whatever its status."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What came back, an error status included."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def request(
    method: str,
    url: str,
    *,
    token: str = "",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 10,
) -> Answer:
    """Send one HTTP request and return the answer, whatever its status; OSError when there is none."""
    sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    data = None
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    try:
        asked = urllib.request.Request(url, method=method, data=data, headers=sent)
        with urllib.request.urlopen(asked, timeout=seconds) as response:
            return Answer(response.status, dict(response.headers), response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read().decode())
