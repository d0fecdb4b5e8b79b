"""A write whose caller was told that its outcome is unknown: from then on nothing changes any more."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.errors import DatabaseTimeout, StorageError
from billing_grpc.model import BillingMode
from billing_grpc.storage.migrations import SERVICE_ROLE
from billing_grpc.storage.postgres import PostgresRepository
from tests.support.polling import PATIENCE, until
from tests.support.pooler import TRANSACTION, running_pooler
from tests.support.servers import serving
from tests.support.victim import Victim
from tests.support.workspaces import add_workspace
from tests.support.writes import BY

BUDGET: Final = 0.25
GRACE: Final = 0.15
ROUNDS: Final = 24
LONGEST_MOMENT: Final = 0.006
"""Seconds; a write takes a part of it."""

Standstill = Callable[[], list[int]]
"""The processes that are to stand still."""


@dataclass
class Network:
    """Carries bytes both ways; a commit waits until it is released, also when its sender has gone."""

    target: str
    held: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port, for as long as it carries."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*self._carrying)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self.target)
        for way in (self._carry(reader, back), self._carry(there, writer)):
            self._carrying.add(asyncio.create_task(way))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                if b"COMMIT\0" in chunk:
                    self.held.set()
                    await self.released.wait()
                writer.write(chunk)
                await writer.drain()
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()


@pytest.fixture(params=["pooler", "sessions"])
def way(request: pytest.FixtureRequest, victim: Victim) -> Iterator[tuple[str, Standstill]]:
    """An address of the service's role, and what stands still on the way."""
    if request.param == "sessions":
        yield victim.service_url, lambda: sessions(victim.url)
        return
    with running_pooler(victim.sockets, victim, TRANSACTION) as pooler:
        assert pooler.process is not None
        pid = pooler.process.pid
        yield pooler.through(victim.service_url), lambda: [pid]


@pytest.fixture
async def repository(way: tuple[str, Standstill]) -> AsyncIterator[PostgresRepository]:
    async with PostgresRepository.opened(way[0], longest_budget=BUDGET) as opened:
        yield opened


def sessions(url: str) -> list[int]:
    """The server's processes for the service."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE])
        return [row[0] for row in found]


def stored(url: str, workspace: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT llm_billing_mode FROM workspaces WHERE id = %s", [workspace]).fetchone()
    assert row is not None
    return str(row[0])


def look(url: str, workspace: str) -> tuple[str, bool]:
    """What is stored, and whether a session is at its commit: from outside nobody can tell how that will end."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'active'"
            " AND (query ILIKE 'commit' OR query LIKE '%%gave this write up%%')",
            [SERVICE_ROLE],
        ).fetchone()
    return stored(url, workspace), row != (0,)


@contextmanager
def standing_still(processes: list[int]) -> Iterator[None]:
    def send(number: signal.Signals) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):  # a session that has ended meanwhile
                os.kill(pid, number)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


async def answering(repository: PostgresRepository, workspace: str) -> None:
    """Returns when writes work."""
    async with asyncio.timeout(10):
        while True:
            try:
                await repository.save_override(workspace, BillingMode.PLATFORM_MANAGED, by=BY, budget=5)
            except StorageError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_write_that_stood_still_at_any_moment_does_not_happen_after_its_answer(
    victim: Victim, way: tuple[str, Standstill], repository: PostgresRepository
) -> None:
    workspace, late = add_workspace(victim.url, "platform_managed"), []
    for moment in (number * LONGEST_MOMENT / ROUNDS for number in range(ROUNDS)):
        await answering(repository, workspace)
        processes = way[1]()
        write = asyncio.create_task(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET))
        await asyncio.sleep(moment)
        with standing_still(processes):
            [outcome] = await asyncio.gather(write, return_exceptions=True)
            looking = asyncio.create_task(asyncio.to_thread(look, victim.url, workspace))
            # A session that stands in the middle of a commit may hold a lock that a look at the row needs.
            seen, _ = await asyncio.wait({looking}, timeout=1)
        then, commits = await looking
        await asyncio.sleep(GRACE)
        acknowledged = not isinstance(outcome, BaseException)
        assert acknowledged or isinstance(outcome, StorageError)
        if seen and not commits and (stored(victim.url, workspace) != then or (acknowledged and then != "byok")):
            late.append((moment, outcome, then))
    assert late == []


async def test_a_commit_that_the_network_brings_after_its_answer_does_not_happen(victim: Victim) -> None:
    workspace, network = add_workspace(victim.url, "platform_managed"), Network(f"{victim.sockets}/.s.PGSQL.5432")
    async with network.listening() as port:
        url = make_conninfo(victim.service_url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        async with PostgresRepository.opened(url, longest_budget=BUDGET) as repository:
            write = asyncio.create_task(repository.save_override(workspace, BillingMode.BYOK, by=BY, budget=BUDGET))
            async with asyncio.timeout(10):  # a machine may be so busy that no commit is sent in time
                await network.held.wait()
            [outcome] = await asyncio.gather(write, return_exceptions=True)
            network.released.set()
            await asyncio.sleep(GRACE)
    assert isinstance(outcome, DatabaseTimeout)
    assert stored(victim.url, workspace) == "platform_managed"


def test_a_write_whose_call_was_cancelled_does_not_happen_afterwards(victim: Victim) -> None:
    # A proxy that waits no longer cancels the call too, after it has told the caller that the outcome is unknown.
    workspace = add_workspace(victim.url, "platform_managed")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
    with serving() as serve, psycopg.connect(victim.url, autocommit=True) as owner:
        server = serve(settings={"DATABASE_URL": victim.service_url, "BILLING_GRPC_STORAGE_TIMEOUT": str(PATIENCE)})

        def writes_that_wait() -> object:
            return (owner.execute(waiting, [SERVICE_ROLE]).fetchone() or ())[0]

        with psycopg.connect(victim.url) as other:
            other.execute("SELECT FROM workspaces FOR UPDATE")
            request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace, mode=pb.BILLING_MODE_BYOK)
            call = server.stub.SetWorkspaceBillingMode.future(request, timeout=PATIENCE)
            until(lambda: writes_that_wait() == 1)
            call.cancel()
            server.logged("call", code="CANCELLED")
        until(lambda: writes_that_wait() == 0)
        assert server.stop() == 0  # it finishes what it has begun
        assert stored(victim.url, workspace) == "platform_managed"
