"""Pytest plugin: run the tests on servers of their own, unless DATABASE_URL names one.

Loaded by `-p` in the project's options, so that the variables are set before pytest-django reads the settings.
"""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from mailbox_app.devtools.account import Account, working_folder
from mailbox_app.devtools.servers import Redis, Servers, destroy, temporary_servers

_running = pytest.StashKey[Servers]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    asked = early_config.known_args_namespace
    if "DATABASE_URL" not in os.environ and not (asked.help or asked.version):
        stack = contextlib.ExitStack()
        early_config.add_cleanup(stack.close)
        servers = stack.enter_context(temporary_servers())
        early_config.stash[_running] = servers
        (servers.state_dir / "static").mkdir()  # WhiteNoise warns about a folder that is not there
        # A running development stack must not be found: every variable that settings read from it is set.
        own = {"DJANGO_SECRET_KEY": secrets.token_urlsafe(32), "MAILBOX_STATE_DIR": str(servers.state_dir)}
        for name, value in {**servers.environment, **own}.items():
            before = os.environ.get(name)
            os.environ[name] = value
            stack.callback(_put_back, name, before)
    return (yield)


def _put_back(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Servers:
    """The servers of this test session; skips where the tests run on servers of the caller."""
    if _running not in pytestconfig.stash:
        pytest.skip("the tests run on external servers")
    return pytestconfig.stash[_running]


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis of the test's own, to be stopped and started at will."""
    with tempfile.TemporaryDirectory(prefix="mailbox-redis-") as name:
        state_dir = Path(name)
        folder = working_folder(state_dir / "servers", Account.for_servers())
        try:
            with Redis(folder, password=secrets.token_urlsafe(24), durable=False) as redis:
                yield redis
        finally:
            destroy(state_dir)
