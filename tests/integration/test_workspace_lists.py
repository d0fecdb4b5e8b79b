"""The lists of all workspaces: equal to one call for each id, on a real Postgres and in memory, whatever is stored."""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from billing_grpc.client import BillingClient
from billing_grpc.errors import (
    DatabaseDenied,
    DatabaseStale,
    InvalidArgument,
    SchemaNotReady,
    StorageError,
    ValueUnreadable,
)
from billing_grpc.model import (
    BillingMode,
    BillingModeSource,
    BillingModeSummary,
    ModeCount,
    OverrideFilter,
    Resolution,
    WorkspaceBillingMode,
)
from billing_grpc.resolver import is_corrupt
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository, listing
from billing_grpc.storage.repository import Repository
from billing_grpc.testing import InMemoryRepository, running_server
from tests.databases import SQL_ASCII, unchecked_database
from tests.support.writes import add

BUDGET: Final = 10.0
TEXTS: Final = (
    None,
    "byok",
    "disabled",
    "platform_managed",
    "BYOK",
    " byok",
    "",
    "  ",
    "NULL",
    "byok\n",
    "b\u0443ok",
    "x" * 300,
)
DEFAULTS: Final = (None, "", "byok", " Disabled ", "platform_managed", "garbage")
NOT_UTF8: Final = b"byok\xff"
_ADD: Final = "INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, %s)"
_ADD_BYTES: Final = "INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, convert_from(%s, 'SQL_ASCII'))"
DATABASES: Final = ("postgres", "sql_ascii", "in_memory")


@pytest.fixture(scope="module")
def unchecked_url(cluster_url: str) -> Iterator[str]:
    with unchecked_database(cluster_url) as url:
        yield url


@pytest.fixture(scope="module")
def sql_ascii_url(cluster_url: str) -> Iterator[str]:
    with unchecked_database(cluster_url, SQL_ASCII) as url:
        yield url


@dataclass
class Organisation:
    """A server over some storage, a client of it, and what the test stores and publishes behind their backs."""

    run: asyncio.Runner
    client: BillingClient
    memory: InMemoryRepository | None
    url: str
    published: list[str | None]
    holds_bytes: bool

    def store(self, texts: list[str | bytes | None]) -> list[str]:
        """Replace all workspaces; return their ids in order. Bytes are stored as they are."""
        ids = [str(uuid.UUID(int=number << 90)) for number in range(len(texts))]
        if self.memory is not None:
            self.memory.overrides = {
                key: text for key, text in zip(ids, texts, strict=True) if not isinstance(text, bytes)
            }
            return ids
        with psycopg.connect(self.url, autocommit=True) as owner:
            owner.execute("DELETE FROM workspaces")
            for key, text in zip(ids, texts, strict=True):
                add = _ADD_BYTES if isinstance(text, bytes) else _ADD
                owner.execute(add, [key, text])
        return ids

    def listed(self, **filters: Any) -> list[WorkspaceBillingMode]:
        async def everything() -> list[WorkspaceBillingMode]:
            return [each async for each in self.client.workspaces(**filters)]

        return self.run.run(everything())

    def summary(self, org_default: str | None) -> BillingModeSummary:
        return self.run.run(self.client.summary(org_default=org_default))

    def batch(self, ids: list[str], org_default: str | None) -> list[Resolution]:
        return self.run.run(self.client.resolve_many(ids, org_default=org_default))

    def resolved(self, ids: list[str], org_default: str | None = None) -> list[Resolution]:
        async def one_by_one() -> list[Resolution]:
            return [await self.client.resolve(each, org_default=org_default) for each in ids]

        return self.run.run(one_by_one())


@pytest.fixture(scope="module", params=DATABASES)
def organisation(request: pytest.FixtureRequest) -> Iterator[Organisation]:
    memory = InMemoryRepository() if request.param == "in_memory" else None
    urls = {"postgres": "unchecked_url", "sql_ascii": "sql_ascii_url"}
    url = "" if memory is not None else request.getfixturevalue(urls[request.param])
    published: list[str | None] = [None]

    class Published:
        def current(self) -> str | None:
            return published[0]

        def reload(self) -> None:
            """Nothing to read again."""

    @asynccontextmanager
    async def storage() -> AsyncIterator[Repository]:
        if memory is not None:
            yield memory
            return
        as_service = make_conninfo(url, user=migrations.SERVICE_ROLE)
        async with PostgresRepository.opened(as_service, longest_budget=BUDGET) as repository:
            yield repository

    @asynccontextmanager
    async def client() -> AsyncIterator[BillingClient]:
        async with (
            storage() as repository,
            running_server(repository, org_default=Published(), storage_timeout=BUDGET) as address,
            BillingClient(address, timeout=30) as opened,
        ):
            yield opened

    with asyncio.Runner() as runner:
        opened = client()
        yield Organisation(
            runner, runner.run(opened.__aenter__()), memory, url, published, request.param == "sql_ascii"
        )
        runner.run(opened.__aexit__(None, None, None))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.sampled_from([*TEXTS, NOT_UTF8]) | st.text(st.characters(exclude_characters="\0"), max_size=8), max_size=12
    ),
    published=st.sampled_from(DEFAULTS),
    supposed=st.sampled_from(DEFAULTS),
    page_size=st.sampled_from([1, 2, 3, 1000]),
)
def test_lists_and_counts_are_the_resolution_of_each_workspace_one_by_one(
    organisation: Organisation,
    texts: list[str | bytes | None],
    published: str | None,
    supposed: str | None,
    page_size: int,
) -> None:
    if not organisation.holds_bytes:
        texts = [text for text in texts if not isinstance(text, bytes)]
    organisation.published[0] = published
    ids = organisation.store(texts)
    now, then = organisation.resolved(ids), organisation.resolved(ids, supposed)

    def unusual(each: Resolution) -> bool:
        return is_corrupt(each) or each.error is not None

    def listed(**filters: Any) -> list[Resolution]:
        return [each.resolution for each in organisation.listed(page_size=page_size, **filters)]

    assert listed() == now
    summary = organisation.summary(supposed)
    counted = Counter((each.mode, each.source) for each in now)
    assert {(each.mode, each.source): each.workspaces for each in summary.counts} == counted
    assert (summary.workspaces, summary.unrecognised_overrides) == (len(ids), sum(map(unusual, now)))
    moves = Counter(
        (a.mode, b.mode) for a, b in zip(now, then, strict=True) if supposed is not None and a.mode is not b.mode
    )
    assert {(each.from_mode, each.to_mode): each.workspaces for each in summary.moves} == moves
    assert organisation.batch(ids, supposed) == then
    for mode, source in itertools.product((None, *BillingMode), (None, *BillingModeSource)):
        wanted = [each for each in now if mode in {None, each.mode} and source in {None, each.source}]
        assert listed(mode=mode, source=source) == wanted
    present = [each for each in now if each.workspace_override is not None or each.error is not None]
    assert listed(override=OverrideFilter.PRESENT) == present
    assert listed(override=OverrideFilter.UNRECOGNISED) == [each for each in now if unusual(each)]
    if supposed is not None:
        assert listed(org_default=supposed) == then
        moved = [after for before, after in zip(now, then, strict=True) if before.mode is not after.mode]
        assert listed(org_default=supposed, would_change=True) == moved


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[BillingClient]:
    """A client of a server over this database, which it uses in the service's role."""
    as_service = make_conninfo(url, user=migrations.SERVICE_ROLE)
    async with (
        PostgresRepository.opened(as_service, longest_budget=BUDGET) as repository,
        running_server(repository, storage_timeout=BUDGET) as address,
        BillingClient(address, timeout=30) as client,
    ):
        yield client


async def everything(client: BillingClient, **filters: Any) -> list[WorkspaceBillingMode]:
    return [each async for each in client.workspaces(**filters)]


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the tables, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


async def test_a_list_shows_name_etag_and_last_change(owner: psycopg.Connection[Any], database_url: str) -> None:
    workspace = add(owner)
    owner.execute("UPDATE workspaces SET name = repeat('n', 300)")
    async with asking(database_url) as client:
        await client.set(workspace, BillingMode.BYOK)
        (found,) = await everything(client)
        assert found.name == "n" * 256
        got = await client.get(workspace)
        assert (found.etag, found.update_time, found.updated_by) == (got.etag, got.update_time, "local")
        await client.inherit(workspace, etag=found.etag)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workspaces DROP COLUMN name",
        "ALTER TABLE workspaces ALTER COLUMN name DROP NOT NULL; UPDATE workspaces SET name = NULL",
        "REVOKE SELECT ON workspaces FROM billing_grpc; GRANT SELECT (id, llm_billing_mode) ON workspaces TO billing_grpc",
    ],
    ids=["no such column", "null", "no right to read it"],
)
async def test_a_table_without_names_is_listed(change: str, owner: psycopg.Connection[Any], database_url: str) -> None:
    workspace = add(owner, "byok")
    async with asking(database_url) as client:
        assert len(await everything(client)) == 1
        owner.execute(change.encode())
        (found,) = await everything(client)
        assert (found.resolution.workspace_id, found.name) == (workspace, "")


async def test_names_of_another_type_are_shown_as_text(owner: psycopg.Connection[Any], database_url: str) -> None:
    add(owner)
    owner.execute("ALTER TABLE workspaces DROP COLUMN name; ALTER TABLE workspaces ADD COLUMN name jsonb DEFAULT '{}'")
    async with asking(database_url) as client:
        assert [each.name for each in await everything(client)] == ["{}"]


@pytest.mark.parametrize("page_size", [1, 2, 3])
async def test_a_row_without_an_id_is_no_workspace(
    page_size: int, owner: psycopg.Connection[Any], database_url: str
) -> None:
    workspaces = sorted(add(owner, "byok") for _ in range(2))
    owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_pkey, ALTER COLUMN id DROP NOT NULL")
    owner.execute("INSERT INTO workspaces (id) VALUES (NULL), (NULL)")
    async with asking(database_url) as client:
        found = await everything(client, page_size=page_size)
        assert [each.resolution.workspace_id for each in found] == workspaces
        summary = await client.summary()
        assert [(each.mode, each.workspaces) for each in summary.counts] == [(BillingMode.BYOK, 2)]


@pytest.mark.parametrize("page_size", [1, 2, 3])
async def test_an_id_with_several_rows_is_listed_once_and_closed(
    page_size: int, owner: psycopg.Connection[Any], database_url: str
) -> None:
    doubled, *others = sorted(add(owner, "byok") for _ in range(3))
    owner.execute("CREATE TABLE more () INHERITS (workspaces)")
    owner.execute("INSERT INTO more (id, llm_billing_mode) VALUES (%s, 'byok'), (%s, 'byok')", [doubled, doubled])
    async with asking(database_url) as client:
        found = [each.resolution for each in await everything(client, page_size=page_size)]
        assert [each.workspace_id for each in found] == [doubled, *others]
        assert [each.mode for each in found] == [BillingMode.PLATFORM_MANAGED, BillingMode.BYOK, BillingMode.BYOK]
        assert found == await client.resolve_many([doubled, *others])
        found = [each.resolution for each in await everything(client, mode=BillingMode.PLATFORM_MANAGED)]
        assert [(each.workspace_id, each.error and each.error.reason) for each in found] == [
            (doubled, "VALUE_UNREADABLE")
        ]


async def test_workspaces_in_partitions_are_listed_in_order(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text) PARTITION BY HASH (id)")
        for part in range(3):
            owner.execute(
                f"CREATE TABLE part_{part} PARTITION OF workspaces FOR VALUES WITH (MODULUS 3, REMAINDER {part})".encode()
            )
        await asyncio.to_thread(migrations.up, empty_database_url)
        migrations.run_script(empty_database_url, migrations.grants())
        ids = sorted(add(owner, "byok") for _ in range(20))
    async with asking(empty_database_url) as client:
        assert [each.resolution.workspace_id for each in await everything(client, page_size=3)] == ids


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY", DatabaseDenied),
        ("ALTER TABLE workspace_billing_mode_changes ENABLE ROW LEVEL SECURITY", DatabaseDenied),
        ("ALTER DATABASE {database} SET default_transaction_read_only = on", DatabaseStale),
        ("ALTER TABLE workspaces RENAME TO real; CREATE VIEW workspaces AS SELECT * FROM real", DatabaseStale),
        ("ALTER TABLE workspaces DROP COLUMN llm_billing_mode CASCADE", SchemaNotReady),
        ("DROP TABLE workspace_billing_mode_changes", SchemaNotReady),
        ("DROP TABLE workspaces", SchemaNotReady),
    ],
    ids=["hidden rows", "hidden changes", "read only", "a view", "no column", "no log", "no table"],
)
async def test_a_list_that_may_be_wrong_is_an_error_with_a_reason(
    change: str, error: type[StorageError], owner: psycopg.Connection[Any], database_url: str
) -> None:
    add(owner, "byok")
    owner.execute(change.format(database=owner.info.dbname).encode())
    owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO billing_grpc")
    async with asking(database_url) as client:
        with pytest.raises(error):
            await everything(client)
        if "changes" not in change:  # which a summary does not read
            with pytest.raises(error):
                await client.summary()


async def test_an_id_with_several_rows_is_counted_once_and_closed(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    doubled, _ = add(owner, "byok"), add(owner, "byok")
    owner.execute("CREATE TABLE more () INHERITS (workspaces)")
    owner.execute("INSERT INTO more (id, llm_billing_mode) VALUES (%s, 'byok'), (%s, NULL)", [doubled, doubled])
    async with asking(database_url) as client:
        found = await client.summary(org_default="byok")
    closed = ModeCount(BillingMode.PLATFORM_MANAGED, BillingModeSource.CONSTANT_FALLBACK, 1)
    own = ModeCount(BillingMode.BYOK, BillingModeSource.WORKSPACE_OVERRIDE, 1)
    assert (found.counts, found.unrecognised_overrides, found.moves) == ((closed, own), 1, ())


@pytest.mark.parametrize("table", ["id uuid", "id uuid PRIMARY KEY"], ids=["no key", "a key"])
async def test_a_summary_needs_no_primary_key(table: str, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute(f"CREATE TABLE workspaces ({table}, llm_billing_mode text)".encode())
        await asyncio.to_thread(migrations.up, empty_database_url, allow_unsafe_table=True)
        migrations.run_script(empty_database_url, migrations.grants())
        for _ in range(3):
            add(owner, "byok")
    async with asking(empty_database_url) as client:
        found = await client.summary()
        assert (found.workspaces, len(found.counts)) == (3, 1)
        assert len(await everything(client)) == 3


async def test_a_million_different_texts_are_one_row_of_the_summary(
    owner: psycopg.Connection[Any], database_url: str
) -> None:
    owner.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_llm_billing_mode_check")
    owner.execute(
        "INSERT INTO workspaces SELECT gen_random_uuid(), '', now(), now(), i::text FROM generate_series(1, 5000) AS i"
    )
    async with asking(database_url) as client:
        assert (await client.summary()).unrecognised_overrides == 5000


async def test_too_many_different_texts_of_any_bytes_are_an_error(sql_ascii_url: str) -> None:
    with psycopg.connect(sql_ascii_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO workspaces (id, llm_billing_mode)"
            " SELECT gen_random_uuid(), convert_from('\\xc3a9', 'SQL_ASCII') || i FROM generate_series(1, 1500) AS i"
        )
        try:
            async with asking(sql_ascii_url) as client:
                with pytest.raises(ValueUnreadable):
                    await client.summary()
        finally:
            owner.execute("DELETE FROM workspaces")


async def test_few_workspaces_among_many_are_found_over_pages_that_may_be_empty(
    owner: psycopg.Connection[Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_SEEN", 50)
    owner.execute("INSERT INTO workspaces (id) SELECT gen_random_uuid() FROM generate_series(1, 1000)")
    wanted = sorted(add(owner, "byok") for _ in range(3))
    async with asking(database_url) as client:
        found = await everything(client, mode=BillingMode.BYOK, page_size=2)
        assert [each.resolution.workspace_id for each in found] == wanted
        assert await everything(client, mode=BillingMode.DISABLED, page_size=2) == []


async def test_a_list_leaves_connections_to_decisions(owner: psycopg.Connection[Any], database_url: str) -> None:
    workspace = add(owner, "byok")
    async with asking(database_url) as client:
        with psycopg.connect(database_url) as other:
            # The log alone is locked: a decision does not read it.
            other.execute("LOCK TABLE workspace_billing_mode_changes IN ACCESS EXCLUSIVE MODE")
            waiting = [asyncio.create_task(everything(client)) for _ in range(20)]
            await asyncio.sleep(0.5)
            assert (await client.resolve(workspace, timeout=1)).mode is BillingMode.BYOK
            other.rollback()
        assert all(len(each) == 1 for each in await asyncio.gather(*waiting))


async def test_a_default_to_compare_with_is_needed_for_what_would_change() -> None:
    async with running_server(InMemoryRepository()) as address, BillingClient(address) as client:
        with pytest.raises(InvalidArgument) as refused:
            await everything(client, would_change=True)
        assert refused.value.reason == "FILTER_INVALID"
        assert [each.field for each in refused.value.violations] == ["would_change"]
