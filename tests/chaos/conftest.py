"""A stack of its own for each module, with short leases, and the workloads that say what they do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess
from tests.chaos.live import SETTINGS, Live


def _stack(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> StackProcess:
    """A stack whose worker knows the workloads."""
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    return StackProcess(*arguments, settings=SETTINGS)


@pytest.fixture(scope="module")
def module_monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A prefork stack shared by the module's tests; each leaves it in working order."""
    folder = tmp_path_factory.mktemp("live")
    with _stack(monkeypatch=module_monkeypatch) as stack:
        yield Live(stack, folder)


@pytest.fixture
def own_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Live]]:
    """Make a stack for one test alone."""
    made: list[StackProcess] = []

    def make(*arguments: str) -> Live:
        stack = _stack(*arguments, monkeypatch=monkeypatch)
        made.append(stack)
        stack.start()
        return Live(stack, tmp_path)

    yield make
    for stack in made:
        stack.close()
