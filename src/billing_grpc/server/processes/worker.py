"""One of several processes that answer on the same ports; started by its parent and never by hand."""

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
from shutil import rmtree
from typing import Final

from billing_grpc.errors import StartupError
from billing_grpc.server.compose import serve
from billing_grpc.server.processes.stop_signals import StopSignals
from billing_grpc.server.processes.supervisor import LENGTH, READY, Orders
from billing_grpc.server.telemetry import logs
from billing_grpc.standing_reader import write_within

_STDIN: Final = 0
_STDERR: Final = 2
_EXIT_FAILED: Final = 1
_ORPHAN_MARGIN: Final = 5.0
"""Seconds beyond its grace after which an orphan that still runs ends whatever it does."""


def main() -> None:
    """Serves as told on standard input, until told to stop or until the parent has gone."""
    orders = _orders()
    logs.configure(orders.settings.log_format, orders.settings.log_level)
    signals = StopSignals(impatient=False)
    orphaned = threading.Event()
    threading.Thread(target=_end_with_the_parent, args=(orders.settings.grace, orphaned), daemon=True).start()
    try:
        asyncio.run(serve(orders.settings, orders.database_url, signals, _say_ready, shared=orders.addresses))
    except StartupError as error:
        logs.flush()
        write_within(_STDERR, f"billing-grpc: {error}\n".encode("utf-8", "backslashreplace"))
        sys.exit(_EXIT_FAILED)
    finally:
        if orphaned.is_set():
            rmtree(orders.counted, ignore_errors=True)


def _orders() -> Orders:
    (length,) = LENGTH.unpack(_read(LENGTH.size))
    orders: Orders = pickle.loads(_read(length))  # noqa: S301 - from our parent, through a pipe that nobody else has
    return orders


def _read(size: int) -> bytes:
    # Unbuffered: the thread that waits for the pipe's end must not hold a lock when the interpreter ends.
    held = b""
    while len(held) < size:
        piece = os.read(_STDIN, size - len(held))
        if not piece:
            sys.exit(_EXIT_FAILED)
        held += piece
    return held


def _say_ready(_: object) -> None:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def _end_with_the_parent(grace: float, orphaned: threading.Event) -> None:
    """The pipe ends when the parent does, however it ended: without it nobody would stop this process any more."""
    os.read(_STDIN, 1)
    orphaned.set()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace + _ORPHAN_MARGIN)
    os._exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()
