"""Together: one call for those who call at the same time; an error is theirs who were in it."""

import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailbox_app.execution import together as module
from mailbox_app.execution.together import Together


class Held:
    """Squares numbers, once it is let go; remembers what it was given at once."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered, self.let_go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        self.entered.release()
        assert self.let_go.acquire(timeout=30)
        if 13 in numbers:
            raise ValueError("unlucky")
        return [number * number for number in numbers]


def wait_for(together: Together[int, int], count: int) -> None:
    turns = threading.Event()
    for _ in range(3_000):
        if len(together._waiting) >= count:
            return
        turns.wait(0.01)
    raise AssertionError(f"{len(together._waiting)} of {count} came")


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(16)


def test_who_comes_alone_goes_alone() -> None:
    held = Held()
    held.let_go.release(2)
    together = Together(held, most=8)
    assert (together(2), together(3)) == (4, 9)
    assert held.calls == [[2], [3]]


def test_what_comes_meanwhile_goes_together_and_each_gets_its_own(pool: ThreadPoolExecutor) -> None:
    held = Held()
    together = Together(held, most=8)
    first = pool.submit(together, 1)
    assert held.entered.acquire(timeout=30)
    others = {number: pool.submit(together, number) for number in range(2, 7)}
    wait_for(together, 5)
    held.let_go.release(2)
    assert first.result(timeout=30) == 1
    assert {number: other.result(timeout=30) for number, other in others.items()} == {n: n * n for n in range(2, 7)}
    assert [sorted(call) for call in held.calls] == [[1], [2, 3, 4, 5, 6]]


def test_never_more_at_once_than_allowed(pool: ThreadPoolExecutor) -> None:
    held = Held()
    together = Together(held, most=3)
    futures = [pool.submit(together, 0)]
    assert held.entered.acquire(timeout=30)
    futures += [pool.submit(together, number) for number in range(1, 8)]
    wait_for(together, 7)
    held.let_go.release(8)
    assert sorted(future.result(timeout=30) for future in futures) == [n * n for n in range(8)]
    assert [len(call) for call in held.calls] == [1, 3, 3, 1]


def test_an_error_is_of_those_who_were_in_the_call(pool: ThreadPoolExecutor) -> None:
    held = Held()
    together = Together(held, most=8)
    first = pool.submit(together, 1)
    assert held.entered.acquire(timeout=30)
    unlucky = [pool.submit(together, number) for number in (13, 2)]
    wait_for(together, 2)
    held.let_go.release(3)
    assert first.result(timeout=30) == 1
    for one in unlucky:
        with pytest.raises(ValueError, match="unlucky"):
            one.result(timeout=30)
    assert together(4) == 16


def test_it_is_called_in_nobody_s_context() -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody's")
    mine.set("mine")
    together: Together[int, str] = Together(lambda numbers: [mine.get() for _ in numbers], most=8)
    assert together(1) == "nobody's"


def test_without_a_thread_each_caller_is_told_and_the_next_one_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    together: Together[int, int] = Together(lambda numbers: [number + 1 for number in numbers], most=8)

    def refuse(function: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(module._thread, "submit", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start"):
                together(1)
    assert together(1) == 2
