"""A primary and its hot standby, joined by streaming replication."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.conninfo import make_conninfo

from billing_grpc.storage.embedded import EmbeddedPostgres
from billing_grpc.storage.embedded.account import server_account
from billing_grpc.storage.embedded.cluster import data_directory
from billing_grpc.storage.embedded.directory import LOCK, open_own, prepare, previous_owner
from billing_grpc.storage.embedded.installation import find_installation
from tests.places import place_for_databases
from tests.support.base_backup import copy_server
from tests.support.polling import until
from tests.support.victim import Victim, running_victim


@dataclass
class Pair:
    """Two servers, the second a copy that follows the first; `fail_over` and `rejoin` change their parts.

    Attributes:
        primary: accepts writes; each of them has reached the standby's disk when it is acknowledged.
        standby: answers reads, from what it has replayed.
        link: a path to one of their socket directories, as a name that moves would be.
        hosts: the paths of both, the first standby's first.
    """

    primary: Victim
    standby: Victim
    link: Path
    hosts: tuple[Path, Path]

    @property
    def url(self) -> str:
        """The owner's address of both, standby first; it leads to the one that accepts writes."""
        return make_conninfo(self.both(self.primary.url), target_session_attrs="read-write")

    def both(self, url: str) -> str:
        """The same address with both hosts, in an order that no failover changes."""
        return make_conninfo(url, host=",".join(map(str, self.hosts)), port="5432,5432")

    def linked(self, url: str) -> str:
        """The same address by the link."""
        return make_conninfo(url, host=str(self.link))

    def restart_primary(self) -> None:
        """Starts a primary that was killed; returns when its standby follows it again."""
        self.primary.start()
        _let_standby_in(self.primary)
        self.resume_replay()  # a standby that is told to wait connects to nobody
        until(lambda: _is_followed(self.primary))

    def point_at(self, victim: Victim) -> None:
        """Moves the link."""
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(victim.sockets)

    def pause_replay(self) -> None:
        """Lets the standby fall behind; what is written is still kept there."""
        ask(self.standby.url, "SELECT pg_wal_replay_pause()")
        until(lambda: ask(self.standby.url, "SELECT pg_get_wal_replay_pause_state()") == ("paused",))

    def resume_replay(self) -> None:
        """Lets it catch up; returns when it has."""
        ask(self.standby.url, "SELECT pg_wal_replay_resume()")
        end = ask(self.primary.url, "SELECT pg_current_wal_lsn()::text")[0]
        until(lambda: ask(self.standby.url, f"SELECT pg_last_wal_replay_lsn() >= '{end}'") == (True,))

    def fail_over(self) -> None:
        """Kills the primary and promotes the standby; returns when it has become the primary."""
        self.primary.kill()
        ask(self.standby.url, "SELECT pg_promote(false)")  # waiting would be a query, which replay may cancel
        until(lambda: is_primary(self.standby.url))
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Makes what used to be the primary a standby of what is now."""
        self.standby.server.stop()
        shutil.rmtree(data_directory(self.standby.server.directory), ignore_errors=True)
        _follow(self.primary, self.standby)


@contextmanager
def running_pair() -> Iterator[Pair]:
    """A migrated pair with the service's role, removed at the end."""
    place = place_for_databases()
    name = f"billing-standby-{uuid.uuid4().hex[:8]}"
    standby = Victim(EmbeddedPostgres(place / name, durable=False), place / f"{name}.s")
    link = place / f"{name}.link"
    try:
        with running_victim() as primary:
            prepare(standby.server.directory, server_account(previous_owner(primary.server.directory)))
            _follow(primary, standby)
            pair = Pair(primary, standby, link, (standby.sockets, primary.sockets))
            pair.point_at(primary)
            yield pair
    finally:
        standby.server.stop()
        for path in (standby.sockets, link):
            path.unlink(missing_ok=True)
        shutil.rmtree(place / name, ignore_errors=True)


def _follow(primary: Victim, standby: Victim) -> None:
    """Copies the primary and starts the copy as its standby; returns when writes wait for it."""
    account = server_account(previous_owner(primary.server.directory))
    ask(primary.url, "ALTER SYSTEM SET synchronous_standby_names = ''")
    ask(primary.url, "ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'")
    _let_standby_in(primary)
    address = (f"--host={primary.sockets}", "--port=5432", "--username=billing")
    copy_server(account, find_installation(account, None), standby.server.directory, *address)
    os.close(open_own(standby.server.directory / LOCK, account))  # the directory is one of ours now
    standby.start()
    ask(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    ask(primary.url, "SELECT pg_reload_conf()")
    until(lambda: _is_followed(primary))


def _let_standby_in(primary: Victim) -> None:
    """Adds a rule to the file that each start of the server writes anew."""
    with (primary.server.directory / "pg_hba.conf").open("a") as rules:
        rules.write("local replication all peer map=embedded\n")
    ask(primary.url, "SELECT pg_reload_conf()")


def _is_followed(primary: Victim) -> bool:
    return ask(primary.url, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == (1,)


def ask(url: str, statement: LiteralString) -> tuple[object, ...]:
    """The first row of a statement's answer; the statement is a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        answer = connection.execute(statement)
        return (answer.fetchone() or ()) if answer.description else ()


def is_primary(url: str) -> bool:
    """Whether the server answers, and is no standby."""
    with suppress(psycopg.OperationalError):
        return ask(url, "SELECT pg_is_in_recovery()") == (False,)
    return False
