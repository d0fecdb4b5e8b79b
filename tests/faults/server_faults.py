"""Faults in which a server still answers, and what it answers may be old: standbys, failovers, read-only servers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from billing_grpc.storage.migrations import SERVICE_ROLE
from tests.faults.fault import ALL, GONE, Fault, Scene, execute, reasons
from tests.faults.pair import ask
from tests.support.polling import until

_READ_ONLY: Final = "ALTER SYSTEM SET default_transaction_read_only = on"
_WRITABLE: Final = "ALTER SYSTEM RESET default_transaction_read_only"
_RELOAD: Final = "SELECT pg_reload_conf()"


def _fall_behind(scene: Scene) -> None:
    """The standby still says `byok` of a workspace that has been closed."""
    pair = scene.the_pair
    pair.resume_replay()
    _store(scene, "byok")
    pair.resume_replay()
    pair.pause_replay()
    _store(scene, "platform_managed")


def _store(scene: Scene, mode: str) -> None:
    with psycopg.connect(scene.url) as connection:
        connection.execute("UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s", [mode, scene.closed])


def _catch_up(scene: Scene) -> None:
    scene.the_pair.resume_replay()


@contextmanager
def _primary_gone(scene: Scene) -> Iterator[None]:
    scene.the_pair.primary.kill()
    try:
        yield
    finally:
        scene.the_pair.restart_primary()


@contextmanager
def _failed_over(scene: Scene) -> Iterator[None]:
    pair = scene.the_pair
    pair.fail_over()
    pair.point_at(pair.primary)
    yield


def _rejoin(scene: Scene) -> None:
    scene.the_pair.rejoin()


@contextmanager
def _name_moved(scene: Scene) -> Iterator[None]:
    """The name leads to the standby, and so does every connection, except one that a pooler keeps with its client."""
    pair = scene.the_pair
    pair.point_at(pair.standby)
    _end_connections(scene)
    try:
        yield
    finally:
        pair.point_at(pair.primary)
        # The standby's sessions stay: a name that is right again ends no connection.
        if scene.pooler is not None:
            scene.pooler.ask("RECONNECT")


def _end_connections(scene: Scene) -> None:
    if scene.pooler is not None:
        scene.pooler.ask("RECONNECT")
    with psycopg.connect(scene.url) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE])


@contextmanager
def _read_only(scene: Scene) -> Iterator[None]:
    execute(scene.url, _READ_ONLY, _RELOAD)
    try:
        until(lambda: ask(scene.url, "SHOW transaction_read_only") == ("on",))
        yield
    finally:
        _make_writable(scene)


@contextmanager
def _sessions_read_only(scene: Scene) -> Iterator[None]:
    """Those that stand, while every new one of the role is writable, and no pooler keeps the old ones."""
    execute(scene.url, f"ALTER ROLE {SERVICE_ROLE} SET default_transaction_read_only = off", _READ_ONLY, _RELOAD)
    yield


def _sessions_writable(scene: Scene) -> None:
    _make_writable(scene)
    execute(scene.url, f"ALTER ROLE {SERVICE_ROLE} RESET default_transaction_read_only")


def _make_writable(scene: Scene) -> None:
    execute(scene.url, _WRITABLE, _RELOAD)
    until(lambda: ask(scene.url, "SHOW transaction_read_only") == ("off",))


READ_ONLY: Final[dict[str, Fault]] = {
    "read_only": Fault("the server turned read-only, and back", _read_only, reasons("STALE", "TIMEOUT"), stale=True),
}
SESSIONS_READ_ONLY: Final[dict[str, Fault]] = {
    "sessions_read_only": Fault(
        "sessions that exist turn read-only, new ones do not",
        _sessions_read_only,
        GONE | reasons("STALE"),
        frozenset(),
        ALL,
        holds=0,
        repair=_sessions_writable,
    ),
}
PRIMARY_GONE: Final[dict[str, Fault]] = {
    "primary_gone": Fault(
        "the primary killed, started again later; the standby, which is behind, answers",
        _primary_gone,
        GONE | reasons("STALE"),
        known=True,
        stale=True,
        prepare=_fall_behind,
        repair=_catch_up,
    ),
}
NAME_MOVED: Final[dict[str, Fault]] = {
    "name_moved": Fault(
        "the name leads to the standby, which is behind, and back",
        _name_moved,
        GONE | reasons("STALE"),
        stale=True,
        prepare=_fall_behind,
        repair=_catch_up,
    ),
}
FAILED_OVER: Final[dict[str, Fault]] = {
    "failed_over": Fault(
        "the primary killed, the standby, which was behind, promoted",
        _failed_over,
        GONE | reasons("STALE"),
        frozenset(),
        ALL,
        holds=0,
        prepare=_fall_behind,
        repair=_rejoin,
    ),
}
