"""What was acknowledged survives the death of the server, also where its role prefers speed."""

from collections.abc import Iterator

import psycopg
import pytest

from billing_grpc.model import BillingMode, StoredOverride
from billing_grpc.storage.migrations import SERVICE_ROLE
from billing_grpc.storage.postgres import PostgresRepository
from tests.support.victim import Victim, running_victim
from tests.support.workspaces import add_workspace
from tests.support.writes import BY, overrides


@pytest.fixture
def durable() -> Iterator[Victim]:
    """A server that keeps what it has written, to a role that need not wait for that."""
    with running_victim(durable=True) as victim:
        with psycopg.connect(victim.url, autocommit=True) as owner:
            owner.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")  # what nobody waits for is written late
            owner.execute(f"ALTER ROLE {SERVICE_ROLE} SET synchronous_commit = off")
            owner.execute("SELECT pg_reload_conf()")
        yield victim


async def test_a_killed_server_forgets_no_acknowledged_change_and_gives_no_etag_twice(durable: Victim) -> None:
    workspace, etags = add_workspace(durable.url, "byok"), []
    for mode in (BillingMode.PLATFORM_MANAGED, BillingMode.DISABLED, BillingMode.PLATFORM_MANAGED):
        async with PostgresRepository.opened(durable.service_url) as repository:
            change = await repository.save_override(workspace, mode, by=BY, budget=5)
            durable.kill()
        durable.start()
        assert overrides(change)[1] == StoredOverride(mode.value)
        async with PostgresRepository.opened(durable.service_url) as repository:
            assert (await repository.load_record(workspace, budget=5)).etag == change.current.etag
            assert await repository.load_override(workspace, budget=5) == StoredOverride(mode.value)
        etags.append(change.current.etag)
    assert len(set(etags)) == len(etags)
