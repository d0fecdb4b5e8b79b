"""A database that is down is known to be down: nobody waits for it, nothing piles up, and it is used again at once."""

import asyncio
import gc
import os
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc.errors import DatabaseTimeout, DatabaseUnreachable, SchemaNotReady, StorageError
from billing_grpc.model import BillingMode, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage.migrations import SERVICE_ROLE
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.postgres.breaker import PROBE_EVERY, RIDE_OUT, Breaker
from billing_grpc.storage.postgres.connecting import CONNECT_TIMEOUT, PersistentConnection
from tests.support.polling import until_true
from tests.support.victim import Victim
from tests.support.writes import BY, add

BUDGET: Final = 1.0
POOL_SIZE: Final = 8
PATIENCE: Final = 10.0
until: Final = partial(until_true, seconds=PATIENCE)
BYOK: Final = StoredOverride("byok")

Changes = list[type[StorageError] | None]


@pytest.fixture
def workspace(victim: Victim) -> str:
    """A stored workspace that says `byok`."""
    made = str(uuid.uuid4())
    with psycopg.connect(victim.url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [made])
    return made


@pytest.fixture
async def repository(victim: Victim, workspace: str) -> AsyncIterator[PostgresRepository]:
    """A repository whose connections all stand."""
    async with PostgresRepository.opened(victim.service_url, longest_budget=BUDGET) as opened:
        await until(lambda: opened.pool_stats().idle == POOL_SIZE)
        assert await opened.load_override(workspace, budget=BUDGET) == BYOK
        yield opened


@pytest.fixture
def changes(repository: PostgresRepository) -> Changes:
    """Every change of what is known that the repository told of."""
    told: Changes = []
    repository.add_listener(lambda error: told.append(None if error is None else type(error)))
    return told


async def read(repository: PostgresRepository, workspace: str, budget: float = BUDGET) -> object:
    try:
        return await repository.load_override(workspace, budget=budget)
    except StorageError as error:
        return type(error)


async def write(repository: PostgresRepository, workspace: str, budget: float = BUDGET) -> object:
    try:
        await repository.save_override(workspace, BillingMode.DISABLED, by=BY, budget=budget)
    except StorageError as error:
        return type(error)
    return None


async def known_to_be_down(repository: PostgresRepository, workspace: str) -> None:
    """Returns when it is, which takes no longer than one call that waits for all of its budget, and the probe's start."""
    started = time.monotonic()
    calls = [asyncio.create_task(read(repository, workspace)) for _ in range(2 * POOL_SIZE)]
    await until(lambda: not repository.available)
    assert time.monotonic() - started < BUDGET + 0.5
    await asyncio.gather(*calls)


async def test_while_a_hung_database_is_known_to_be_down_every_call_is_told_so_at_once(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    with victim.hung():
        await known_to_be_down(repository, workspace)
        started = time.monotonic()
        answers = {await read(repository, workspace) for _ in range(50)}
        answers |= {await write(repository, workspace)}
        assert time.monotonic() - started < 1
        assert answers == {DatabaseTimeout}
        assert isinstance(repository.last_error, DatabaseTimeout)
    await until(lambda: repository.available)
    assert await read(repository, workspace) == BYOK
    assert repository.last_error is None
    assert changes == [DatabaseTimeout, None]


async def test_calls_with_little_time_find_out_too(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    victim.kill()
    async with asyncio.timeout(PATIENCE):
        while repository.available:
            await read(repository, workspace, 0.05)


async def test_an_answer_about_the_log_says_nothing_about_the_workspaces(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with psycopg.connect(victim.url) as holder:
        holder.execute("LOCK TABLE workspaces")
        reading = asyncio.create_task(read(repository, workspace))
        async with asyncio.timeout(PATIENCE):
            while repository.available:
                with suppress(StorageError):
                    await repository.list_changes(None, position=LogPosition(), limit=1, budget=BUDGET)
                if reading.done():
                    reading = asyncio.create_task(read(repository, workspace))
        assert await reading is DatabaseTimeout


async def test_a_write_that_was_sent_is_waited_for(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with psycopg.connect(victim.url) as holder:
        holder.execute("LOCK TABLE workspaces")
        writing = asyncio.create_task(write(repository, workspace, 5 * BUDGET))
        await until(lambda: not repository.available)
    assert await writing is None
    await until(lambda: repository.available)
    assert await read(repository, workspace) == StoredOverride("disabled")


async def test_those_who_wait_when_a_database_becomes_known_to_be_down_wait_no_longer(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    victim.kill()
    started = time.monotonic()
    answers = await asyncio.gather(*(read(repository, workspace, 10) for _ in range(2 * POOL_SIZE)))
    assert set(answers) == {DatabaseUnreachable}
    await until(lambda: repository.pool_stats().waiting == 0)
    assert time.monotonic() - started < 2 * BUDGET + 0.5


async def test_an_outage_leaves_no_task_and_no_connection_behind(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    tasks = len(asyncio.all_tasks())
    with victim.hung():
        await known_to_be_down(repository, workspace)
        for _ in range(100):
            await asyncio.gather(*(read(repository, workspace) for _ in range(20)))
        # What is left is the pool's own, the probing, and two probes.
        assert len(asyncio.all_tasks()) <= tasks + POOL_SIZE
    await until(lambda: repository.available)
    await asyncio.gather(*(read(repository, workspace) for _ in range(2 * POOL_SIZE)))
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    stats = repository.pool_stats()
    assert (stats.size, stats.in_use, stats.waiting) == (POOL_SIZE, 0, 0)
    await until(lambda: sessions(victim.url) == POOL_SIZE)


def sessions(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(("silent", "most"), [(True, 4), (False, 7)], ids=["says_nothing", "hangs_up"])
async def test_many_callers_make_one_probe_at_a_time_and_not_many(workspace: str, *, silent: bool, most: int) -> None:
    connected = 0

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        kept_open.append(writer)
        if not silent:
            writer.close()

    kept_open: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"host=127.0.0.1 port={port} user=nobody dbname=none sslmode=disable gssencmode=disable"
        async with PostgresRepository.opened(url, longest_budget=BUDGET) as repository:
            await known_to_be_down(repository, workspace)
            before, started = connected, time.monotonic()
            while time.monotonic() < started + 1:
                await asyncio.gather(*(read(repository, workspace) for _ in range(50)))
                await asyncio.sleep(0.01)
            assert connected - before <= most
        for writer in kept_open:
            writer.close()


async def test_a_pool_makes_two_connections_at_a_time() -> None:
    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0) as silent:
        url = f"host=127.0.0.1 port={silent.sockets[0].getsockname()[1]} user=nobody dbname=none"
        async with PostgresRepository.opened(url, longest_budget=BUDGET):
            await until(lambda: len(writers) == 2)
            await asyncio.sleep(0.25)  # half of what each is given
            assert len(writers) == 2
        for each in writers:
            each.close()


async def test_a_database_behind_an_address_that_hangs_is_found(victim: Victim, workspace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1,{victim.sockets}"
        ports = f"{silent.getsockname()[1]},{conninfo_to_dict(victim.url)['port']}"
        url = make_conninfo(victim.service_url, host=hosts, port=ports)
        async with PostgresRepository.opened(url, longest_budget=BUDGET) as repository:
            assert await read(repository, workspace, 1) == BYOK


async def test_a_connect_that_was_given_up_leaves_no_socket_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"host=127.0.0.1 port={port} user=nobody dbname=none connect_timeout=2"
        gc.disable()  # which would find it, some day
        try:
            for time_limit in (None, 0.1):
                with suppress(psycopg.OperationalError, TimeoutError):
                    await PersistentConnection.connect_once(time_limit, url)
            ours = psutil.Process().net_connections("tcp")
            assert not [each for each in ours if tuple(each.raddr)[1:] == (port,)]
        finally:
            gc.enable()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 64, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_connection_that_hangs_is_cut_off_also_where_no_descriptor_is_left(victim: Victim) -> None:
    connection = await PersistentConnection.connect_once(PATIENCE, victim.service_url, autocommit=True)
    waiting = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    with no_descriptor_left():
        connection.sever()
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(waiting, PATIENCE)
    await connection.close()


async def test_a_hung_database_does_not_answer_in_time_however_it_is_asked(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with victim.hung():
        await known_to_be_down(repository, workspace)
        answers, started = set(), time.monotonic()
        while time.monotonic() < started + CONNECT_TIMEOUT + 2:  # probes of both patiences end
            answers.add(await read(repository, workspace))
            await asyncio.sleep(0.01)
    assert answers == {DatabaseTimeout}


async def test_a_host_that_no_name_service_can_be_asked_for_is_a_database_that_is_down(workspace: str) -> None:
    async with PostgresRepository.opened(f"postgresql://nobody@{'a' * 70}/none", longest_budget=BUDGET) as repository:
        await known_to_be_down(repository, workspace)
        assert await read(repository, workspace) is DatabaseUnreachable


async def test_a_probe_that_fails_in_an_unforeseen_way_does_not_end_the_probing() -> None:
    ends: list[Exception | None] = [ValueError("first"), ValueError("ridden out"), None]

    async def probe() -> None:
        await asyncio.sleep(RIDE_OUT)
        if (end := ends.pop(0)) is not None:
            raise end

    told: Changes = []
    breaker = Breaker(probe)
    breaker.add_listener(lambda error: told.append(None if error is None else type(error)))
    breaker.start_probing()
    await until(lambda: len(told) == 2)
    assert told == [DatabaseUnreachable, None]
    await breaker.stop()


async def test_many_suspicions_that_turn_out_to_be_wrong_make_few_probes() -> None:
    asked = 0

    async def probe() -> None:
        nonlocal asked
        asked += 1

    breaker = Breaker(probe)
    started = time.monotonic()
    while (took := time.monotonic() - started) < 5 * PROBE_EVERY:
        breaker.start_probing()
        await asyncio.sleep(0.001)
    assert 2 <= asked <= took / PROBE_EVERY + 1
    await breaker.stop()


# What must not make the database known to be down


async def test_a_call_with_too_little_time_is_its_callers_problem(
    repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    started = time.monotonic()
    failed = set()
    while time.monotonic() < started + 1.2:  # a probe's time, and more
        failed |= {await read(repository, workspace, 0.00001)}
        assert repository.available
        await asyncio.sleep(0.01)
    assert failed == {DatabaseTimeout}
    assert await read(repository, workspace) == BYOK
    assert changes == []


async def test_writes_that_wait_for_one_locked_row_leave_connections_for_reads(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    with psycopg.connect(victim.url) as holder:
        holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspace])
        writes = [asyncio.create_task(write(repository, workspace)) for _ in range(2 * POOL_SIZE)]
        await until(lambda: repository.pool_stats().in_use == POOL_SIZE // 2)
        assert await read(repository, workspace, 0.5) == BYOK
        assert set(await asyncio.gather(*writes)) == {DatabaseTimeout}
    assert changes == []


async def test_sessions_that_somebody_ended_are_not_a_database_that_is_down(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    with psycopg.connect(victim.url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE]
        )
    assert await write(repository, workspace) is None
    assert await read(repository, workspace) == StoredOverride("disabled")
    await until(lambda: repository.pool_stats().idle == POOL_SIZE)
    assert changes == []


async def test_a_server_that_refuses_for_a_moment_is_waited_for(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    aside = victim.sockets.with_suffix(".aside")
    victim.sockets.rename(aside)
    try:
        with psycopg.connect(make_conninfo(victim.url, host=str(aside))) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [SERVICE_ROLE]
            )
        reading = asyncio.create_task(read(repository, workspace))
        await asyncio.sleep(0.25)
    finally:
        aside.rename(victim.sockets)
    assert await reading == BYOK
    assert changes == []


async def test_a_server_that_refuses_new_connections_is_used_through_those_that_stand(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    with psycopg.connect(victim.url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT {POOL_SIZE}".encode())
        try:
            started = time.monotonic()
            while time.monotonic() < started + 1.2:
                await read(repository, workspace, 0.00001)
                await asyncio.sleep(0.01)
            assert await read(repository, workspace) == BYOK
            assert changes == []
        finally:
            connection.execute(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT -1".encode())


async def test_a_connection_that_a_probe_borrows_is_no_call_that_works(
    victim: Victim, repository: PostgresRepository, workspace: str
) -> None:
    with psycopg.connect(victim.url) as holder, psycopg.connect(victim.url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT {POOL_SIZE}".encode())
        try:
            holder.execute("LOCK TABLE workspaces")
            reading, seen = asyncio.create_task(read(repository, workspace, 0.5)), set()
            while not reading.done():
                stats = repository.pool_stats()
                seen.add((stats.in_use, stats.waiting))
                await asyncio.sleep(0.01)
            assert (1, 0) in seen
            assert seen <= {(1, 0), (0, 1), (0, 0)}
        finally:
            connection.execute(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT -1".encode())


async def suspected(repository: PostgresRepository, workspace: str) -> None:
    """Lasts as long as a server that only refuses is waited for, and a probe, with suspicions all the while."""
    started = time.monotonic()
    while time.monotonic() < started + RIDE_OUT + 1:
        await read(repository, workspace, 0.00001)
        await asyncio.sleep(0.01)


async def test_a_database_without_the_schema_is_not_one_that_is_down(
    victim: Victim, repository: PostgresRepository, workspace: str, changes: Changes
) -> None:
    with psycopg.connect(victim.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE workspaces RENAME TO elsewhere")
        try:
            await suspected(repository, workspace)
            assert await read(repository, workspace) is SchemaNotReady
        finally:
            connection.execute("ALTER TABLE elsewhere RENAME TO workspaces")
    assert changes == []


async def test_a_budget_too_short_to_connect_is_no_sign_of_a_database_that_is_down(
    victim: Victim, workspace: str
) -> None:
    relayed: list[asyncio.StreamWriter] = []
    (path,) = Path(os.fspath(victim.sockets)).glob(".s.PGSQL.*[0-9]")

    async def copied(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            target.write(piece)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        upstream, downstream = await asyncio.open_unix_connection(path)
        both = {asyncio.create_task(copied(reader, downstream)), asyncio.create_task(copied(upstream, writer))}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
            downstream.close()
            writer.close()
            relayed.append(downstream)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as relay:
        url = make_conninfo(victim.service_url, host="127.0.0.1", port=relay.sockets[0].getsockname()[1])
        async with PostgresRepository.opened(url, longest_budget=0.1) as repository:
            await until(lambda: repository.pool_stats().idle == POOL_SIZE)
            changes: list[StorageError | None] = []
            repository.add_listener(changes.append)
            await suspected(repository, workspace)
            assert changes == []
        await until(lambda: repository.pool_stats().idle == 0)
        for each in relayed:
            await each.wait_closed()


@pytest.mark.parametrize("before", range(3, 8))
async def test_a_write_that_failed_leaves_its_connection_fit_for_the_next_one(
    victim: Victim, workspace: str, before: int
) -> None:
    async with PostgresRepository.opened(victim.service_url, longest_budget=BUDGET, size=1) as repository:
        # The driver prepares what it has sent a few times, and a failure may come just then.
        assert {await write(repository, workspace) for _ in range(before)} == {None}
        with psycopg.connect(victim.url) as holder:
            holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", [workspace])
            assert await write(repository, workspace, 0.3) is DatabaseTimeout
        assert await write(repository, workspace) is None


async def test_commits_that_wait_for_a_standby_that_is_away_take_few_of_the_servers_places(
    victim: Victim, repository: PostgresRepository
) -> None:
    with psycopg.connect(victim.url, autocommit=True, options="-c synchronous_commit=local") as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            # The processes of the server take note of a setting one after another.
            async with asyncio.timeout(5):
                while await write(repository, add(connection), 0.3) is None:
                    pass
            for workspaces in [[add(connection) for _ in range(4)] for _ in range(4)]:
                told = await asyncio.gather(*(write(repository, each, 1.5) for each in workspaces))
                assert set(told) == {DatabaseTimeout}
            ((waiting,),) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = %s", [SERVICE_ROLE]
            ).fetchall()
            assert waiting <= 2 * POOL_SIZE // 2
            assert await read(repository, add(connection, "byok")) == BYOK
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
