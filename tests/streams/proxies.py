"""What stands between a client and the server: nginx as docs/streaming.md sets it up, and a proxy that holds back."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbox_app.devtools.files import open_private, read
from mailbox_app.devtools.processes import end, free_port, spawn, wait_until
from tests.streams.recipes import recipe
from tests.streams.served import PATIENCE_SECONDS

# Buffering is on, as it is unless somebody turns it off; so is compression, of streams and however short they are.
_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
error_log stderr warn;
pid {folder}/pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_types text/event-stream;
    gzip_min_length 0;
    gzip_proxied any;
    {more}
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


class Nginx:
    """Debian's nginx in front of a server, with the location that docs/streaming.md gives."""

    def __init__(
        self, folder: Path, upstream: str, *, read_timeout: str = "60s", http: str = "1.1", more: str = ""
    ) -> None:
        self.port, self._folder = free_port(), folder
        location = _replaced(recipe("nginx"), "http://127.0.0.1:8000", upstream)
        location = _replaced(location, "proxy_http_version 1.1;", f"proxy_http_version {http};")
        self._file, self._log = folder / "nginx.conf", folder / "log"
        self._file.write_text(
            _CONFIGURATION.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=folder,
                more=more,
                port=self.port,
                location=_replaced(location, "60s", read_timeout),
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it listens when this returns."""
        with open_private(self._log) as output:
            self._process = spawn(self._command(), env=dict(os.environ), output=output)
        assert wait_until(lambda: _listens(self.port), PATIENCE_SECONDS), self.complaints

    def reload(self) -> None:
        """Have other workers read the configuration; those before serve what they have begun."""
        before = self.workers()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: self.workers() - before, PATIENCE_SECONDS), self.complaints

    def workers(self) -> set[int]:
        """The pids of its workers, those that are on their way out too."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def stop(self) -> None:
        """Kill it, with all it serves."""
        if self._process is not None:
            end(self._process)
            self._process = None

    @property
    def complaints(self) -> str:
        return read(self._log)

    def _command(self) -> list[str]:
        return [_program(), "-p", str(self._folder), "-c", str(self._file), "-e", "stderr"]


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, **given: str) -> Iterator[Nginx]:
    """nginx while the block runs; skips where there is none, unless MAILBOX_NGINX=required, as in .ci/run."""
    if not _program():
        if os.environ.get("MAILBOX_NGINX") == "required":
            pytest.fail("nginx is missing: apt-get install nginx")
        pytest.skip("nginx is not installed")
    folder.mkdir()
    proxy = Nginx(folder, upstream, **given)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


class Withholding:
    """A proxy that minds no header: answers go on in pieces of so many bytes, the rest when the server has closed.

    A piece may end in mid-event. `most_bytes` None: all at the end. It speaks HTTP/1.0 to the server, as proxies do, so
    that a stream's end is seen.
    """

    def __init__(self, upstream_port: int, *, most_bytes: int | None) -> None:
        self._upstream_port, self._most_bytes = upstream_port, most_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._cut: set[socket.socket] = set()
        # How many bytes it holds back, over all its connections; how many times it sent some on.
        self.held_bytes = self.bursts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def cut(self) -> None:
        """Drop every connection with what is held back of it."""
        self._cut |= self._open
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop all, and take no more."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._upstream_port)) as server,
        ):
            pair = {client, server}
            self._open |= pair
            try:
                server.sendall(_asked(client))
                self._pass_on(server, client)
            finally:
                self._open -= pair
                self._cut -= pair

    def _pass_on(self, server: socket.socket, client: socket.socket) -> None:
        held = b""
        try:
            while piece := server.recv(65_536):
                held += piece
                self.held_bytes += len(piece)
                if self._most_bytes is not None and len(held) >= self._most_bytes:
                    full = len(held) - len(held) % self._most_bytes
                    ready, held = held[:full], held[full:]
                    self.held_bytes -= full
                    self.bursts += 1
                    client.sendall(ready)
            if server not in self._cut:
                self.bursts += 1
                client.sendall(held)
        finally:
            self.held_bytes -= len(held)


@contextlib.contextmanager
def withholding(upstream: str, *, most_bytes: int | None) -> Iterator[Withholding]:
    """A proxy that holds answers back, while the block runs."""
    proxy = Withholding(int(upstream.rpartition(":")[2]), most_bytes=most_bytes)
    try:
        yield proxy
    finally:
        proxy.close()


def _asked(client: socket.socket) -> bytes:
    """One request of the client, with its body, as HTTP/1.0."""
    request = b""
    while b"\r\n\r\n" not in request:
        piece = client.recv(65_536)
        if not piece:
            raise OSError("the client has left")
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += client.recv(65_536)
    return head.replace(b" HTTP/1.1", b" HTTP/1.0", 1) + b"\r\n\r\n" + body


def _program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"docs/streaming.md does not say {old}"
    return text.replace(old, new)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
