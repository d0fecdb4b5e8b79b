"""TLS and mutual TLS over real sockets: who gets in, who does not, and renewal without a restart."""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.credentials import Principals, token_digest
from billing_grpc.errors import SettingsError
from billing_grpc.principals_file import FixedPrincipals
from billing_grpc.rpc_server import Entrance
from billing_grpc.testing import InMemoryRepository, running_server
from billing_grpc.tls import TlsFiles
from tests.certificates import Authority, Issued

TOKEN: Final = "a-token"
NAMED: Final = f"""
[[principal]]
name = "controlplane"
role = "admin"
token_sha256 = ["{token_digest(TOKEN)}"]
certificate_uri = ["spiffe://example/controlplane"]
certificate_dns = ["controlplane.internal"]
"""
URI: Final = ("spiffe://example/controlplane",)
REQUEST: Final = service_pb.ResolveBillingModeRequest()


class Files:
    """The server's certificate, key and client CA on disk, and the authorities behind them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        self.renew()
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.clients.pem)

    def renew(self) -> Issued:
        issued = self.servers.issue(dns=("localhost",))
        self.certificate, self.key = issued.write(self.folder, "server")
        return issued

    @asynccontextmanager
    async def serving(self, security: Any) -> AsyncIterator[str]:
        tls = TlsFiles(self.certificate, self.key, self.ca)
        entrance = Entrance(FixedPrincipals(Principals.parse(NAMED)), tls=tls)
        address = TcpAddress("127.0.0.1", 0, security)
        async with running_server(InMemoryRepository(), entrance=entrance, address=address) as target:
            yield target

    async def ask(
        self, target: str, client: Issued | None = None, *, token: str | None = None, trust: bytes | None = None
    ) -> grpc.StatusCode:
        credentials = grpc.ssl_channel_credentials(
            trust or self.servers.pem,
            None if client is None else client.key,
            None if client is None else client.certificate,
        )
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            stub: Any = service_grpc.BillingModeServiceStub(channel)
            metadata = None if token is None else (("authorization", f"Bearer {token}"),)
            try:
                await stub.ResolveBillingMode(REQUEST, timeout=5, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_tls_takes_tokens_and_no_client_certificate(files: Files) -> None:
    async with files.serving("tls") as target:
        assert await files.ask(target, token=TOKEN) is grpc.StatusCode.OK
        assert await files.ask(target, token="wrong") is grpc.StatusCode.UNAUTHENTICATED
        assert await files.ask(target) is grpc.StatusCode.UNAUTHENTICATED
        # gRPC does not look at a certificate it did not ask for, so neither may we.
        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.UNAUTHENTICATED


async def test_mutual_tls_knows_a_client_by_uri_or_dns_name(files: Files) -> None:
    async with files.serving("mtls") as target:
        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.OK
        assert await files.ask(target, files.clients.issue(dns=("controlplane.internal",))) is grpc.StatusCode.OK
        assert await files.ask(target, files.clients.issue(dns=("else.internal",))) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_common_name_is_no_identity(files: Files) -> None:
    async with files.serving("mtls") as target:
        assert await files.ask(target, files.clients.issue()) is grpc.StatusCode.UNAUTHENTICATED


async def test_mutual_tls_refuses_the_handshake_of_everybody_else_and_goes_on(files: Files) -> None:
    stranger = Authority.new("strangers")
    async with files.serving("mtls") as target:
        assert await files.ask(target, None, token=TOKEN) is grpc.StatusCode.UNAVAILABLE
        assert await files.ask(target, stranger.issue(uris=URI)) is grpc.StatusCode.UNAVAILABLE
        assert await files.ask(target, files.clients.issue(uris=URI, expired=True)) is grpc.StatusCode.UNAVAILABLE
        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.OK


async def test_a_client_that_speaks_plain_text_gets_nowhere(files: Files) -> None:
    async with files.serving("tls") as target, grpc.aio.insecure_channel(target) as channel:
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ResolveBillingMode(REQUEST, timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_taken_up_under_running_connections(files: Files) -> None:
    async with files.serving("tls") as target, AsyncExitStack() as stack:
        credentials = grpc.ssl_channel_credentials(files.servers.pem)
        options = [("grpc.ssl_target_name_override", "localhost")]
        channel = await stack.enter_async_context(grpc.aio.secure_channel(target, credentials, options=options))
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        await stub.ResolveBillingMode(REQUEST, timeout=5, metadata=metadata)

        files.servers = Authority.new("the next authority")
        files.renew()

        assert await files.ask(target, token=TOKEN) is grpc.StatusCode.OK
        await stub.ResolveBillingMode(REQUEST, timeout=5, metadata=metadata)


async def test_a_new_client_authority_is_taken_up(files: Files) -> None:
    old = files.clients
    async with files.serving("mtls") as target:
        files.clients = Authority.new("the next authority")
        files.ca.write_bytes(files.clients.pem)

        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.OK
        assert await files.ask(target, old.issue(uris=URI)) is grpc.StatusCode.UNAVAILABLE


async def test_a_half_done_renewal_keeps_the_old_certificate_until_it_is_whole(files: Files) -> None:
    async with files.serving("tls") as target:
        renewed = files.servers.issue(dns=("localhost",))
        files.certificate.write_bytes(renewed.certificate)
        assert await files.ask(target, token=TOKEN) is grpc.StatusCode.OK
        files.key.write_bytes(b"")
        assert await files.ask(target, token=TOKEN) is grpc.StatusCode.OK
        files.key.write_bytes(renewed.key)
        assert await files.ask(target, token=TOKEN) is grpc.StatusCode.OK


def test_files_that_do_not_belong_together_are_refused_at_the_start(files: Files) -> None:
    files.key.write_bytes(files.servers.issue(dns=("localhost",)).key)
    with pytest.raises(SettingsError, match="not a certificate and its unencrypted key"):
        TlsFiles(files.certificate, files.key, None)


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
@pytest.mark.parametrize(
    "content", [None, b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n"], ids=["gone", "empty", "nonsense"]
)
def test_a_file_that_is_not_what_it_should_be_is_named(name: str, content: bytes | None, files: Files) -> None:
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)

    with pytest.raises(SettingsError) as refused:
        TlsFiles(files.certificate, files.key, files.ca)

    assert str(path) in str(refused.value)
    assert "BEGIN" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_a_unix_socket_has_the_mode_that_the_operator_set(mode: int) -> None:
    # A path of its own, short enough for a socket.
    path = Path(f"/tmp/billing-grpc-test-{os.getpid()}-{mode:o}.sock")  # noqa: S108 - gone when the server stops
    address: Address = UnixAddress(str(path))
    entrance = Entrance(local_admin=True, socket_mode=mode)
    umask = os.umask(0)
    try:
        async with running_server(InMemoryRepository(), entrance=entrance, address=address) as target:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            async with grpc.aio.insecure_channel(target) as channel:
                stub: Any = service_grpc.BillingModeServiceStub(channel)
                await stub.ResolveBillingMode(REQUEST, timeout=5)
    finally:
        os.umask(umask)
        path.unlink(missing_ok=True)
