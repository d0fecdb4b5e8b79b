"""Run a gateway as a process beside a server, for as long as the server runs."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from billing_grpc.addresses import Address, UnixAddress
from billing_grpc.cli import exit_codes

_PATIENCE: Final = 7.0
"""Seconds for the gateway to end the requests that it answers."""

Started = Callable[[Sequence[Address]], None]


@contextmanager
def gateway_beside(listen: str | None, *, local_admin: bool) -> Iterator[Started]:
    """Start a gateway, yield what tells it the server's addresses, and end it with the context.

    It gets the address through a pipe, and the end of the pipe tells it that the server is gone, however that ended.

    Args:
        listen: where the gateway listens, `host:port`; `None` for no gateway.
        local_admin: whether its page may act as the principal `local`.
    """
    if listen is None:
        yield lambda _: None
        return
    # -P: a file that somebody left in the current folder must not be taken for a module of this program.
    command = [sys.executable, "-P", "-m", "billing_grpc", "gateway", "--beside", "--listen", listen]
    process = subprocess.Popen([*command, *(["--local-admin"] if local_admin else [])], stdin=subprocess.PIPE)  # noqa: S603 - our own program
    try:
        yield lambda bound: _tell(process, bound)
    finally:
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()


def _tell(process: "subprocess.Popen[bytes]", bound: Sequence[Address]) -> None:
    address = next((each for each in bound if isinstance(each, UnixAddress) or each.security == "plain"), None)
    if address is None:
        exit_codes.print_error("--page: there is no page, because no address of the server is plain or a Unix socket")
        return
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.write(f"{address}\n".encode())
            process.stdin.flush()
