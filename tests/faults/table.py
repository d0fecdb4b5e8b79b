"""The faults: what is done to the database, and which answers have to suffer from it."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import psutil
import psycopg
from psycopg import sql

from billing_grpc.storage.migrations import SERVICE_ROLE
from tests.faults.calls import CORRUPT, LIST, LIST_WORKSPACES, SET, SUMMARIZE
from tests.faults.deployments import ANY_BYTES, BEHIND, BOTH, DIRECT, LINK, LINK_POOLED
from tests.faults.fault import ALL, AT_ONCE, GONE, READERS, Begin, Fault, Scene, execute_together, reasons
from tests.faults.pair import is_primary
from tests.faults.pooler_faults import POOLER, ROW_SECURITY, SHARED
from tests.faults.server_faults import FAILED_OVER, NAME_MOVED, PRIMARY_GONE, READ_ONLY, SESSIONS_READ_ONLY
from tests.support.polling import until
from tests.support.pooler import SESSION, TRANSACTION
from tests.support.postgres_processes import process_ids, runs
from tests.support.victim import Victim

_FILE_SIZE: Final = 16 * 2**20
"""Bytes; the server's write-ahead log is written in files of this size, so it still can be."""

_ROW: Final = 600


@contextmanager
def _killed(scene: Scene) -> Iterator[None]:
    pids = process_ids(scene.victim.server)
    os.kill(pids[0], signal.SIGKILL)
    try:
        until(lambda: not any(map(runs, pids[1:])))
        yield
    finally:
        scene.victim.start()


@contextmanager
def _restarted(scene: Scene) -> Iterator[None]:
    scene.victim.server.stop()
    scene.victim.start()
    yield


@contextmanager
def _session_killed(scene: Scene) -> Iterator[None]:
    with psycopg.connect(scene.url) as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE]).fetchone()
    assert found is not None
    os.kill(found[0], signal.SIGKILL)
    until(lambda: is_primary(scene.url))
    yield


@contextmanager
def _stopped(scene: Scene) -> Iterator[None]:
    with scene.victim.hung():
        yield


@contextmanager
def _locked(scene: Scene) -> Iterator[None]:
    with psycopg.connect(scene.url) as holder:
        holder.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def _full(scene: Scene) -> Iterator[None]:
    """Others take every place of the server that there is, the service's among them."""
    with ExitStack() as taken:
        ours = taken.enter_context(psycopg.connect(scene.url, autocommit=True))

        def nothing_left() -> bool:
            ours.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE])
            with suppress(psycopg.OperationalError):
                while True:
                    taken.enter_context(psycopg.connect(scene.url))
            row = ours.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE]).fetchone()
            return row == (0,)

        until(nothing_left)
        yield


@contextmanager
def _row_locked(scene: Scene) -> Iterator[None]:
    with psycopg.connect(scene.url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [scene.written])
        yield


@contextmanager
def _slow(scene: Scene) -> Iterator[None]:
    """Every mode takes longer to read than any call may wait."""
    execute_together(
        scene.url,
        "CREATE TYPE slow_mode AS ENUM ('platform_managed', 'byok', 'disabled')",
        "CREATE FUNCTION slowly(slow_mode) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(5); RETURN 'byok'; END $$",
        "CREATE CAST (slow_mode AS text) WITH FUNCTION slowly",
        "ALTER TABLE workspaces RENAME COLUMN llm_billing_mode TO kept",
        "ALTER TABLE workspaces ADD COLUMN llm_billing_mode slow_mode NOT NULL DEFAULT 'byok'",
        f"GRANT SELECT, UPDATE (llm_billing_mode) ON workspaces TO {SERVICE_ROLE}",
    )
    try:
        yield
    finally:
        execute_together(
            scene.url,
            "ALTER TABLE workspaces DROP COLUMN llm_billing_mode",
            "ALTER TABLE workspaces RENAME COLUMN kept TO llm_billing_mode",
            "DROP TYPE slow_mode CASCADE",
        )


@contextmanager
def _lost(scene: Scene) -> Iterator[None]:
    os.kill(scene.network, signal.SIGUSR1)
    try:
        yield
    finally:
        os.kill(scene.network, signal.SIGUSR2)


@contextmanager
def _paused(scene: Scene) -> Iterator[None]:
    os.kill(scene.network, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(scene.network, signal.SIGCONT)


@contextmanager
def _disk_full(scene: Scene) -> Iterator[None]:
    """The log needs a page more, and the file system gives none.

    A limit on the size of the server's files, so that it needs neither root nor a file system of its own: the write fails
    in the same place and way as on a full disk, where the text is another and the SQLSTATE 53100.
    """
    with psycopg.connect(scene.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO workspace_billing_mode_changes (workspace_id, change_time, principal, database_user, reason,"
            " request_id) SELECT %s, now(), '', '', repeat('x', %s), '' FROM generate_series(1, %s)",
            [uuid.uuid4(), _ROW, _FILE_SIZE // _ROW + 1],
        )
        connection.execute("VACUUM FULL workspace_billing_mode_changes")  # no page with room for many rows more
        connection.execute("CHECKPOINT")
    _limit_files(scene.victim, str(_FILE_SIZE))
    try:
        yield
    finally:
        _limit_files(scene.victim, "unlimited")


def _limit_files(victim: Victim, size: str) -> None:
    # The first process first, and then whatever it has started until then: what it starts from now on has the same limit.
    _limit(process_ids(victim.server)[0], size)
    for pid in process_ids(victim.server)[1:]:
        _limit(pid, size)


def _limit(pid: int, size: str) -> None:
    with suppress(psutil.NoSuchProcess):
        user, group = psutil.Process(pid).uids().real, psutil.Process(pid).gids().real
        # Root without every capability may not limit another account's process; that account may.
        become = () if user == os.geteuid() else ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups")
        subprocess.run([*become, "prlimit", f"--pid={pid}", f"--fsize={size}:"], check=False)


def _reversible(there: str, back: str) -> Begin:
    @contextmanager
    def during(scene: Scene) -> Iterator[None]:
        execute_together(scene.url, there)
        try:
            yield
        finally:
            execute_together(scene.url, back)

    return during


@contextmanager
def _corrupt(scene: Scene) -> Iterator[None]:
    """A value that no version of this service wrote, past the constraint."""
    check = "workspaces_llm_billing_mode_check"
    with psycopg.connect(scene.url) as connection:
        row = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [check]
        ).fetchone()
        assert row is not None
        connection.execute(sql.SQL("ALTER TABLE workspaces DROP CONSTRAINT {}").format(sql.Identifier(check)))
        _store(connection, scene.read, CORRUPT.encode())
    try:
        yield
    finally:
        with psycopg.connect(scene.url) as connection:
            _store(connection, scene.read, b"byok")
            connection.execute(
                sql.SQL("ALTER TABLE workspaces ADD CONSTRAINT {} {}").format(sql.Identifier(check), sql.SQL(row[0]))
            )


@contextmanager
def _undecodable(scene: Scene) -> Iterator[None]:
    """Bytes that are no text, in a database that takes any."""
    execute_together(scene.url, "ALTER TABLE workspaces DROP CONSTRAINT IF EXISTS workspaces_llm_billing_mode_check")
    with psycopg.connect(scene.url) as connection:
        _store(connection, scene.read, b"\xff\xfe")
    try:
        yield
    finally:
        with psycopg.connect(scene.url) as connection:
            _store(connection, scene.read, b"byok")


def _store(connection: psycopg.Connection, workspace: str, value: bytes) -> None:
    # As hexadecimal digits, because a driver that decodes would refuse the bytes.
    connection.execute(
        "UPDATE workspaces SET llm_billing_mode = convert_from(decode(%s, 'hex'), getdatabaseencoding()) WHERE id = %s",
        [value.hex(), workspace],
    )


_COLUMN: Final = "ALTER TABLE workspaces RENAME COLUMN {} TO {}"
_LOG: Final = "ALTER TABLE {} RENAME TO {}"

_DIRECT: Final[dict[str, Fault]] = {
    "killed": Fault("kill -9 of the postmaster, started again later", _killed, GONE, known=True),
    "restarted": Fault("stopped and started again at once", _restarted, GONE, frozenset(), ALL, holds=0),
    "session_killed": Fault(
        "kill -9 of one session, for which the server ends them all", _session_killed, GONE, frozenset(), ALL, holds=0
    ),
    "stopped": Fault("SIGSTOP to every process of the server", _stopped, GONE, known=True),
    "locked": Fault(
        "the table locked, ACCESS EXCLUSIVE", _locked, GONE, READERS | {SET}, frozenset({LIST}), known=True
    ),
    "full": Fault("every connection that the server allows taken by others", _full, GONE, known=True),
    "busy": Fault(
        "every connection of the pool waiting for one row's lock", _row_locked, GONE, frozenset({SET}), ALL, writers=12
    ),
    "slow": Fault("a query that takes 5 s", _slow, GONE, READERS | {SET}, frozenset({LIST})),
    "lost": Fault("a network that drops every packet, and forgets the connections", _lost, GONE, known=True),
    "paused": Fault("a proxy that neither reads nor closes", _paused, GONE, known=True),
    "disk_full": Fault("no room for another page of the log", _disk_full, reasons("UNREACHABLE"), frozenset({SET})),
    "no_column": Fault(
        "the column missing",
        _reversible(_COLUMN.format("llm_billing_mode", "kept"), _COLUMN.format("kept", "llm_billing_mode")),
        reasons("SCHEMA_NOT_READY"),
        READERS | {SET},
        holds=AT_ONCE,
    ),
    "no_log": Fault(
        "the change log missing",
        _reversible(
            _LOG.format("workspace_billing_mode_changes", "kept"), _LOG.format("kept", "workspace_billing_mode_changes")
        ),
        reasons("SCHEMA_NOT_READY"),
        frozenset({"GetWorkspaceBillingMode", SET, LIST, LIST_WORKSPACES}),
        holds=AT_ONCE,
    ),
    "no_rights": Fault(
        "the service's role without its rights on the table",
        _reversible(
            f"REVOKE ALL ON workspaces FROM {SERVICE_ROLE}; REVOKE UPDATE (llm_billing_mode) ON workspaces FROM"
            f" {SERVICE_ROLE}",
            f"GRANT SELECT ON workspaces TO {SERVICE_ROLE}; GRANT UPDATE (llm_billing_mode) ON workspaces TO"
            f" {SERVICE_ROLE}",
        ),
        reasons("DENIED"),
        READERS | {SET},
        holds=AT_ONCE,
    ),
    "corrupt": Fault("a stored text that is no mode", _corrupt, frozenset(), frozenset(), shows=READERS, holds=AT_ONCE),
    "undecodable": Fault(
        "a stored text that is not UTF-8",
        _undecodable,
        reasons("VALUE_UNREADABLE"),
        READERS - {SUMMARIZE},
        shows=frozenset({SUMMARIZE}),  # as a number
        holds=AT_ONCE,
    ),
}
_OTHERWISE_BEHIND: Final = {"lost": BEHIND, "paused": BEHIND, "undecodable": ANY_BYTES}
_IN_EVERY_MODE: Final = ("killed", "restarted", "stopped", "locked", "busy", "no_column", "corrupt")


def _runs() -> Iterator[tuple[str, str, Fault]]:
    """Each fault on each way on which it may do something else."""
    for name, fault in (_DIRECT | ROW_SECURITY | READ_ONLY | SESSIONS_READ_ONLY).items():
        yield _OTHERWISE_BEHIND.get(name, DIRECT), name, fault
    pooled = {name: _DIRECT[name] for name in _IN_EVERY_MODE} | ROW_SECURITY | READ_ONLY | POOLER
    for name, fault in pooled.items():
        yield SESSION, name, fault
    for name, fault in (pooled | SHARED).items():
        yield TRANSACTION, name, fault
    for way, faults in (
        (BOTH, PRIMARY_GONE | FAILED_OVER),
        (LINK, NAME_MOVED),
        (LINK_POOLED, NAME_MOVED | FAILED_OVER),
    ):
        for name, fault in faults.items():
            yield way, name, fault


RUNS: Final = {(way, name): fault for way, name, fault in _runs()}
"""What is done, by the way to the database and the name of the fault."""
