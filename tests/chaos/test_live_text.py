"""Live text through Redis that dies, hangs and comes back, again and again: it is heard again each time."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from tests.chaos import storms
from tests.chaos.audience import Viewer, till
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.test_streaming import killed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "tests.chaos.streamers")
    given = ("--pool", "threads", "--concurrency", "8", "--without", "flower")
    with StackProcess(*given, settings=SETTINGS) as stack:
        yield Live(stack, tmp_path_factory.mktemp("streams"))


def test_live_text_is_heard_again_whenever_redis_is_back(live: Live) -> None:
    blows: list[Callable[[], Any]] = [
        lambda: killed(live, "redis"),
        lambda: storms.pause_redis(live, 3.0),
        lambda: storms.pause_redis(live, 1.0),
        lambda: killed(live, "redis"),
        lambda: killed(live, "redis"),
    ]

    async def heard() -> None:
        body = {"agent": "streamer", "messages": [{"content": "go"}], "options": {"count": 900, "rate": 10}}
        answer = await asyncio.to_thread(live.stack.request, "POST", "/v1/runs", body=body)
        is_over = False
        viewers = [Viewer(live, thread_id=answer.json["thread_id"]), Viewer(live, run_id=answer.json["run_id"])]
        watching = [asyncio.create_task(one.watch(lambda: not is_over, lambda _: None)) for one in viewers]
        try:
            for number, blow in enumerate([lambda: None, *blows]):
                await asyncio.to_thread(blow)
                before = [one.counts["deltas"] for one in viewers]

                def more(before: list[int] = before) -> bool:
                    return all(one.counts["deltas"] > had + 2 for one, had in zip(viewers, before, strict=True))

                assert await till(more, SLACK_SECONDS), f"not after blow {number}; {[one.counts for one in viewers]}"
        finally:
            is_over = True
            await asyncio.gather(*watching)
        assert [one.faults for one in viewers] == [[], []]
        await asyncio.to_thread(live.stack.request, "POST", f"/v1/runs/{answer.json['run_id']}/cancel", body={})

    asyncio.run(heard())
