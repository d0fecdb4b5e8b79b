"""The migrations and the statements of the service on the oldest PostgreSQL that this machine has."""

import uuid
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc.errors import DatabaseStale
from billing_grpc.model import BillingMode, ChangeKind, OverrideKinds, StoredOverride
from billing_grpc.page_token import LogPosition
from billing_grpc.storage import migrations
from billing_grpc.storage.postgres import PostgresRepository
from tests.support.older_postgres import running_older_postgres
from tests.support.workspaces import add_workspace, as_service
from tests.support.writes import BY

BUDGET: Final = 5.0


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A migrated server where the service has its role."""
    with running_older_postgres() as url:
        migrations.up(url)
        migrations.run_script(url, migrations.grants())
        yield url


def test_an_older_server_is_migrated_up_down_and_up_again(server_url: str) -> None:
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = make_conninfo(server_url, dbname=name)
    every = migrations.names()
    assert migrations.up(url) == every
    assert migrations.down(url, every=True) == every[::-1]
    assert migrations.up(url) == every


async def test_an_older_server_answers_every_call(server_url: str) -> None:
    changed, other, unknown = add_workspace(server_url), add_workspace(server_url, "disabled"), str(uuid.uuid4())
    byok, disabled = StoredOverride("byok"), StoredOverride("disabled")
    async with PostgresRepository.opened(as_service(server_url), longest_budget=BUDGET) as repository:
        await repository.check_administration(budget=BUDGET)
        log = await repository.list_changes(None, position=LogPosition(), limit=10, budget=BUDGET)
        change = await repository.save_override(other, BillingMode.BYOK, by=BY, budget=BUDGET)
        etag = change.previous.etag
        assert (await repository.save_override(other, None, by=BY, etag=etag, budget=BUDGET)).stale
        await repository.save_override(other, BillingMode.DISABLED, by=BY, etag=change.current.etag, budget=BUDGET)
        await repository.save_override(changed, BillingMode.BYOK, by=BY, budget=BUDGET)

        assert (await repository.load_record(changed, budget=BUDGET)).override == byok
        assert await repository.load_override(changed, budget=BUDGET) == byok
        found = await repository.load_overrides([changed, other, unknown], budget=BUDGET)
        assert found == {changed: byok, other: disabled}
        page = await repository.list_workspaces(OverrideKinds(), after=None, limit=10, budget=BUDGET)
        assert {each.workspace_id: each.override for each in page.workspaces} == found
        assert (await repository.count_overrides(budget=BUDGET)).workspaces == {byok: 1, disabled: 1}

        assert await repository.record_org_default(BillingMode.BYOK, server="host", origin="file", budget=BUDGET)
        newer = LogPosition(since=log.snapshot)
        entries = (await repository.list_changes(None, position=newer, limit=10, budget=BUDGET)).changes
        assert [(each.kind, each.workspace_id, each.new_override, each.principal) for each in entries] == [
            (ChangeKind.ORG_DEFAULT, "", "byok", ""),
            (ChangeKind.WORKSPACE, changed, "byok", BY.principal),
            (ChangeKind.WORKSPACE, other, "disabled", BY.principal),
            (ChangeKind.WORKSPACE, other, "byok", BY.principal),
        ]


async def test_a_standby_of_an_older_server_decides_nothing(server_url: str) -> None:
    workspace = add_workspace(server_url, "byok")
    with psycopg.connect(server_url) as owner:
        owner.execute("CREATE ROLE serializable LOGIN IN ROLE billing_grpc")
        owner.execute("ALTER ROLE serializable SET default_transaction_isolation = serializable")
    with running_older_postgres(primary=server_url) as url:
        for role in ("billing_grpc", "serializable"):
            async with PostgresRepository.opened(make_conninfo(url, user=role), longest_budget=BUDGET) as repository:
                with pytest.raises(DatabaseStale):
                    await repository.load_override(workspace, budget=BUDGET)
