"""The service behind a real PgBouncer that gives each transaction whichever session is free."""

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from billing_grpc.client import BillingClient
from billing_grpc.errors import SchemaNotReady, StorageError, WriteNotApplied
from billing_grpc.model import BillingMode, ChangeNote, Resolution, StoredOverride
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from tests.support.polling import until
from tests.support.pooler import POOL_SIZE, SESSION, TRANSACTION, Pooler, running_pooler
from tests.support.servers import Serve, Server, serving
from tests.support.victim import Victim
from tests.support.workspaces import add_workspace
from tests.support.writes import add

CALLERS: Final = 8
SECONDS: Final = 2.0
PAUSE: Final = 0.1
"""Seconds that a caller waits after three calls. The sessions change dozens of times in all."""
BUDGET: Final = 10.0
ABSENT: Final = "00000000-0000-4000-8000-00000000dead"


@pytest.fixture(scope="module")
def pooler(kept: Victim) -> Iterator[Pooler]:
    """In transaction mode, before the server of this module."""
    with running_pooler(kept.sockets, kept, TRANSACTION) as running:
        yield running


@pytest.fixture(scope="module")
def service(kept: Victim, pooler: Pooler) -> Iterator[Server]:
    """Asks through the pooler, for an organisation whose default is `byok`."""
    with serving() as serve:
        yield start(serve, pooler.through(kept.service_url))


def start(serve: Serve, url: str) -> Server:
    return serve(
        settings={
            "DATABASE_URL": url,
            "MOLECULE_LLM_BILLING_MODE": "byok",
            "BILLING_GRPC_STORAGE_TIMEOUT": str(BUDGET),
        }
    )


@asynccontextmanager
async def reconnecting(pooler: Pooler) -> AsyncIterator[None]:
    """New sessions all the while."""

    async def run() -> None:
        while True:
            await asyncio.to_thread(pooler.renew_sessions)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def short_lived(pooler: Pooler) -> AsyncIterator[None]:
    """Sessions that live for a second."""
    pooler.ask("SET server_lifetime = 1")
    try:
        yield
    finally:
        pooler.ask("SET server_lifetime = 3600")


RENEWALS: Final = {"RECONNECT": reconnecting, "server_lifetime": short_lived}


@contextmanager
def rows_hidden(url: str) -> Iterator[None]:
    """A policy lets the service's role see no row."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
        try:
            yield
        finally:
            owner.execute("ALTER TABLE workspaces DISABLE ROW LEVEL SECURITY")


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """A server whose every session is read-only."""
    with psycopg.connect(url, autocommit=True) as owner:

        def turn(statement: LiteralString, value: str) -> None:
            owner.execute(statement)
            owner.execute("SELECT pg_reload_conf()")
            until(lambda: owner.execute("SHOW default_transaction_read_only").fetchone() == (value,))

        turn("ALTER SYSTEM SET default_transaction_read_only = on", "on")
        try:
            yield
        finally:
            turn("ALTER SYSTEM RESET default_transaction_read_only", "off")


async def ask_for_a_while(client: BillingClient, workspaces: list[str]) -> Counter[tuple[str, ...]]:
    """Counts what many callers were told: workspace, mode, source and reason."""
    seen: Counter[tuple[str, ...]] = Counter()

    def note(resolution: Resolution) -> None:
        reason = "" if resolution.error is None else resolution.error.reason
        seen[resolution.workspace_id, resolution.mode.value, resolution.source.value, reason] += 1

    async def call(first: int) -> None:
        end = asyncio.get_running_loop().time() + SECONDS
        for number in itertools.count(first):
            if asyncio.get_running_loop().time() > end:
                return
            one = workspaces[number % len(workspaces)]
            note(await client.resolve(one))
            for resolution in [*await client.resolve_many([one]), *await client.resolve_many(workspaces)]:
                note(resolution)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(call(first) for first in range(CALLERS)))
    return seen


@pytest.mark.parametrize("renewed", RENEWALS.values(), ids=RENEWALS)
async def test_a_row_that_is_hidden_is_never_answered_as_the_organisation_s_default(
    kept: Victim, pooler: Pooler, service: Server, renewed: Callable[[Pooler], Any]
) -> None:
    closed = [add_workspace(kept.url, "platform_managed") for _ in range(3)]
    async with BillingClient(service.address, timeout=BUDGET) as client:
        with rows_hidden(kept.url):
            async with renewed(pooler):
                seen = await ask_for_a_while(client, closed)
    denied = {(each, "platform_managed", "constant_fallback", "DATABASE_DENIED") for each in closed}
    # On a busy machine the pooler may end a connection before it has a session again.
    lost = {(each, "platform_managed", "constant_fallback", "DATABASE_UNREACHABLE") for each in closed}
    assert denied <= seen.keys() <= denied | lost


@pytest.mark.parametrize("renewed", RENEWALS.values(), ids=RENEWALS)
async def test_each_workspace_gets_its_own_mode_and_every_call_its_answer(
    kept: Victim, pooler: Pooler, service: Server, renewed: Callable[[Pooler], Any]
) -> None:
    stored = {add_workspace(kept.url, mode.value): mode.value for mode in [*BillingMode] * 4}
    expected = {(each, mode, "workspace_override", "") for each, mode in stored.items()}
    expected.add((ABSENT, "byok", "org_default", ""))
    async with BillingClient(service.address, timeout=BUDGET) as client, renewed(pooler):
        seen = await ask_for_a_while(client, [*stored, ABSENT])
    assert seen.keys() == expected


@pytest.mark.parametrize("mode", [SESSION, TRANSACTION])
def test_what_a_pooler_remembers_keeps_nobody_from_a_server_that_is_writable_now(kept: Victim, mode: str) -> None:
    workspace = add_workspace(kept.url, "byok")
    with running_pooler(kept.sockets, kept, mode) as pooler, serving() as serve:
        with read_only(kept.url):
            service = start(serve, pooler.through(kept.service_url))
            assert service.resolve(workspace).error.reason == "DATABASE_STALE"
        until(lambda: not service.resolve(workspace).HasField("error"))
        with psycopg.connect(pooler.through(kept.service_url)) as another:
            assert another.pgconn.parameter_status(b"default_transaction_read_only") == b"on"  # it still says so


async def persistently(write: Callable[[], Awaitable[object]]) -> None:
    """Makes a write until it works: RECONNECT may refuse one. Repeating one that was made changes nothing."""
    while True:
        with suppress(StorageError, psycopg.OperationalError):
            await write()
            return


async def update(url: str, workspace: str, mode: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as another:
        statement = "UPDATE workspaces SET llm_billing_mode = %s WHERE id = %s"
        await another.execute(statement, [mode, workspace], prepare=False)


async def test_each_change_is_recorded_for_its_own_principal_and_for_no_other(kept: Victim, pooler: Pooler) -> None:
    shared = add_workspace(kept.url, "disabled")
    own = {f"principal-{number}": add_workspace(kept.url, "disabled") for number in range(CALLERS)}
    through = pooler.through(kept.service_url)

    async def write(repository: PostgresRepository, principal: str) -> None:
        for number, mode in enumerate([BillingMode.BYOK, BillingMode.DISABLED] * 5):
            for workspace in (own[principal], shared):
                by = ChangeNote(principal, f"{principal} {number}", f"request of {principal}")
                await persistently(partial(repository.save_override, workspace, mode, by=by, budget=BUDGET))

    async def write_unannounced() -> None:
        for mode in ["byok", "disabled"] * 20:
            await persistently(partial(update, through, unannounced, mode))

    unannounced = add_workspace(kept.url, "disabled")
    async with PostgresRepository.opened(through, longest_budget=BUDGET) as repository, reconnecting(pooler):
        calls: list[Awaitable[None]] = [write(repository, principal) for principal in own]
        await asyncio.gather(*calls, write_unannounced())

    with psycopg.connect(kept.url) as owner:
        entries = owner.execute(
            "SELECT workspace_id::text, principal, reason, request_id FROM workspace_billing_mode_changes"
            " WHERE database_user = 'billing_grpc'"
        ).fetchall()
    said = Counter(workspace for workspace, *_ in entries if workspace in {*own.values(), unannounced})
    assert said == {**dict.fromkeys(own.values(), 10), unannounced: 40}
    for workspace, principal, reason, request_id in entries:
        if workspace == unannounced:
            assert (principal, reason, request_id) == ("", "", "")
        elif workspace in {shared, *own.values()}:
            assert workspace in {shared, own[principal]}
            assert (reason.split()[0], request_id) == (principal, f"request of {principal}")


# id: what another session does to the table while a read waits for its lock; the workspace stays closed all the while
REWRITES: Final[dict[str, tuple[LiteralString, ...]]] = {
    "rewritten": ("ALTER TABLE workspaces ADD COLUMN {column} float8 DEFAULT random()",),
    "loaded anew": (
        "CREATE TEMPORARY TABLE kept_rows ON COMMIT DROP AS SELECT * FROM workspaces",
        "TRUNCATE workspaces",
        "INSERT INTO workspaces SELECT * FROM kept_rows",
    ),
}


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("statements", REWRITES.values(), ids=REWRITES)
async def test_a_read_that_waits_for_a_new_table_sees_what_is_in_it(
    kept: Victim, pooler: Pooler, statements: tuple[LiteralString, ...], level: LiteralString
) -> None:
    closed = add_workspace(kept.url, "platform_managed")
    role = "ALTER ROLE billing_grpc SET default_transaction_isolation = "
    with psycopg.connect(kept.url, autocommit=True) as owner:
        owner.execute(role + f"'{level}'")
        try:
            pooler.renew_sessions()
            async with PostgresRepository.opened(pooler.through(kept.service_url), longest_budget=BUDGET) as repository:
                assert (await repository.load_override(closed, budget=BUDGET)).text == "platform_managed"
                column = "c" + uuid.uuid4().hex
                with psycopg.connect(kept.url) as other:
                    for statement in statements:
                        other.execute(statement.replace("{column}", column))
                    reading = asyncio.create_task(repository.load_override(closed, budget=BUDGET))
                    await asyncio.to_thread(
                        until, lambda: owner.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall()
                    )
                assert (await reading).text == "platform_managed"
        finally:
            owner.execute("ALTER ROLE billing_grpc RESET default_transaction_isolation")
            pooler.renew_sessions()


async def test_a_transaction_timeout_of_the_role_ends_no_call_that_waits(kept: Victim, pooler: Pooler) -> None:
    workspace = add_workspace(kept.url, "byok")
    with psycopg.connect(kept.url, autocommit=True) as owner:
        owner.execute("ALTER ROLE billing_grpc SET transaction_timeout = '50ms'")
        try:
            pooler.renew_sessions()
            async with PostgresRepository.opened(pooler.through(kept.service_url), longest_budget=BUDGET) as repository:
                with psycopg.connect(kept.url) as other:
                    other.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
                    read = asyncio.create_task(repository.load_override(workspace, budget=BUDGET))
                    await asyncio.sleep(1)  # a read that loses its session is repeated for a while
                assert await read == StoredOverride("byok")
        finally:
            owner.execute("ALTER ROLE billing_grpc RESET transaction_timeout")
            pooler.renew_sessions()


async def test_a_session_that_another_client_led_elsewhere_closes(kept: Victim, pooler: Pooler) -> None:
    closed = add_workspace(kept.url, "platform_managed")
    through = pooler.through(kept.service_url)
    with psycopg.connect(kept.url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA elsewhere")
        owner.execute("CREATE TABLE elsewhere.workspaces (id uuid PRIMARY KEY, llm_billing_mode text)")
        owner.execute("GRANT USAGE ON SCHEMA elsewhere TO billing_grpc")
        owner.execute("GRANT SELECT ON elsewhere.workspaces TO billing_grpc")
        try:
            async with PostgresRepository.opened(through, size=2, longest_budget=BUDGET) as repository:
                with ExitStack() as clients:
                    others = [clients.enter_context(psycopg.connect(through)) for _ in range(POOL_SIZE)]
                    for other in others:  # all transactions at once, so that each has a session of its own
                        other.execute("SET search_path = elsewhere", prepare=False)
                    for other in others:
                        other.commit()
                for _ in range(10):
                    with pytest.raises(SchemaNotReady):
                        await repository.load_override(closed, budget=BUDGET)
                pooler.renew_sessions()
                assert (await repository.load_override(closed, budget=BUDGET)).text == "platform_managed"
        finally:
            owner.execute("DROP SCHEMA elsewhere CASCADE")
            pooler.renew_sessions()


@pytest.mark.parametrize("given", ["in the address", "in the environment"])
async def test_options_that_the_pooler_drops_close(
    kept: Victim, pooler: Pooler, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = add_workspace(kept.url, "platform_managed")
    pooler.ask("SET ignore_startup_parameters = 'options'")
    try:
        options = "-c search_path=public"
        url = pooler.through(kept.service_url)
        if given == "in the address":
            url = make_conninfo(url, options=options)
        else:
            monkeypatch.setenv("PGOPTIONS", options)
        async with PostgresRepository.opened(url, size=2) as repository:
            with pytest.raises(SchemaNotReady):
                await repository.load_override(closed, budget=BUDGET)
    finally:
        pooler.ask("SET ignore_startup_parameters = ''")


def test_a_pooler_that_keeps_no_transaction_is_named_at_start_and_decisions_work(kept: Victim) -> None:
    workspace = add_workspace(kept.url, "byok")
    with running_pooler(kept.sockets, kept, "statement") as statement_pooler, serving() as serve:
        service = start(serve, statement_pooler.through(kept.service_url))
        service.logged("administration does not work", reason=SchemaNotReady.reason)
        assert "pool_mode" in service.logged("storage failed", reason=SchemaNotReady.reason)["text"]
        for _ in range(50):
            assert not service.resolve(workspace).HasField("error")
            time.sleep(0.05)  # the check of administration loses its connection meanwhile, more than once


CHILDREN: Final[dict[str, LiteralString]] = {
    "partitions": (
        "CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text) PARTITION BY HASH (id);"
        "CREATE TABLE part PARTITION OF workspaces FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
    ),
    "a child that is gone": (
        "CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text);"
        "CREATE TABLE child () INHERITS (workspaces); DROP TABLE child"
    ),
}


@pytest.mark.parametrize("table", CHILDREN.values(), ids=CHILDREN)
async def test_a_write_to_a_table_with_children_is_one_transaction(
    kept: Victim, pooler: Pooler, table: LiteralString
) -> None:
    name = "children_" + uuid.uuid4().hex
    with psycopg.connect(kept.url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = make_conninfo(kept.url, dbname=name)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(table)
        await asyncio.to_thread(migrations.up, url)
        await asyncio.to_thread(migrations.run_script, url, migrations.grants())
        workspace = add(owner, "platform_managed")
        through = make_conninfo(pooler.through(kept.service_url), dbname=name)
        by = ChangeNote("alice", "a reason", "request-1")
        async with PostgresRepository.opened(through, size=2, longest_budget=BUDGET) as repository:
            change = await repository.save_override(workspace, BillingMode.DISABLED, by=by, budget=BUDGET)
            assert change.current.changed_by == "alice"
            owner.execute(
                "CREATE FUNCTION opens() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN NEW.llm_billing_mode = 'byok'; RETURN NEW; END $$"
            )
            owner.execute("CREATE TRIGGER opens BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION opens()")
            with pytest.raises(WriteNotApplied):
                await repository.save_override(workspace, BillingMode.PLATFORM_MANAGED, by=by, budget=BUDGET)
            assert (await repository.load_override(workspace, budget=BUDGET)).text == "disabled"
