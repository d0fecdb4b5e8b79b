"""A process that has loaded `billing-grpc` and runs it in forks of itself: without the half second that loading takes.

A fork is a process of its own, with its own environment, streams, signals and exit code. Its interpreter is not a fresh one:
tests of how the program is loaded start it by `COMMAND`.
"""

import atexit
import gc
import json
import os
import selectors
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO, cast

import billing_grpc.__main__
from billing_grpc.cli.environment import quieten_grpc

STREAMS: Final = 3
_STDERR: Final = 2
LOCALE: Final = "LC_CTYPE"
"""Python's own, where the environment names no locale."""

_MODULES: Final = (
    *("billing_grpc.cli.changes", "billing_grpc.cli.gateway", "billing_grpc.cli.get_set", "billing_grpc.cli.main"),
    "billing_grpc.cli.plan",
    *("billing_grpc.cli.resolve", "billing_grpc.cli.run", "billing_grpc.cli.serve", "billing_grpc.cli.validate_secret"),
    *("billing_grpc.cli.watch_health", "billing_grpc.conformance.command", "billing_grpc.storage.embedded"),
    # What the program's libraries load when they are first used.
    *("email.policy", "importlib_metadata", "rich.table", "uvicorn.protocols.http.h11_impl", "uvloop"),
)


def next_fork(control: socket.socket) -> tuple[socket.socket, list[int]] | None:
    """Start a fork for each byte that comes with streams and a socket; return those in the fork, None at the end.

    On the socket a fork reads how it is to run and reports its process id; this process reports how it ended.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    _report_end(selector, key)
                    continue
                message, descriptors, *_ = socket.recv_fds(control, 1, STREAMS + 1)
                if not message:
                    return None
                *streams, number = descriptors
                report = socket.socket(fileno=number)
                assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has one thread, and the locks of all"
                pid = os.fork()
                if pid == 0:
                    _close_what_is_not_its_own(selector)
                    return report, streams
                for stream in streams:
                    os.close(stream)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, report))


def _report_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, report = cast("tuple[int, socket.socket]", key.data)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    _, status = os.waitpid(pid, 0)
    with report, suppress(BrokenPipeError):  # nobody waits for it any more
        report.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _close_what_is_not_its_own(selector: selectors.BaseSelector) -> None:
    for key in selector.get_map().values():
        if key.data is None:
            cast("socket.socket", key.fileobj).close()
        else:
            os.close(key.fd)
            key.data[1].close()


def become(report: socket.socket, streams: list[int]) -> None:
    """Take on the streams, the environment and the arguments that this fork is to run with."""
    with report, report.makefile("rb") as told:
        how: dict[str, Any] = json.loads(told.readline())
        if how["session"]:
            os.setsid()
        report.sendall(b"%d\n" % os.getpid())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those of the parent remember whether its own streams are files, which have a position.
    sys.stdin = _opened(sys.stdin, 0, "r")
    sys.stdout = _opened(sys.stdout, 1, "w")
    sys.stderr = _opened(sys.stderr, 2, "w")
    os.chdir(how["directory"])
    for name in os.environ.keys() - how["environment"].keys() - {LOCALE}:
        del os.environ[name]
    os.environ.update(how["environment"])
    sys.argv = [billing_grpc.__main__.__file__, *how["arguments"]]


def _opened(like: TextIO, number: int, mode: str) -> TextIO:
    buffering = 1 if mode == "w" and (number == _STDERR or os.isatty(number)) else -1
    stream = open(number, mode, buffering, encoding=like.encoding, errors=like.errors, closefd=False)  # noqa: SIM115 - open for as long as the process
    return cast("TextIO", stream)


def exit_at_once(code: object) -> NoReturn:
    """Do what the interpreter does at its end, but for taking every module apart, which costs more than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for threads, as the interpreter does
    atexit._run_exitfuncs()  # noqa: SLF001 - runs what the program registered, as the interpreter does
    sys.stdout.flush()
    sys.stderr.flush()
    assert code is None or isinstance(code, int), code
    os._exit(code or 0)


def main() -> None:
    """Serve the socket whose number is the argument."""
    quieten_grpc()  # as the program does, before it loads gRPC
    for name in _MODULES:
        import_module(name)
    gc.freeze()
    fork = next_fork(socket.socket(fileno=int(sys.argv[1])))
    if fork is not None:
        become(*fork)
        try:
            billing_grpc.__main__.main()
        except SystemExit as end:
            exit_at_once(end.code)


if __name__ == "__main__":
    main()
