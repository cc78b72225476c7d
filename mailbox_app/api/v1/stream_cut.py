"""Close the connections of clients that do not read, under the server that holds them.

ASGI has no word for it. A server whose application has ended goes on trying to send what its client does not take, and
keeps the socket until the peer is gone: for ever, if that is there and silent. So the connection is looked for among
the process's own, by the addresses of both its ends, and closed there: the server sees a client that has left.

Behind a proxy which the server trusts with the client's address it is not found. Then it is the proxy's own limit that
ends it, as that of nginx does (`send_timeout`).
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Whatever has not been sent is thrown away, and the peer is told so if it is there.
_AT_ONCE = struct.pack("ii", 1, 0)

# The two ends of a connection: (client, server), each with host and port.
Ends = tuple[tuple[str, int], tuple[str, int]]


def ends_of(scope: Mapping[str, Any]) -> Ends | None:
    """The ends of the connection a request came by, as its server names them; None if that names none."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or not client[1] or not server[1]:
        return None
    return (client[0], client[1]), (server[0], server[1])


def close(wanted: Collection[Ends]) -> set[Ends]:
    """Close those of these connections that this process has; returns them."""
    closed: set[Ends] = set()
    for one, ends in _connections() if wanted else ():
        if ends in wanted:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            with contextlib.suppress(OSError):  # it has just gone by itself
                one.shutdown(socket.SHUT_RDWR)
            closed.add(ends)
    return closed


def _connections() -> Iterator[tuple[socket.socket, Ends]]:
    """Each connection of the process over TCP, by a descriptor of its own: the server may close its one meanwhile."""
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                own, peer = one.getsockname(), one.getpeername()
                if isinstance(own, tuple) and isinstance(peer, tuple):
                    yield one, ((peer[0], peer[1]), (own[0], own[1]))
