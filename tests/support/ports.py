"""Ports for servers that a test starts again in the same place."""

import itertools
import os
import socket
from typing import Final

_EACH: Final = 1000
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
# Below the ports that the system gives to whoever asks for any (Linux: from 32768), so that no other test is given one
# while its server is away; where others run the tests too, they begin elsewhere.
_PORTS: Final = itertools.islice(
    itertools.cycle(range(20_000 + _WORKER * _EACH, 20_000 + (_WORKER + 1) * _EACH)), os.getpid() % _EACH, None
)


def free_port() -> int:
    """Return a port of loopback that no test of this run is given again soon."""
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
