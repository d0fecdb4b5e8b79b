"""A worker: one of several processes that answer on the same ports. Its parent starts it; it is not for use by hand."""

import os
import pickle
import signal
import sys
import threading
import time
from shutil import rmtree
from typing import Final

from billing_grpc.errors import StartupError
from billing_grpc.server.processes.stop_signals import StopSignals
from billing_grpc.server.processes.supervisor import LENGTH, READY, WorkerSettings
from billing_grpc.server.run import run_on_loop, serve
from billing_grpc.server.telemetry import logs
from billing_grpc.stalled_reader import write_within

_STDIN: Final = 0
_STDERR: Final = 2
_EXIT_FAILED: Final = 1
_ORPHAN_MARGIN: Final = 5.0
"""Seconds beyond its grace after which a worker without a parent ends, whatever it does."""


def main() -> None:
    """Serve with the settings from standard input until a signal says stop or the parent ends."""
    worker = _worker_settings()
    logs.configure(worker.settings.log_format, worker.settings.log_level)
    signals = StopSignals(second_ends=False)
    orphaned = threading.Event()
    threading.Thread(target=_end_with_the_parent, args=(worker.settings.grace, orphaned), daemon=True).start()
    try:
        run_on_loop(serve(worker.settings, worker.database_url, signals, _report_ready, shared=worker.addresses))
    except StartupError as error:
        logs.flush()
        write_within(_STDERR, f"billing-grpc: {error}\n".encode("utf-8", "backslashreplace"))
        sys.exit(_EXIT_FAILED)
    finally:
        if orphaned.is_set():
            rmtree(worker.metrics_directory, ignore_errors=True)


def _worker_settings() -> WorkerSettings:
    (length,) = LENGTH.unpack(_read(LENGTH.size))
    worker: WorkerSettings = pickle.loads(_read(length))  # noqa: S301 - from our parent, through a pipe that only it has
    return worker


def _read(size: int) -> bytes:
    # Unbuffered: the thread that waits for the pipe's end must not hold a lock when the interpreter ends.
    held = b""
    while len(held) < size:
        piece = os.read(_STDIN, size - len(held))
        if not piece:
            sys.exit(_EXIT_FAILED)
        held += piece
    return held


def _report_ready(_: object) -> None:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def _end_with_the_parent(grace: float, orphaned: threading.Event) -> None:
    """Stop this process when the pipe ends: then the parent has ended, however it did, and cannot stop this process."""
    os.read(_STDIN, 1)
    orphaned.set()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace + _ORPHAN_MARGIN)
    os._exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()
