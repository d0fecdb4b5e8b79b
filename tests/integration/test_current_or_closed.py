"""Only a current value opens: what a read says of its session and of its table, and what the answer is then."""

import asyncio
import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from billing_grpc.errors import DatabaseDenied, DatabaseStale, StorageError, ValueUnreadable
from billing_grpc.model import NO_WORKSPACE, BillingMode, ResolutionError, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.storage.postgres.overrides import elements, overrides_in
from billing_grpc.storage.postgres.reading import UnexpectedAnswer, record_in
from tests.support.writes import BY

BUDGET: Final = 5.0
ONE, OTHER = uuid.uuid4(), uuid.uuid4()
UNREADABLE: Final = ResolutionError(ValueUnreadable.reason, ValueUnreadable.public_message)


@pytest.fixture
def owner(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables' owner, in autocommit mode; there are no tables yet."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def repository_of(owner: psycopg.Connection[Any], **parameters: str) -> AsyncIterator[PostgresRepository]:
    url = make_conninfo(owner.info.dsn, host=owner.info.host, **parameters)
    async with PostgresRepository.opened(url, size=2) as repository:
        yield repository


async def assert_closed(repository: PostgresRepository, kind: type[StorageError]) -> None:
    for read in (
        repository.load_override(str(ONE), budget=BUDGET),
        repository.load_overrides([str(ONE), str(OTHER)], budget=BUDGET),
    ):
        with pytest.raises(kind):
            await read


PLAIN: Final = "CREATE TABLE stored (id uuid PRIMARY KEY, llm_billing_mode text)"
PARTITIONED: Final = "CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text) PARTITION BY HASH (id)"
PARTITION: Final = " FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
TABLES_THAT_CLOSE: Final[dict[str, tuple[LiteralString, ...]]] = {
    "a view": (PLAIN, "CREATE VIEW workspaces AS SELECT * FROM stored"),
    "a materialized view": (PLAIN, "CREATE MATERIALIZED VIEW workspaces AS SELECT * FROM stored"),
    "an unlogged table": ("CREATE UNLOGGED TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text)",),
    "an unlogged partition": (
        PARTITIONED,
        "CREATE UNLOGGED TABLE part PARTITION OF workspaces" + PARTITION,
    ),
    "an unlogged child": (
        "CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text)",
        "CREATE TABLE child () INHERITS (workspaces)",
        "CREATE UNLOGGED TABLE grandchild () INHERITS (child)",
    ),
}


@pytest.mark.parametrize("statements", TABLES_THAT_CLOSE.values(), ids=TABLES_THAT_CLOSE)
async def test_a_table_that_may_hold_old_values_closes(
    owner: psycopg.Connection[Any], statements: tuple[LiteralString, ...]
) -> None:
    for statement in statements:
        owner.execute(statement)
    async with repository_of(owner) as repository:
        with capture_logs() as logged:
            await assert_closed(repository, DatabaseStale)
        assert any("the table, or a partition of it, is" in line.get("text", "") for line in logged)


async def test_a_table_that_a_subscription_fills_closes(owner: psycopg.Connection[Any], database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as publisher:
        publisher.execute("CREATE PUBLICATION everything FOR TABLE workspaces")
    owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY, name text, llm_billing_mode text)")
    owner.execute("ALTER TABLE workspaces ADD created_at timestamptz, ADD updated_at timestamptz")
    owner.execute("INSERT INTO workspaces VALUES (%s, '', 'byok')", [ONE])
    async with repository_of(owner) as repository:
        assert await repository.load_override(str(ONE), budget=BUDGET) == StoredOverride("byok")
        owner.execute(
            "CREATE SUBSCRIPTION everything CONNECTION {} PUBLICATION everything"
            " WITH (create_slot = false, slot_name = NONE, enabled = false)".replace("{}", f"'{database_url}'")
        )
        try:
            await assert_closed(repository, DatabaseStale)
        finally:
            owner.execute("DROP SUBSCRIPTION everything")


async def test_a_partitioned_table_answers_and_an_id_in_two_partitions_closes(
    owner: psycopg.Connection[Any],
) -> None:
    owner.execute("CREATE TABLE workspaces (id uuid, region text, llm_billing_mode text) PARTITION BY LIST (region)")
    for region in ("eu", "us"):
        owner.execute(f"CREATE TABLE in_{region} PARTITION OF workspaces FOR VALUES IN ('{region}')")
    owner.execute("INSERT INTO workspaces VALUES (%s, 'eu', 'byok'), (%s, 'eu', 'byok')", [ONE, OTHER])
    async with repository_of(owner) as repository:
        assert await repository.load_override(str(ONE), budget=BUDGET) == StoredOverride("byok")
        owner.execute("INSERT INTO workspaces VALUES (%s, 'us', 'platform_managed')", [ONE])
        with pytest.raises(ValueUnreadable):
            await repository.load_override(str(ONE), budget=BUDGET)
        assert await repository.load_overrides([str(ONE), str(OTHER)], budget=BUDGET) == {
            str(ONE): UNREADABLE,
            str(OTHER): StoredOverride("byok"),
        }


async def test_an_id_with_several_rows_is_closed_in_every_read_and_never_written(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    owner.execute("CREATE TABLE workspaces (id uuid, region text, llm_billing_mode text)")
    await asyncio.to_thread(migrations.up, empty_database_url, allow_unsafe_table=True)
    for region, mode in (("eu", "byok"), ("us", "platform_managed"), ("ap", "byok")):
        owner.execute("INSERT INTO workspaces VALUES (%s, %s, %s)", [ONE, region, mode])
    owner.execute("INSERT INTO workspaces VALUES (%s, 'eu', 'byok')", [OTHER])
    async with repository_of(owner) as repository:
        for read in (
            repository.load_override(str(ONE), budget=BUDGET),
            repository.load_record(str(ONE), budget=BUDGET),
            repository.save_override(str(ONE), BillingMode.BYOK, by=BY, budget=BUDGET),
            # Three rows of one id fill an answer that has room for two of each.
            repository.load_overrides([str(ONE), str(OTHER)], budget=BUDGET),
        ):
            with pytest.raises(ValueUnreadable):
                await read
    stored = owner.execute("SELECT llm_billing_mode FROM workspaces WHERE id = %s ORDER BY region", [ONE])
    assert stored.fetchall() == [("byok",), ("byok",), ("platform_managed",)]


async def test_hidden_rows_close_whatever_the_session_says(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    await asyncio.to_thread(migrations.up, empty_database_url)
    await asyncio.to_thread(migrations.run_script, empty_database_url, migrations.grants())
    owner.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'platform_managed')", [ONE])
    owner.execute("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    async with repository_of(owner, user=migrations.SERVICE_ROLE, options="-c row_security=on") as repository:
        await assert_closed(repository, DatabaseDenied)
        for call in (
            repository.load_record(str(ONE), budget=BUDGET),
            repository.save_override(str(ONE), BillingMode.BYOK, by=BY, budget=BUDGET),
        ):
            with pytest.raises(DatabaseDenied):
                await call
        owner.execute("ALTER TABLE workspaces DISABLE ROW LEVEL SECURITY")
        owner.execute("ALTER TABLE workspace_billing_mode_changes ENABLE ROW LEVEL SECURITY")
        # Without the log's last entry a stale etag would look current.
        for hidden in (
            repository.load_record(str(ONE), budget=BUDGET),
            repository.save_override(str(ONE), BillingMode.BYOK, by=BY, budget=BUDGET),
            repository.list_changes(None, position=LogPosition(), limit=10, budget=BUDGET),
            repository.check_administration(budget=BUDGET),
        ):
            with pytest.raises(DatabaseDenied):
                await hidden


async def test_functions_of_the_tenants_own_answer_nothing(owner: psycopg.Connection[Any]) -> None:
    owner.execute("CREATE TABLE workspaces (id uuid PRIMARY KEY, llm_billing_mode text)")
    owner.execute("INSERT INTO workspaces VALUES (%s, 'platform_managed')", [ONE])
    # A better match than the catalog's own aggregate, which takes any type.
    owner.execute(
        "CREATE FUNCTION opens(text[], text) RETURNS text[] LANGUAGE sql IMMUTABLE"
        " AS $$ SELECT coalesce($1, '{}') || 'byok'::text $$"
    )
    owner.execute("CREATE AGGREGATE array_agg(text) (sfunc = opens, stype = text[])")
    async with repository_of(owner) as repository:
        assert await repository.load_override(str(ONE), budget=BUDGET) == StoredOverride("platform_managed")


async def test_sessions_that_became_read_only_are_replaced_at_once(
    owner: psycopg.Connection[Any], empty_database_url: str
) -> None:
    await asyncio.to_thread(migrations.up, empty_database_url)
    owner.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [ONE])
    database = conninfo_to_dict(empty_database_url)["dbname"]
    async with repository_of(owner) as repository:
        for _ in range(4):
            await repository.load_override(str(ONE), budget=BUDGET)
        # The living sessions take it up with the next statement; new ones begin with what their role says.
        owner.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        owner.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
        try:
            owner.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(0.3)
            assert await repository.load_override(str(ONE), budget=BUDGET) == StoredOverride("byok")
            change = await repository.save_override(str(ONE), BillingMode.DISABLED, by=BY, budget=BUDGET)
            assert change.current.override == StoredOverride("disabled")
        finally:
            owner.execute("ALTER SYSTEM RESET default_transaction_read_only")
            owner.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("attributes", ["any", "read-write"])
async def test_a_read_only_database_closes_until_it_accepts_writes(
    owner: psycopg.Connection[Any], empty_database_url: str, attributes: str
) -> None:
    await asyncio.to_thread(migrations.up, empty_database_url)
    owner.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [ONE])
    database = conninfo_to_dict(empty_database_url)["dbname"]
    owner.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    # "any" takes every server, as an operator may have written it.
    async with repository_of(owner, target_session_attrs=attributes) as repository:
        await assert_closed(repository, DatabaseStale)
        async with asyncio.timeout(BUDGET):
            while repository.available:  # known to be so, and answered at once
                await asyncio.sleep(0.05)
        assert isinstance(repository.last_error, DatabaseStale)
        for administration in (
            repository.load_record(str(ONE), budget=BUDGET),
            repository.save_override(str(ONE), BillingMode.DISABLED, by=BY, budget=BUDGET),
            repository.list_changes(None, position=LogPosition(), limit=10, budget=BUDGET),
            repository.check_administration(budget=BUDGET),
        ):
            with pytest.raises(DatabaseStale):
                await administration
        owner.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
        async with asyncio.timeout(BUDGET):
            while not repository.available:
                await asyncio.sleep(0.05)
        assert await repository.load_override(str(ONE), budget=BUDGET) == StoredOverride("byok")


RECORD: Final = ("current", "current", None, ONE, "byok", 7, None, "somebody", "role", "byok")


ROWS_THAT_DO_NOT_FIT: Final[dict[str, tuple[list[str], type[Exception]]]] = {
    "an id that was not asked for": ([f"{uuid.uuid4()}=byok"], UnexpectedAnswer),
    "another id beside the right one": ([f"{ONE}=byok", f"{uuid.uuid4()}=byok"], UnexpectedAnswer),
    "no id": (["byok"], UnexpectedAnswer),
    "nothing": ([""], UnexpectedAnswer),
    "an id in another spelling": ([f"{ONE}=byok".upper()], UnexpectedAnswer),
    "a text that is not set off": ([f"{ONE}byok"], UnexpectedAnswer),
    "one id too often": ([f"{ONE}=byok"] * 3 + [f"{OTHER}=byok"], ValueUnreadable),
}


@pytest.mark.parametrize(("rows", "error"), ROWS_THAT_DO_NOT_FIT.values(), ids=ROWS_THAT_DO_NOT_FIT)
def test_rows_that_do_not_fit_the_question_are_no_answer(rows: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        overrides_in([row.encode() for row in rows], [str(ONE), str(OTHER)], "utf-8")


OTHER_VALUES: Final = {
    "an array of numbers": "SELECT ARRAY[1, 2]",
    "an array of arrays": "SELECT ARRAY[ARRAY['a'], ARRAY['b']]",
    "an array with a NULL": "SELECT ARRAY['a', NULL]",
    "a text": "SELECT 'platform_managed'::text",
    "a short text": "SELECT 'byok'::text",
    "a number": "SELECT 1",
}


@pytest.mark.parametrize("query", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_a_value_of_another_kind_is_no_array_of_rows(query: str, owner: psycopg.Connection[Any]) -> None:
    value = owner.pgconn.exec_params(query.encode(), [], result_format=1).get_value(0, 0)
    assert value is not None
    with pytest.raises((UnexpectedAnswer, struct.error)):
        elements(value)


@pytest.mark.parametrize(
    "query", ["SELECT ARRAY['a', NULL]", "SELECT ARRAY[NULL, 'a', 'a']", "SELECT ARRAY[NULL::text]"]
)
def test_a_null_among_the_rows_is_no_answer(query: str, owner: psycopg.Connection[Any]) -> None:
    value = owner.pgconn.exec_params(query.encode(), [], result_format=1).get_value(0, 0)
    assert value is not None
    with pytest.raises(UnexpectedAnswer):
        elements(value)


@pytest.mark.parametrize("texts", [[], [""], ["a", "bc", "=", "\n", "ä" * 300]], ids=len)
def test_an_array_of_rows_is_read_as_it_is(texts: list[str], owner: psycopg.Connection[Any]) -> None:
    cursor = owner.cursor(binary=True).execute("SELECT %s::text[]", [texts])
    assert cursor.pgresult is not None
    value = cursor.pgresult.get_value(0, 0)
    assert value is not None
    assert [each.decode() for each in elements(value)] == texts


def test_a_text_that_cannot_be_decoded_is_marked_and_its_workspace_is_logged() -> None:
    with capture_logs() as logged:
        found = overrides_in(
            [f"{ONE}=byok".encode(), f"{OTHER}=byok".encode() + b"\xff"], [str(ONE), str(OTHER)], "utf-8"
        )
    assert found == {str(ONE): StoredOverride("byok"), str(OTHER): UNREADABLE}
    assert [(line["log_level"], line["workspace"]) for line in logged] == [("warning", str(OTHER))]


def test_a_record_of_another_workspace_is_no_answer() -> None:
    assert record_in([RECORD], ONE)[0].override == StoredOverride("byok")
    for rows, error in (
        ([RECORD, RECORD], ValueUnreadable),
        ([(*RECORD[:3], OTHER, *RECORD[4:])], UnexpectedAnswer),
        ([RECORD[:4]], ValueError),
    ):
        with pytest.raises(error):
            record_in(rows, ONE)


def test_an_id_that_is_not_in_the_answer_does_not_exist() -> None:
    assert overrides_in([], [str(ONE)], "utf-8") == {}
    assert overrides_in([str(ONE).encode()], [str(ONE), str(OTHER)], "utf-8") == {str(ONE): StoredOverride(None)}
    assert overrides_in([f"{ONE}=".encode()], [str(ONE)], "utf-8") == {str(ONE): StoredOverride("")}
    assert record_in([("current", "current", None, *[None] * 7)], ONE)[0].override == NO_WORKSPACE
