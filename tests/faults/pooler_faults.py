"""Faults of a pooler, and of what other sessions and the table's owner do to those that are shared."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from billing_grpc.storage.migrations import SERVICE_ROLE
from tests.faults.calls import SET
from tests.faults.fault import ALL, GONE, READERS, Fault, Scene, execute, reasons

_OFTEN: Final = 0.05

_WRITES: Final = frozenset({SET})
"""RECONNECT may count a session that is just being opened as a failed login; a write is not repeated then, a read is."""

# What changes no answer, as long as none relies on a session.
_HARMLESS: Final = (
    "SET row_security = off",
    "SET row_security = on",
    "SET synchronous_commit = off",
    "SET default_transaction_isolation = 'serializable'",
    "SET bytea_output = 'escape'",
    "SET statement_timeout = '1min'",
    "SET lock_timeout = 0",
    "SET billing_grpc.principal = 'somebody else'",
)
# A session that is read-only may be one of a server that was demoted, as far as anybody can tell.
_HARMFUL: Final = ("SET default_transaction_read_only = on",)
_ELSEWHERE: Final = ("SET search_path = pg_catalog",)


@contextmanager
def _again_and_again(act: Callable[[], object]) -> Iterator[None]:
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(_OFTEN):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def _restarted(scene: Scene) -> Iterator[None]:
    scene.the_pooler.stop(signal.SIGKILL)
    scene.the_pooler.start()
    yield


@contextmanager
def _gone(scene: Scene) -> Iterator[None]:
    scene.the_pooler.stop()
    try:
        yield
    finally:
        scene.the_pooler.start()


@contextmanager
def _reconnecting(scene: Scene) -> Iterator[None]:
    with _again_and_again(scene.the_pooler.renew_sessions):
        yield


@contextmanager
def _short_lived(scene: Scene) -> Iterator[None]:
    scene.the_pooler.ask("SET server_lifetime = 1")
    try:
        yield
    finally:
        scene.the_pooler.ask("SET server_lifetime = 3600")


@contextmanager
def _rows_hidden(scene: Scene) -> Iterator[None]:
    """A policy lets the role see no row, and where there is a pooler, its sessions change all the while."""
    execute(scene.url, "ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    try:
        with _reconnecting(scene) if scene.pooler is not None else nullcontext():
            yield
    finally:
        execute(scene.url, "ALTER TABLE workspaces DISABLE ROW LEVEL SECURITY")


@contextmanager
def _policies_bypassed(scene: Scene) -> Iterator[None]:
    execute(scene.url, f"ALTER ROLE {SERVICE_ROLE} BYPASSRLS", "ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    try:
        with _reconnecting(scene) if scene.pooler is not None else nullcontext():
            yield
    finally:
        execute(
            scene.url, "ALTER TABLE workspaces DISABLE ROW LEVEL SECURITY", f"ALTER ROLE {SERVICE_ROLE} NOBYPASSRLS"
        )


def _settings_left(*settings: str) -> Callable[[Scene], AbstractContextManager[None]]:
    @contextmanager
    def during(scene: Scene) -> Iterator[None]:
        url = scene.the_pooler.through(make_conninfo(scene.url, user=SERVICE_ROLE))
        each = itertools.cycle(settings)
        with psycopg.connect(url, autocommit=True) as another:

            def leave_one() -> None:
                with suppress(psycopg.Error):
                    another.execute(next(each).encode())

            for _ in settings:
                leave_one()
            try:
                with _again_and_again(leave_one):
                    yield
            finally:
                scene.the_pooler.ask("RECONNECT")
                time.sleep(_OFTEN)

    return during


ROW_SECURITY: Final[dict[str, Fault]] = {
    "rows_hidden": Fault(
        "row-level security that hides every row",
        _rows_hidden,
        reasons("DENIED", "UNREACHABLE"),
        READERS | {SET},
        holds=1.5,
    ),
    "policies_bypassed": Fault(
        "row-level security that the service's role bypasses",
        _policies_bypassed,
        reasons("UNREACHABLE"),
        frozenset(),
        _WRITES,
        holds=1.0,
    ),
}
POOLER: Final[dict[str, Fault]] = {
    "pooler_restarted": Fault("the pooler killed and started again", _restarted, GONE, frozenset(), ALL, holds=0),
    "pooler_gone": Fault("the pooler stopped, started again later", _gone, GONE, known=True),
    "reconnecting": Fault(
        "`RECONNECT`, again and again", _reconnecting, reasons("UNREACHABLE"), frozenset(), _WRITES, holds=1.0
    ),
    "short_lived": Fault("`server_lifetime = 1`", _short_lived, frozenset(), frozenset(), holds=2.2),
}
SHARED: Final[dict[str, Fault]] = {
    "settings_left": Fault(
        "another client's `SET`s on the shared sessions: row_security, synchronous_commit, isolation",
        _settings_left(*_HARMLESS),
        frozenset(),
        frozenset(),
        holds=1.5,
    ),
    "harm_left": Fault(
        "another client's `SET default_transaction_read_only = on` on the shared sessions",
        _settings_left(*_HARMFUL),
        reasons("STALE", "TIMEOUT"),
        frozenset(),
        ALL,
        holds=1.5,
    ),
    "path_left": Fault(
        "another client's `SET search_path` on the shared sessions",
        _settings_left(*_ELSEWHERE),
        reasons("SCHEMA_NOT_READY"),
        frozenset(),
        ALL,
        holds=1.5,
    ),
}
