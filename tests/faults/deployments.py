"""The ways to a database, each with a service that goes it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, LiteralString

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.storage import migrations
from billing_grpc.storage.migrations import SERVICE_ROLE
from tests.faults.fault import Scene
from tests.faults.pair import Pair, running_pair
from tests.support.pooler import SESSION, TRANSACTION, Pooler, running_pooler
from tests.support.servers import Serve, Server, serving
from tests.support.victim import Victim, running_victim
from tests.support.workspaces import add_workspace, as_service

DIRECT: Final = "direct"
BEHIND: Final = "behind"
"""Over a network that can lose connections."""

ANY_BYTES: Final = "any_bytes"
"""To a database that takes any bytes as text."""

BOTH: Final = "both"
"""To a primary and its standby, both named in the address."""

LINK: Final = "link"
"""To a primary or its standby, by a name that moves from the one to the other."""

LINK_POOLED: Final = "link_pooled"
"""The same, behind a pooler in transaction mode."""

POOLED: Final = (SESSION, TRANSACTION)
REPLICATED: Final = (BOTH, LINK, LINK_POOLED)


@dataclass(frozen=True, slots=True)
class Served:
    """A service under test, and what its faults may touch."""

    server: Server
    scene: Scene

    @property
    def open_files(self) -> int:
        return psutil.Process(self.server.pid).num_fds()

    @property
    def sessions(self) -> int:
        """The connections of the service, as its next station sees them."""
        if self.scene.pooler is not None:
            return self.scene.pooler.clients_of(self.scene.url)
        with psycopg.connect(self.scene.url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND datname = current_database()",
                [SERVICE_ROLE],
            ).fetchone()
        assert row is not None
        return int(row[0])


class Deployments:
    """The services by the name of their way; what one needs is started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._serve: Serve = stack.enter_context(serving())
        self.to: Callable[[str], Served] = cache(self._make)
        self._victim: Callable[[], Victim] = cache(lambda: stack.enter_context(running_victim()))
        self._pair: Callable[[], Pair] = cache(lambda: stack.enter_context(running_pair()))
        self._pooler: Callable[[str], Pooler] = cache(
            lambda mode: stack.enter_context(running_pooler(self._victim().sockets, self._victim(), mode))
        )
        self._linked_pooler: Callable[[], Pooler] = cache(
            lambda: stack.enter_context(running_pooler(self._pair().link, self._pair().primary, TRANSACTION))
        )
        self._network: Callable[[], tuple[int, int]] = cache(lambda: stack.enter_context(_network(self._victim())))

    def _make(self, name: str) -> Served:
        if name in REPLICATED:
            return self._replicated(name)
        victim = self._victim()
        if name in POOLED:
            pooler = self._pooler(name)
            url = _add_database(victim.url, f"behind_{name}")
            return self._served(victim, url, pooler.through(as_service(url)), pooler=pooler)
        if name == BEHIND:
            process, port = self._network()
            url = _add_database(victim.url, name)
            through = make_conninfo(
                as_service(url), host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
            )
            return self._served(victim, url, through, network=process)
        if name == ANY_BYTES:
            url = _add_database(victim.url, name, "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc")
            return self._served(victim, url, as_service(url))
        return self._served(victim, victim.url, victim.service_url)

    def _replicated(self, name: str) -> Served:
        pair = self._pair()
        pooler = self._linked_pooler() if name == LINK_POOLED else None  # first: where there is none, tests are skipped
        url = _add_database(pair.url, name)
        service_url = make_conninfo(pair.primary.service_url, dbname=name)
        if pooler is not None:
            return self._served(pair.primary, url, pooler.through(service_url), pooler=pooler, pair=pair)
        address = pair.both if name == BOTH else pair.linked
        return self._served(pair.primary, url, address(service_url), pair=pair)

    def _served(
        self,
        victim: Victim,
        url: str,
        service_url: str,
        *,
        network: int = 0,
        pooler: Pooler | None = None,
        pair: Pair | None = None,
    ) -> Served:
        read, closed, written = (add_workspace(url, mode) for mode in ("byok", "platform_managed", "byok"))
        scene = Scene(victim, url, read, closed, written, network, pooler, pair)
        settings = {"DATABASE_URL": service_url, "MOLECULE_LLM_BILLING_MODE": "byok"}
        return Served(self._serve(settings=settings), scene)


@contextmanager
def all_deployments() -> Iterator[Deployments]:
    """Every way to a database; at the end all of it is stopped."""
    with ExitStack() as stack:
        yield Deployments(stack)


@contextmanager
def _network(victim: Victim) -> Iterator[tuple[int, int]]:
    """The process id and the port of a network to the server that can fail."""
    command = [sys.executable, str(Path(__file__).with_name("proxy.py")), str(victim.sockets / ".s.PGSQL.5432")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()


def _add_database(beside: str, name: str, made_how: LiteralString = "") -> str:
    with psycopg.connect(beside, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} " + made_how).format(sql.Identifier(name)))
    url = make_conninfo(beside, dbname=name)
    migrations.up(url)
    migrations.run_script(url, migrations.grants())
    return url
