"""Reads that many callers share: each caller gets its own answer, its own time and its own error."""

import asyncio
import itertools
import os
import signal
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import suppress
from math import inf
from typing import Any, Final

import psycopg
import pytest
import uvloop
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import DatabaseTimeout, SchemaNotReady, StorageError, ValueUnreadable
from billing_grpc.model import NO_WORKSPACE, BillingMode, StoredOverride
from billing_grpc.server.call import current_request_id
from billing_grpc.storage.postgres import PostgresRepository, shared_reads
from billing_grpc.storage.postgres.connection import Connection
from billing_grpc.storage.postgres.exchange import exchange
from billing_grpc.storage.postgres.overrides import Overrides, id_array, load_overrides
from tests.support.slow_network import slow_answers
from tests.support.victim import Victim
from tests.support.writes import BY, add

BUDGET: Final = 5.0
SLACK: Final = 0.5
"""Seconds that a busy machine may add."""

SUSPICIOUS: Final = 0.15
BYOK: Final = StoredOverride("byok")


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The database's owner, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def repository(service_url: str) -> AsyncIterator[PostgresRepository]:
    """A repository whose connections all stand."""
    async with PostgresRepository.opened(service_url, longest_budget=BUDGET) as opened:
        await until_idle(opened)
        yield opened


async def until_idle(repository: PostgresRepository) -> None:
    async with asyncio.timeout(BUDGET):
        while repository.pool_stats().idle < repository.pool_stats().size:
            await asyncio.sleep(0.01)


async def outcome(repository: PostgresRepository, workspace: str, budget: float = BUDGET) -> object:
    try:
        return await repository.load_override(workspace, budget=budget)
    except StorageError as error:
        return type(error)


def calls(repository: PostgresRepository, *workspaces: str, budget: float = BUDGET) -> "list[asyncio.Task[object]]":
    """Calls that have begun once the event loop had a turn: the first with a read of its own, the others wait for one."""
    return [asyncio.create_task(outcome(repository, each, budget)) for each in workspaces]


async def test_each_of_many_concurrent_callers_gets_its_own_answer(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    stored = {add(owner, mode): StoredOverride(mode) for mode in ("byok", "disabled", "platform_managed", None) * 8}
    expected = {**stored, **{str(uuid.uuid4()): NO_WORKSPACE for _ in range(8)}}
    asked = [*expected, *reversed(expected), *expected]
    assert await asyncio.gather(*calls(repository, *asked)) == [expected[each] for each in asked]


async def test_callers_that_wait_together_use_one_connection(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace, seen = add(owner, "byok"), set()
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE workspaces")
        waiting = calls(repository, *[workspace] * 32)
        began = time.monotonic()
        while time.monotonic() < began + SUSPICIOUS / 2:
            await asyncio.sleep(0.01)
            seen.add(repository.pool_stats().in_use)
    assert await asyncio.gather(*waiting) == [BYOK] * 32
    assert seen <= {0, 1}


async def test_a_read_never_answers_a_call_that_came_after_it_began(
    repository: PostgresRepository, owner: psycopg.Connection[Any], service_url: str
) -> None:
    workspace, arrived, delivered = add(owner, "byok"), asyncio.Event(), asyncio.Event()
    delivered.set()

    async def hold() -> None:
        arrived.set()
        await delivered.wait()

    async with (
        slow_answers(service_url, hold) as slow_url,
        PostgresRepository.opened(slow_url, longest_budget=BUDGET, size=1) as slow,
    ):
        await until_idle(slow)
        await slow.load_override(workspace, budget=BUDGET)  # from now on, a read is one round trip
        for before, after in itertools.pairwise(["byok", "disabled", "platform_managed", "byok"]):
            arrived.clear()
            delivered.clear()
            running = calls(slow, workspace)
            await arrived.wait()  # the answer is on its way
            await repository.save_override(workspace, BillingMode(after), by=BY, budget=BUDGET)
            late = calls(slow, *[workspace] * 3)
            await asyncio.sleep(0)
            delivered.set()
            assert await asyncio.gather(*late) == [StoredOverride(after)] * 3
            assert await asyncio.gather(*running) == [StoredOverride(before)]


async def test_every_write_is_seen_by_the_next_read_of_another_server(
    service_url: str, owner: psycopg.Connection[Any]
) -> None:
    workspaces = [add(owner, "byok") for _ in range(16)]
    until = time.monotonic() + 1

    async def write_then_read(workspace: str) -> None:
        while time.monotonic() < until:
            for mode in BillingMode:
                await one.save_override(workspace, mode, by=BY, budget=BUDGET)
                assert await other.load_override(workspace, budget=BUDGET) == StoredOverride(mode)

    async def read_all_the_time(repository: PostgresRepository) -> None:
        while time.monotonic() < until:
            for workspace in workspaces:
                await repository.load_override(workspace, budget=BUDGET)

    async with (
        PostgresRepository.opened(service_url, longest_budget=BUDGET) as one,
        PostgresRepository.opened(service_url, longest_budget=BUDGET) as other,
    ):
        await asyncio.gather(
            *map(write_then_read, workspaces), *(read_all_the_time(each) for each in (one, other) for _ in range(16))
        )


async def test_callers_that_go_away_cost_the_others_nothing(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE workspaces")
        waiting = calls(repository, *[workspace] * 20)
        await asyncio.sleep(SUSPICIOUS / 3)
        for each in waiting[::2]:
            each.cancel()
        await asyncio.sleep(2 * SUSPICIOUS)  # the others are in a read by now
        for each in waiting[1::4]:
            each.cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert answers[3::4] == [BYOK] * 5
    assert {type(each) for each in answers} == {asyncio.CancelledError, StoredOverride}
    assert await outcome(repository, workspace) == BYOK
    await until_idle(repository)


async def test_when_every_caller_that_waits_has_gone_nothing_is_read_for_them(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE workspaces")
        first, *others = calls(repository, *[workspace] * 10)
        await asyncio.sleep(0)
        for each in others:
            each.cancel()
        await asyncio.sleep(2 * SUSPICIOUS)  # by now the next read would have begun
        stats = repository.pool_stats()
        assert (stats.in_use, stats.waiting) == (1, 0)
    assert await first == BYOK
    assert await asyncio.gather(*calls(repository, workspace, workspace)) == [BYOK] * 2


async def test_a_caller_with_little_time_is_answered_in_it_and_cuts_no_read_short(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspace = add(owner, "byok")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE workspaces")
        began = time.monotonic()
        patient = calls(repository, workspace)
        await asyncio.sleep(0)
        # They wait for the same read, which begins once the first one has become suspicious.
        hurried = calls(repository, *[workspace] * 3, budget=0.05) + calls(repository, *[workspace] * 3, budget=0.3)
        patient += calls(repository, *[workspace] * 3)
        assert set(await asyncio.gather(*hurried)) == {DatabaseTimeout}
        assert time.monotonic() - began < 0.3 + SLACK
        assert not any(each.done() for each in patient)
        assert repository.pool_stats().in_use == 2
    assert await asyncio.gather(*patient) == [BYOK] * 4


async def test_an_error_of_a_shared_read_is_each_callers_own(
    repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    owner.execute("ALTER TABLE workspaces RENAME TO elsewhere")
    errors = await asyncio.gather(
        *(repository.load_override(workspace, budget=BUDGET) for _ in range(10)), return_exceptions=True
    )
    assert {type(each) for each in errors} == {SchemaNotReady}
    assert len({id(each) for each in errors}) == len(errors)


async def test_a_workspace_that_cannot_be_read_does_not_fail_its_neighbours(
    service_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("DROP TABLE workspaces")
    owner.execute(
        "CREATE TABLE workspaces (id uuid PRIMARY KEY, divisor int,"
        " llm_billing_mode text GENERATED ALWAYS AS ((1 / divisor)::text) VIRTUAL)"
    )
    owner.execute("GRANT SELECT ON workspaces TO PUBLIC")
    good, poisonous = [str(uuid.uuid4()) for _ in range(5)], str(uuid.uuid4())
    owner.execute("INSERT INTO workspaces SELECT unnest(%s::uuid[]), 1", [good])
    owner.execute("INSERT INTO workspaces VALUES (%s, 0)", [poisonous])
    async with PostgresRepository.opened(service_url, longest_budget=BUDGET) as repository:
        answers = await asyncio.gather(*calls(repository, good[0], poisonous, *good[1:], poisonous))
    assert answers == [StoredOverride("1"), ValueUnreadable, *[StoredOverride("1")] * 4, ValueUnreadable]


async def test_a_workspace_that_cannot_be_read_costs_its_neighbours_few_reads(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces, reads = [add(owner, "byok") for _ in range(64)], 0

    async def counted(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        nonlocal reads
        reads += 1
        if workspaces[20] in workspace_ids:
            raise ValueUnreadable
        return await load_overrides(connection, workspace_ids)

    monkeypatch.setattr(shared_reads, "load_overrides", counted)
    answers = await asyncio.gather(*calls(repository, *workspaces))
    assert answers == [*[BYOK] * 20, ValueUnreadable, *[BYOK] * 43]
    assert reads <= 2 + 2 * 6  # the first call's, the others', and two for each halving


async def test_calls_that_come_one_by_one_while_others_wait_share_a_read(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, reads = add(owner, "byok"), 0
    later: list[asyncio.Task[object]] = []

    async def counted(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        nonlocal reads
        reads += 1
        answer = await load_overrides(connection, workspace_ids)
        if reads == 1:
            later.extend(asyncio.create_task(after(turns)) for turns in range(16))
        return answer

    async def after(turns: int) -> object:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await outcome(repository, workspace)

    monkeypatch.setattr(shared_reads, "load_overrides", counted)
    monkeypatch.setattr(shared_reads, "_LONGEST_TURNS", BUDGET)  # of the turns alone
    assert await asyncio.gather(*calls(repository, workspace, workspace)) == [BYOK] * 2
    assert await asyncio.gather(*later) == [BYOK] * 16
    assert reads == 2


class CallsWithoutPause:
    """Calls of which the next one comes while the read of the last one runs, so that each read is followed by another."""

    def __init__(self, workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._workspace = workspace
        self._asked: list[asyncio.Task[object]] = []
        self._asking = True
        self.connections: set[Connection] = set()
        monkeypatch.setattr(shared_reads, "load_overrides", self._one_more_asks)

    async def begin(self, repository: PostgresRepository) -> None:
        """Ask, and return once a read runs."""
        self._repository = repository
        self._ask()
        while not self.connections:
            await asyncio.sleep(0)

    async def end(self) -> set[object]:
        """Ask no more; return the different answers."""
        self._asking = False
        return set(await asyncio.gather(*self._asked))

    def _ask(self) -> None:
        self._asked.extend(calls(self._repository, self._workspace))

    async def _one_more_asks(self, connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        self.connections.add(connection)
        if self._asking:
            self._ask()
        return await load_overrides(connection, workspace_ids)


async def test_decisions_without_pause_leave_the_only_connection_to_a_write_too(
    service_url: str, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = add(owner, "byok")
    monkeypatch.setattr(shared_reads, "_ONE_AFTER_ANOTHER", inf)
    decisions = CallsWithoutPause(workspace, monkeypatch)
    async with PostgresRepository.opened(service_url, longest_budget=BUDGET, size=1) as only:
        await decisions.begin(only)
        try:
            await only.save_override(workspace, BillingMode.DISABLED, by=BY, budget=BUDGET)
        finally:
            answers = await decisions.end()
    assert answers <= {BYOK, StoredOverride("disabled")}


async def test_decisions_without_pause_give_their_connection_back_to_the_pool(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = CallsWithoutPause(add(owner, "byok"), monkeypatch)
    await decisions.begin(repository)
    try:
        async with asyncio.timeout(BUDGET):
            while len(decisions.connections) == 1:
                await asyncio.sleep(0.01)
    finally:
        assert await decisions.end() == {BYOK}


async def test_a_suspicious_read_that_answers_late_takes_no_calls_from_the_one_that_runs(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, running, begun = add(owner, "byok"), set(), itertools.count()
    may_answer = [asyncio.Event(), asyncio.Event(), asyncio.Event()]

    async def held(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        number = next(begun)
        running.add(number)
        await may_answer[number].wait()
        running.discard(number)
        return await load_overrides(connection, workspace_ids)

    monkeypatch.setattr(shared_reads, "load_overrides", held)
    monkeypatch.setattr(shared_reads, "_ONE_AFTER_ANOTHER", inf)
    monkeypatch.setattr(shared_reads, "SUSPICIOUS_AFTER", 0.05)
    late = calls(repository, workspace)
    await asyncio.sleep(0.1)
    monkeypatch.setattr(shared_reads, "SUSPICIOUS_AFTER", BUDGET)
    following = calls(repository, workspace)
    while not running >= {0, 1}:
        await asyncio.sleep(0)
    gathered = calls(repository, workspace)
    may_answer[0].set()
    assert await asyncio.gather(*late) == [BYOK]
    await asyncio.sleep(0.05)
    assert running == {1}
    for each in may_answer:
        each.set()
    assert await asyncio.gather(*following, *gathered) == [BYOK] * 2
    assert not repository._shared_reads._running  # noqa: SLF001 - an answered read must end there, or it is severed later


# what happens: seconds for which the event loop stands after the first answer, its slow turns after that, the budgets of the
# two calls and the second answer. The database has 0.9 of a budget.
BETWEEN_TWO_READS: Final = {
    "the time of the first read ends": (0.8, 24, (1.0, BUDGET), BYOK),
    "the time of the second read ends": (0.95, 0, (BUDGET, 1.0), DatabaseTimeout),
}


@pytest.mark.parametrize(
    ("stands", "turns", "budgets", "second"), BETWEEN_TWO_READS.values(), ids=BETWEEN_TWO_READS.keys()
)
async def test_a_healthy_connection_survives_that_time_runs_out_between_two_reads(
    repository: PostgresRepository,
    owner: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    stands: float,
    turns: int,
    budgets: tuple[float, float],
    second: object,
) -> None:
    workspace = add(owner, "byok")
    used: list[Connection] = []

    async def slow_turns() -> None:
        for _ in range(turns):
            time.sleep(0.01)  # noqa: ASYNC251 - the event loop is busy
            await asyncio.sleep(0)

    async def slow(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        used.append(connection)
        answer = await load_overrides(connection, workspace_ids)
        if len(used) == 1:
            time.sleep(stands)  # noqa: ASYNC251 - the event loop stands
            turning.append(asyncio.create_task(slow_turns()))
        return answer

    monkeypatch.setattr(shared_reads, "load_overrides", slow)
    for constant in ("_ONE_AFTER_ANOTHER", "_LONGEST_TURNS", "SUSPICIOUS_AFTER"):
        monkeypatch.setattr(shared_reads, constant, inf)
    turning: list[asyncio.Task[None]] = []
    both = [calls(repository, workspace, budget=budget) for budget in budgets]
    assert [await each for (each,) in both] == [BYOK, second]
    await asyncio.gather(*turning)
    await until_idle(repository)
    assert not used[0].closed


async def test_each_of_the_reads_on_one_connection_has_a_time_of_its_own(
    repository: PostgresRepository, owner: psycopg.Connection[Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, reads = add(owner, "byok"), 0
    with psycopg.connect(database_url) as holder:

        async def locked_from_the_second_on(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
            nonlocal reads
            reads += 1
            if reads == 2:
                holder.execute("LOCK TABLE workspaces")
            return await load_overrides(connection, workspace_ids)

        monkeypatch.setattr(shared_reads, "load_overrides", locked_from_the_second_on)
        patient = calls(repository, workspace)
        await asyncio.sleep(0)
        hurried = calls(repository, workspace, budget=0.5)
        assert await asyncio.gather(*patient, *hurried) == [BYOK, DatabaseTimeout]
        async with asyncio.timeout(SLACK):  # the server itself would end the statement after four seconds
            while repository.pool_stats().in_use:
                await asyncio.sleep(0.01)


async def test_a_connection_whose_time_ran_out_as_it_answered_loses_no_call_that_waits(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = add(owner, "byok")
    used: list[Connection] = []

    async def expiring(connection: Connection, workspace_ids: Collection[str]) -> Overrides:
        answer = await load_overrides(connection, workspace_ids)
        if not used:
            (lease,) = repository._pool._leases.values()  # noqa: SLF001 - no clock can be met as exactly
            lease.expire()
        used.append(connection)
        return answer

    monkeypatch.setattr(shared_reads, "load_overrides", expiring)
    assert await asyncio.gather(*calls(repository, *[workspace] * 8)) == [BYOK] * 8
    assert used[0].closed
    assert used[1] is not used[0]


async def test_an_id_with_many_rows_does_not_fail_its_neighbours(
    service_url: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("DROP TABLE workspaces")
    owner.execute("CREATE TABLE workspaces (id uuid, llm_billing_mode text)")
    owner.execute("GRANT SELECT ON workspaces TO PUBLIC")
    doubled, good = str(uuid.uuid4()), str(uuid.uuid4())
    owner.execute("INSERT INTO workspaces SELECT %s, 'byok' FROM generate_series(1, 9)", [doubled])
    owner.execute("INSERT INTO workspaces VALUES (%s, 'byok')", [good])
    async with PostgresRepository.opened(service_url, longest_budget=BUDGET) as repository:
        assert await asyncio.gather(*calls(repository, good, doubled, good)) == [BYOK, ValueUnreadable, BYOK]


async def test_a_shared_read_logs_under_no_callers_request_id(
    repository: PostgresRepository, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    async def failing(*_: object) -> Overrides:
        seen.append(current_request_id.get(None))
        raise SchemaNotReady

    monkeypatch.setattr(shared_reads, "load_overrides", failing)
    workspace = add(owner, "byok")

    async def call(name: str) -> object:
        current_request_id.set(name)
        return await outcome(repository, workspace)

    assert await asyncio.gather(*(call(f"call-{at}") for at in range(4))) == [SchemaNotReady] * 4
    assert seen == [None, None]


ID: Final = "00000000-0000-4000-8000-000000000000"


MALFORMED: Final = {
    "empty": "",
    "a word": "byok",
    "an empty array": "{}",
    "two ids": f"{ID},{ID}",
    "an array": f"{{{ID}}}",
    "a line": f"{ID}\n",
    "upper case": ID[:-1] + "A",
    "another digit": ID[:-1] + "\uff10",
    "half a character": ID[:-1] + "\ud800",
    "too long": ID + "0",
    "a dash too early": ID.replace("0-4", "-04"),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_id_never_comes_into_a_batch(malformed: str) -> None:
    for ids in ([malformed], [ID, malformed], [malformed, ID], [malformed] * 1000):
        with pytest.raises(ValueError, match="canonical"):
            id_array(ids)


def test_the_ids_of_a_batch_go_to_the_database_as_they_are() -> None:
    ids = [str(uuid.uuid4()) for _ in range(1000)]
    assert id_array(ids) == f"{{{','.join(ids)}}}"
    assert id_array([]) == "{}"


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_id_never_comes_into_a_shared_read(
    malformed: str, repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    workspace = add(owner, "byok")
    good = calls(repository, *[workspace] * 4)
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="canonical"):
        await repository.load_override(malformed, budget=BUDGET)
    assert await asyncio.gather(*good) == [BYOK] * 4


async def test_a_hung_read_ends_in_time_and_holds_up_nobody_who_comes_later(victim: Victim) -> None:
    budget = 1.0
    with psycopg.connect(victim.url, autocommit=True) as connection:
        workspace = add(connection, "byok")
    async with PostgresRepository.opened(victim.service_url, longest_budget=budget) as repository:
        await until_idle(repository)
        with psycopg.connect(victim.url) as connection:
            query = "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'billing_grpc'"
            ((hung,),) = connection.execute(query).fetchall()
        os.kill(hung, signal.SIGSTOP)
        try:
            outcomes: list[object] = [BYOK]
            held_up, began = True, 0.0
            while outcomes == [BYOK]:  # until a call meets the hung session
                began = time.monotonic()
                first = calls(repository, workspace, budget=budget)
                # One call at a time goes through the connections in turn, so that this one meets the hung session.
                await asyncio.wait(first, timeout=SUSPICIOUS / 2)
                if first[0].done():
                    continue
                later = calls(repository, *[workspace] * 10, budget=budget)
                assert await asyncio.gather(*later) == [BYOK] * 10
                held_up = first[0].done()
                outcomes = await asyncio.gather(*first)
            assert outcomes == [DatabaseTimeout]
            assert not held_up
            assert time.monotonic() - began < budget + SLACK
            assert repository.available
        finally:
            with suppress(ProcessLookupError):
                os.kill(hung, signal.SIGCONT)
        assert await outcome(repository, workspace) == BYOK


class ClosedAndOpenedAgain:
    """libpq's connection; once it closes its socket because it is lost, `reopen` runs before anything else does."""

    def __init__(self, pgconn: Any, reopen: Callable[[], None]) -> None:
        self._pgconn = pgconn
        self._reopen = reopen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)

    def consume_input(self) -> None:
        """Read what has arrived."""
        try:
            self._pgconn.consume_input()
        except psycopg.OperationalError:
            asyncio.get_running_loop().call_soon(self._reopen)
            raise


async def test_a_lost_connection_does_not_stop_the_wait_of_one_that_gets_its_descriptor(service_url: str) -> None:
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    connection = await Connection.connect(service_url, autocommit=True)
    descriptor = connection.pgconn.socket
    ours, theirs = socket.socketpair()

    def reopen() -> None:
        os.dup2(ours.fileno(), descriptor)
        loop.add_reader(descriptor, woken.set)

    pgconn: Any = ClosedAndOpenedAgain(connection.pgconn, reopen)
    loop.call_later(0.05, connection.sever)
    with pytest.raises(psycopg.OperationalError):
        await exchange(pgconn, b"SELECT pg_catalog.pg_sleep(60)", [], "utf-8")
    try:
        theirs.send(b"!")
        async with asyncio.timeout(BUDGET):
            await woken.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        ours.close()
        theirs.close()
        await connection.close()


def reset(server: socket.socket) -> None:
    """Send a part of an answer, and reset the connection: its statement is still unread."""
    fields = b"SFATAL\0VFATAL\0C57P02\0Mgone\0\0"
    server.send(b"E" + struct.pack("!i", 4 + len(fields)) + fields)
    server.close()


def close_half(server: socket.socket) -> None:
    server.shutdown(socket.SHUT_WR)


LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LOST: Final[dict[str, tuple[int, Callable[[socket.socket], None]]]] = {
    "after part of an answer": (0, reset),
    "while a long statement is sent": (30 << 20, close_half),
}


@pytest.mark.parametrize("new_event_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(("length", "lose"), LOST.values(), ids=LOST)
def test_a_connection_that_is_lost_is_noticed_at_once(
    length: int,
    lose: Callable[[socket.socket], None],
    new_event_loop: Callable[[], asyncio.AbstractEventLoop],
    service_url: str,
) -> None:
    async def ask() -> None:
        connection = await Connection.connect(service_url, autocommit=True)
        client, server = socket.socketpair()
        client.settimeout(0)
        os.dup2(client.fileno(), connection.pgconn.socket)
        client.close()
        asyncio.get_running_loop().call_later(0.05, lose, server)
        try:
            async with asyncio.timeout(BUDGET):
                await exchange(connection.pgconn, b"SELECT length($1::text)", [b"x" * length], "utf-8")
        finally:
            await connection.close()
            server.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner, pytest.raises(psycopg.OperationalError):
        runner.run(ask())


@pytest.mark.parametrize("new_event_loop", LOOPS.values(), ids=LOOPS)
def test_a_wait_that_is_cancelled_as_its_answer_comes_ends_quietly(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop], service_url: str
) -> None:
    complaints: list[object] = []

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        connection = await Connection.connect(service_url, autocommit=True)
        try:
            waiting = asyncio.ensure_future(exchange(connection.pgconn, b"SELECT 1", [], "utf-8"))
            await asyncio.sleep(0)
            time.sleep(0.05)  # noqa: ASYNC251 - the answer arrives, and the loop does not notice yet
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(ask())
    assert complaints == []


@pytest.mark.parametrize("one_by_one", [True, False], ids=["decisions", "batches"])
async def test_callers_with_hardly_any_time_cost_no_connection(
    one_by_one: bool, repository: PostgresRepository, owner: psycopg.Connection[Any]
) -> None:
    def sessions() -> set[int]:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'billing_grpc'"
        return {pid for (pid,) in owner.execute(query)}

    workspace, before = add(owner, "byok"), sessions()
    failures = set()
    for budget in (0.0001, 0.0005, 0.001) * 30:
        try:
            if one_by_one:
                await repository.load_override(workspace, budget=budget)
            else:
                await repository.load_overrides([workspace], budget=budget)
        except StorageError as error:
            failures.add(type(error))
    assert failures == {DatabaseTimeout}
    await until_idle(repository)
    assert sessions() == before


async def test_a_shared_read_in_another_encoding_than_utf8_is_decoded(
    repository: PostgresRepository, owner: psycopg.Connection[Any], service_url: str
) -> None:
    owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
    workspace = add(owner, "büök")
    assert await outcome(repository, workspace) == StoredOverride("büök")
    async with PostgresRepository.opened(make_conninfo(service_url, client_encoding="latin1")) as other:
        assert await outcome(other, workspace) == StoredOverride("büök")
