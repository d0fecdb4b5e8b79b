"""TLS and mutual TLS over real sockets: who gets in, who does not, and renewal without a restart."""

import asyncio
import datetime as dt
import errno
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from structlog.testing import capture_logs

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import Address, TcpAddress, UnixAddress
from billing_grpc.errors import SettingsError
from billing_grpc.server.auth.principals import Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.certificates import SERIALS, Authority, Issued

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
        access_policy = AccessPolicy(FixedPrincipals(Principals.parse(NAMED)), tls=tls)
        address = TcpAddress("127.0.0.1", 0, security)
        async with running_server(InMemoryRepository(), access_policy=access_policy, address=address) as target:
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


def handshake(target: str, version: ssl.TLSVersion, trust: bytes) -> str | None:
    """What a client that speaks this version alone agrees on with the server; None if the server refuses the version."""
    context = ssl.create_default_context(cadata=trust.decode())
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # otherwise the client itself refuses old versions
    context.set_alpn_protocols(["h2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are
        context.minimum_version = context.maximum_version = version
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                return secure.version()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError):  # gRPC sends no alert
            return None


@pytest.mark.parametrize("security", ["tls", "mtls"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda each: each.name)
async def test_a_client_of_an_old_version_is_refused(files: Files, security: str, version: ssl.TLSVersion) -> None:
    async with files.serving(security) as target:
        assert await asyncio.to_thread(handshake, target, version, files.servers.pem) is None


@pytest.mark.parametrize(
    ("version", "agreed"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
async def test_tls_1_2_and_1_3_are_spoken(files: Files, version: ssl.TLSVersion, agreed: str) -> None:
    async with files.serving("tls") as target:
        assert await asyncio.to_thread(handshake, target, version, files.servers.pem) == agreed


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


def pem_of(key: Any, encryption: serialization.KeySerializationEncryption | None = None) -> bytes:
    written: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption()
    )
    return written


def self_signed(key: Any, ends: dt.datetime | None = None) -> Issued:
    """A certificate for localhost that is its own authority."""
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "itself")])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), next(SERIALS))
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(ends or now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, digest)
    )
    return Issued(certificate.public_bytes(serialization.Encoding.PEM), pem_of(key))


# id: how to make a key, and whether gRPC completes handshakes with it
KEYS: Final[dict[str, tuple[Callable[[], Any], bool]]] = {
    "RSA 2048": (lambda: rsa.generate_private_key(65537, 2048), True),
    "RSA 3072": (lambda: rsa.generate_private_key(65537, 3072), True),
    "P-256": (lambda: ec.generate_private_key(ec.SECP256R1()), True),
    "P-384": (lambda: ec.generate_private_key(ec.SECP384R1()), True),
    "P-521": (lambda: ec.generate_private_key(ec.SECP521R1()), False),
    "P-224": (lambda: ec.generate_private_key(ec.SECP224R1()), False),
    "secp256k1": (lambda: ec.generate_private_key(ec.SECP256K1()), False),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, False),
    "Ed448": (ed448.Ed448PrivateKey.generate, False),
}


@pytest.mark.parametrize(("new", "usable"), KEYS.values(), ids=KEYS)
async def test_a_key_that_grpc_cannot_use_is_refused_at_the_start_and_every_other_serves(
    new: Callable[[], Any], usable: bool, files: Files
) -> None:
    issued = self_signed(new())
    issued.write(files.folder, "server")
    if usable:
        async with files.serving("tls") as target:
            assert await files.ask(target, token=TOKEN, trust=issued.certificate) is grpc.StatusCode.OK
    else:
        with pytest.raises(SettingsError, match="use RSA of 2048 bits or more, P-256 or P-384") as refused:
            TlsFiles(files.certificate, files.key, None)
        assert str(files.certificate) in str(refused.value)


def test_a_short_rsa_key_is_refused_even_where_openssl_takes_it(files: Files) -> None:
    self_signed(rsa.generate_private_key(65537, 2040)).write(files.folder, "server")  # noqa: S505 - it is refused
    with pytest.raises(SettingsError, match=re.escape(str(files.certificate))):
        TlsFiles(files.certificate, files.key, None)


async def test_a_renewal_with_a_key_that_grpc_cannot_use_keeps_the_old_one_and_says_so(files: Files) -> None:
    async with files.serving("tls") as target:
        before = files.servers
        self_signed(ec.generate_private_key(ec.SECP256K1())).write(files.folder, "server")
        with capture_logs() as logs:
            assert await files.ask(target, token=TOKEN, trust=before.pem) is grpc.StatusCode.OK
    assert broken(logs)
    assert "gRPC cannot use this kind of key" in str(logs)


def broken(logs: Any) -> list[Any]:
    return [
        entry
        for entry in logs
        if (entry["log_level"], entry["event"]) == ("error", "TLS files are broken, the old ones stay in force")
    ]


@pytest.mark.parametrize("year", [None, 2051], ids=["UTCTime", "GeneralizedTime"])
@pytest.mark.parametrize("expired", [False, True])
def test_an_expired_certificate_is_warned_of_with_its_end(
    expired: bool, year: int | None, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    ends = now.replace(year=year, day=1) if year else now - dt.timedelta(days=1)
    self_signed(ec.generate_private_key(ec.SECP256R1()), ends).write(files.folder, "server")
    then = ends + dt.timedelta(seconds=1 if expired else -1)
    clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda _: then), UTC=dt.UTC)
    monkeypatch.setattr("billing_grpc.server.net.tls.dt", clock)

    with capture_logs() as logs:
        tls = TlsFiles(files.certificate, files.key, None)
    warned = [(entry["log_level"], entry["ended"]) for entry in logs if "expired" in entry["event"]]
    with capture_logs() as logs:
        tls.reload()

    assert warned == ([("warning", ends.isoformat())] if expired else [])
    assert any("expired" in entry["event"] for entry in logs) == expired


def test_an_encrypted_key_is_refused_without_asking_for_its_password(files: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    files.certificate.write_bytes(self_signed(key).certificate)
    files.key.write_bytes(pem_of(key, serialization.BestAvailableEncryption(b"password")))
    # OpenSSL would ask on the terminal, so the server is given one.
    program = """
import fcntl, pty, sys, termios
from pathlib import Path
from billing_grpc.errors import SettingsError
from billing_grpc.server.net.tls import TlsFiles
_, terminal = pty.openpty()
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
try:
    TlsFiles(Path(sys.argv[1]), Path(sys.argv[2]), None)
except SettingsError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(files.certificate), str(files.key)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    assert "not a certificate and its unencrypted key" in ended.stdout


@pytest.mark.parametrize("comment", ["# Zertifizierungsstelle f\u00fcr Kunden\n".encode(), b"\xff\xfe\n"])
async def test_a_comment_in_the_client_authorities_may_be_in_any_language(comment: bytes, files: Files) -> None:
    files.ca.write_bytes(comment + files.clients.pem)
    async with files.serving("mtls") as target:
        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.OK
        files.clients = Authority.new("the next authority")
        files.ca.write_bytes(comment + files.clients.pem)
        assert await files.ask(target, files.clients.issue(uris=URI)) is grpc.StatusCode.OK


@pytest.mark.parametrize("mutual", [False, True])
def test_only_mutual_tls_hands_the_client_authorities_on(
    mutual: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the wire nothing shows them while gRPC asks for no certificate.
    handed: list[bytes | None] = []
    made = grpc.ssl_server_certificate_configuration

    def record(pairs: Any, authorities: bytes | None) -> Any:
        handed.append(authorities)
        return made(pairs, authorities)

    monkeypatch.setattr("billing_grpc.server.net.tls.grpc.ssl_server_certificate_configuration", record)
    TlsFiles(files.certificate, files.key, files.ca).credentials(mutual=mutual)

    assert handed == [files.clients.pem if mutual else None]


def test_a_failure_nobody_thought_of_keeps_the_old_files_in_force(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = TlsFiles(files.certificate, files.key, files.ca)
    before = tls.current()
    files.renew()

    def fail(*_: object) -> None:
        raise TypeError("unheard of")

    with monkeypatch.context() as only_here, capture_logs() as logs:
        only_here.setattr("billing_grpc.server.net.tls._require_authorities", fail)
        assert tls.current() == before
        tls.reload()
        assert tls.current() == before
    assert [entry["log_level"] for entry in logs] == ["error", "error"]

    tls.reload()
    assert tls.current()[:2] == (files.key.read_bytes(), files.certificate.read_bytes())


def test_a_file_that_is_replaced_while_it_is_checked_is_read_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = files.key.read_bytes()
    renewals = [files.servers.issue(dns=("localhost",))]

    class Overtaken(ssl.SSLContext):
        def load_cert_chain(self, *arguments: Any, **more: Any) -> None:
            for issued in renewals[:1]:
                issued.write(files.folder, "server")
                del renewals[0]
            super().load_cert_chain(*arguments, **more)

    monkeypatch.setattr("billing_grpc.server.net.tls.ssl.SSLContext", Overtaken)
    key, certificate, _ = TlsFiles(files.certificate, files.key, None).current()
    assert (key, certificate) == (files.key.read_bytes(), files.certificate.read_bytes())
    assert key != stale

    renewals.extend(files.servers.issue(dns=("localhost",)) for _ in range(10))
    with pytest.raises(SettingsError, match="changing all the time"):
        TlsFiles(files.certificate, files.key, None)


def test_broken_files_are_named_every_ten_seconds_until_they_are_mended(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("billing_grpc.watched_file.time", SimpleNamespace(monotonic=lambda: now))
    tls = TlsFiles(files.certificate, files.key, None)
    files.key.write_bytes(b"")

    with capture_logs() as logs:
        for _ in range(250):
            tls.current()
            now += 0.1
    assert len(broken(logs)) == len(logs) == 3
    files.renew()
    with capture_logs() as logs:
        for _ in range(250):
            tls.current()
            now += 0.1
    assert [entry["event"] for entry in logs] == ["TLS files read"]


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_a_unix_socket_has_the_mode_that_the_operator_set(mode: int) -> None:
    # A path of its own, short enough for a socket.
    path = Path(f"/tmp/billing-grpc-test-{os.getpid()}-{mode:o}.sock")  # noqa: S108 - gone when the server stops
    address: Address = UnixAddress(str(path))
    access_policy = AccessPolicy(local_admin=True, socket_mode=mode)
    umask = os.umask(0)
    try:
        async with running_server(InMemoryRepository(), access_policy=access_policy, address=address) as target:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            async with grpc.aio.insecure_channel(target) as channel:
                stub: Any = service_grpc.BillingModeServiceStub(channel)
                await stub.ResolveBillingMode(REQUEST, timeout=5)
    finally:
        os.umask(umask)
        path.unlink(missing_ok=True)


def test_files_that_could_not_be_checked_for_a_moment_are_checked_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = TlsFiles(files.certificate, files.key, None)
    old = tls.current()
    files.renew()
    with monkeypatch.context() as patched:

        def no_descriptors_left(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        patched.setattr(ssl.SSLContext, "load_cert_chain", no_descriptors_left)
        assert tls.current() == old

    deadline = time.monotonic() + 10
    while tls.current() == old:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert tls.current()[1] == files.certificate.read_bytes()
