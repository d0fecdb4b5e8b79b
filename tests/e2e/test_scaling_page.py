"""What the page on scaling says about poolers and addresses, tried with a real PgBouncer and two servers."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from billing_grpc.client import BillingClient
from billing_grpc.model import BillingMode
from billing_grpc.server.settings.config import Settings
from billing_grpc.storage.postgres import parse_address
from tests.scaling import failover, idle
from tests.support.pooler import TRANSACTION, Pooler, running_pooler
from tests.support.servers import Serve
from tests.support.victim import Victim, running_victim
from tests.support.workspaces import add_workspace

PAGE: Final = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
(POOLER,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
# What differs here: sockets in the place of ports, and no passwords.
DIFFERS: Final = {
    "host=127.0.0.1 port=5432": "host={sockets} port=5432",
    "listen_addr = 0.0.0.0": "unix_socket_dir = {directory}\nunix_socket_mode = 0700\nadmin_users = {admin}",
    "listen_port = 6432": "listen_port = {port}",
    "auth_type = scram-sha-256": "auth_type = trust",
    "/etc/pgbouncer/users.txt": "{directory}/users",
}
SERVERS: Final = 2
CALLERS: Final = 32
ROUNDS: Final = 3


def differing() -> str:
    text = str(POOLER)
    for there, here in DIFFERS.items():
        assert there in text
        text = text.replace(there, here)
    return text


def of_pooler(setting: str) -> int:
    return int(re.findall(rf"^{setting} = (\d+)$", POOLER, re.MULTILINE)[0])


@pytest.fixture(scope="module")
def database() -> Iterator[Victim]:
    with running_victim() as running:
        yield running


@pytest.fixture(scope="module")
def pooler(database: Victim) -> Iterator[Pooler]:
    with running_pooler(database.sockets, database, TRANSACTION, differing()) as running:
        yield running


async def test_two_servers_share_the_few_sessions_of_the_pooler(database: Victim, pooler: Pooler, serve: Serve) -> None:
    modes = {add_workspace(database.url, mode.value): mode for mode in [*BillingMode] * 3}
    settings = {"DATABASE_URL": pooler.through(database.service_url), "MOLECULE_LLM_BILLING_MODE": "byok"}
    servers = [serve(settings=settings) for _ in range(SERVERS)]
    for server in servers:
        server.logged("database ready")
    clients = [BillingClient(server.address, timeout=10.0) for server in servers]
    seen: set[tuple[str, BillingMode, str]] = set()

    async def ask(number: int) -> None:
        client = clients[number % SERVERS]
        for _ in range(ROUNDS):
            for workspace in modes:
                resolution = await client.resolve(workspace)
                seen.add((workspace, resolution.mode, "" if resolution.error is None else resolution.error.reason))

    await asyncio.gather(*map(ask, range(CALLERS)))
    (pool,) = [each for each in pooler.ask("SHOW POOLS") if each["user"] == "billing_grpc"]
    for client in clients:
        await client.close()

    assert seen == {(workspace, mode, "") for workspace, mode in modes.items()}
    sessions = sum(int(str(pool[name])) for name in ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login"))
    assert 0 < sessions <= of_pooler("default_pool_size")
    connections = Settings.model_fields["database_connections"].default
    assert int(str(pool["cl_active"])) + int(str(pool["cl_waiting"])) == SERVERS * connections


def test_the_connections_of_the_page_are_those_of_its_formula() -> None:
    connections = Settings.model_fields["database_connections"].default
    (default,) = re.findall(r"(\d+) with two servers and the\s+default of (\d+), and (\d+) with 2", PAGE)

    assert [int(each) for each in default] == [
        (SERVERS + 1) * (connections + 1),
        connections,
        (SERVERS + 1) * (2 + 1),
    ]
    assert of_pooler("max_client_conn") > 100 * (SERVERS + 1) * (connections + 1)


@pytest.mark.parametrize(("name", "rows"), [("idle", len(idle.POOLS)), ("failover", len(failover.WAYS))])
def test_the_page_has_the_figures_of_every_measurement(name: str, rows: int) -> None:
    table = re.findall(rf"<!-- {name}: written by make scaling -->(.*?)<!-- end of {name} -->", PAGE, re.DOTALL)

    assert [len(each.strip().splitlines()) - len(("head", "line")) for each in table] == [rows]
    assert name != "failover" or re.findall(r"\d of [\d,]+", table[0]) == re.findall(r"0 of [\d,]+", table[0])


@pytest.mark.parametrize("url", re.findall(r"`(postgresql://\S+?)`", PAGE))
def test_every_address_of_the_page_is_accepted(url: str) -> None:
    assert parse_address(url)
