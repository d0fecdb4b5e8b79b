"""Client certificates over the life of a connection: each call is judged by what holds when it arrives."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc.experimental import session_cache

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import TcpAddress
from billing_grpc.server.auth.principals_file import PrincipalsFile
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.certificates import Authority, Issued

URI: Final = ("spiffe://example/controlplane",)
NAMED: Final = f'[[principal]]\nname = "controlplane"\nrole = "admin"\ncertificate_uri = ["{URI[0]}"]\n'
NOBODY: Final = '[[principal]]\nname = "else"\nrole = "admin"\ncertificate_uri = ["spiffe://example/else"]\n'
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED


class Site:
    """A mutual-TLS listener whose files a test may change, and clients of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        self.ca, self.principals = folder / "ca.crt", folder / "tokens.toml"
        self.ca.write_bytes(self.clients.pem)
        self.principals.write_text(NAMED)
        self.certificate, self.key = self.servers.issue(dns=("localhost",)).write(folder, "server")
        self.target = ""

    def access_policy(self) -> AccessPolicy:
        return AccessPolicy(
            # Under local admin, so that whoever falls through would be let in as `local`.
            PrincipalsFile(self.principals),
            local_admin=True,
            tls=TlsFiles(self.certificate, self.key, self.ca),
        )

    @asynccontextmanager
    async def connected(self, client: Issued, sessions: Any = None) -> AsyncIterator[Any]:
        credentials = grpc.ssl_channel_credentials(self.servers.pem, client.key, client.certificate)
        options: list[tuple[str, Any]] = [
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            *([] if sessions is None else [("grpc.ssl_session_cache", sessions)]),
        ]
        async with grpc.aio.secure_channel(self.target, credentials, options=options) as channel:
            yield service_grpc.BillingModeServiceStub(channel)


async def ask(stub: Any) -> grpc.StatusCode:
    try:
        await stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    address = TcpAddress("127.0.0.1", 0, "mtls")
    async with running_server(InMemoryRepository(), access_policy=site.access_policy(), address=address) as site.target:
        yield site


async def test_a_certificate_that_ends_is_refused_on_its_open_connection(site: Site) -> None:
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    async with site.connected(site.clients.issue(uris=URI, ends=ends)) as stub:
        assert await ask(stub) is OK
        await asyncio.sleep(2.5)
        assert await ask(stub) is REFUSED


async def test_a_certificate_that_has_ended_is_refused_in_a_resumed_session(site: Site) -> None:
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    client = site.clients.issue(uris=URI, ends=ends)
    sessions = session_cache.ssl_session_cache_lru(8)  # type: ignore[no-untyped-call]
    async with site.connected(client, sessions) as stub:
        assert await ask(stub) is OK
    await asyncio.sleep(2.5)
    async with site.connected(client, sessions) as stub:
        assert await ask(stub) is REFUSED
    # A handshake of its own fails: what was refused above had resumed a session.
    async with site.connected(client) as stub:
        assert await ask(stub) is grpc.StatusCode.UNAVAILABLE


async def test_open_connections_lose_a_client_authority_that_is_taken_out_of_the_file(site: Site) -> None:
    other = Authority.new("other clients")
    site.ca.write_bytes(site.clients.pem + other.pem)
    async with (
        site.connected(site.clients.issue(uris=URI)) as leaving,
        site.connected(other.issue(uris=URI)) as staying,
    ):
        assert [await ask(leaving), await ask(staying)] == [OK, OK]
        site.ca.write_bytes(other.pem)
        assert [await ask(leaving), await ask(staying)] == [REFUSED, OK]


async def test_a_client_of_an_authority_in_between_is_known_until_the_root_goes(site: Site) -> None:
    between = Authority.new("between", by=site.clients)
    issued = between.issue(uris=URI)
    async with site.connected(Issued(issued.certificate + between.pem, issued.key)) as stub:
        assert await ask(stub) is OK
        site.ca.write_bytes(Authority.new("other clients").pem)
        assert await ask(stub) is REFUSED


async def test_a_name_taken_out_of_the_tokens_file_is_nobody_on_an_open_connection(site: Site) -> None:
    async with site.connected(site.clients.issue(uris=URI)) as stub:
        assert await ask(stub) is OK
        site.principals.write_text(NOBODY)
        assert await ask(stub) is REFUSED
