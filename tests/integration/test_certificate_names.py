"""Names in client certificates, over a real mutual-TLS listener: only what stands there whole is somebody's name."""

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import TcpAddress
from billing_grpc.server.auth.client_certificate import ClientCertificate
from billing_grpc.server.auth.principals import Principals
from billing_grpc.server.auth.principals_file import FixedPrincipals
from billing_grpc.server.listener import AccessPolicy
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.testing import InMemoryRepository, running_server
from tests.support.certificates import SERIALS, Authority, Issued

DNS, URI, EMAIL, OTHER = 0x82, 0x86, 0x81, 0x88
KIOSK: Final = b"kiosk.internal"
SPIFFE: Final = b"spiffe://example/kiosk"
KNOWN: Final = Principals.parse(
    '[[principal]]\nname = "kiosk"\nrole = "admin"\n'
    'certificate_uri = ["spiffe://example/kiosk"]\ncertificate_dns = ["kiosk.internal"]'
)

# id: the names in the certificate, whether their bearer is let in
NAMES: Final[dict[str, tuple[list[tuple[int, bytes]], bool]]] = {
    "a DNS name": ([(DNS, KIOSK)], True),
    "a DNS name in capitals": ([(DNS, KIOSK.upper())], True),
    "a URI": ([(URI, SPIFFE)], True),
    "both": ([(DNS, KIOSK), (URI, SPIFFE)], True),
    "beside names of other kinds": ([(EMAIL, b"a@b"), (DNS, KIOSK), (OTHER, b"\x2a\x03")], True),
    "beside a long stranger's name": ([(URI, b"spiffe://example/" + b"x" * 300), (DNS, KIOSK)], True),
    "a DNS name cut by NUL": ([(DNS, KIOSK + b"\0.evil.com")], False),
    "a URI cut by NUL": ([(URI, SPIFFE + b"\0x")], False),
    "NUL, and the bytes of the name behind it": ([(DNS, KIOSK + b"\0" + b"\x82\x0e" + KIOSK)], False),
    "NUL, and the name in another kind of name": ([(DNS, KIOSK + b"\0x"), (EMAIL, b"\x82\x0e" + KIOSK)], False),
    "a NUL beside the right name": ([(DNS, b"x\0y"), (DNS, KIOSK)], False),
    "a NUL at the end": ([(DNS, KIOSK + b"\0")], False),
    "a URI where a DNS name is known": ([(URI, KIOSK)], False),
    "an e-mail address": ([(EMAIL, KIOSK)], False),
    "beyond ASCII": ([(DNS, b"\xffkiosk.internal")], False),
    "a Kelvin sign": ([(DNS, "\u212aiosk.internal".encode())], False),
    "an empty name": ([(DNS, b"")], False),
}


def element(tag: int, value: bytes) -> bytes:
    if len(value) < 0x80:
        return bytes((tag, len(value))) + value
    length = len(value).to_bytes(2)
    return bytes((tag, 0x82)) + length + value


def issue(authority: Authority, names: list[tuple[int, bytes]] | None) -> Issued:
    """A certificate whose names are put in as they are, where a library would refuse some of them."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kiosk.internal")])
    builder = (
        x509.CertificateBuilder(authority.name, subject, key.public_key(), next(SERIALS))
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names is not None:
        content = element(0x30, b"".join(element(*name) for name in names))
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, content), critical=False
        )
    certificate = builder.sign(authority.key, hashes.SHA256())
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


class Site:
    """A mutual-TLS listener, and clients with certificates of any kind."""

    def __init__(self, folder: Path) -> None:
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        (folder / "ca.crt").write_bytes(self.clients.pem)
        self.tls = TlsFiles(*self.servers.issue(dns=("localhost",)).write(folder, "server"), folder / "ca.crt")
        self.target = ""

    async def ask(self, client: Issued) -> grpc.StatusCode:
        credentials = grpc.ssl_channel_credentials(self.servers.pem, client.key, client.certificate)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self.target, credentials, options=options) as channel:
            stub: Any = service_grpc.BillingModeServiceStub(channel)
            try:
                await stub.ResolveBillingMode(service_pb.ResolveBillingModeRequest(), timeout=5)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    # Under local admin, so that whoever falls through the names would be let in as `local`.
    site = Site(tmp_path)
    access_policy = AccessPolicy(FixedPrincipals(KNOWN), local_admin=True, tls=site.tls)
    address = TcpAddress("127.0.0.1", 0, "mtls")
    async with running_server(InMemoryRepository(), access_policy=access_policy, address=address) as site.target:
        yield site


@pytest.mark.parametrize(("names", "let_in"), NAMES.values(), ids=NAMES)
async def test_a_name_counts_only_as_it_stands_in_the_certificate(
    names: list[tuple[int, bytes]], *, let_in: bool, site: Site
) -> None:
    ended = await site.ask(issue(site.clients, names))

    # A certificate that gRPC itself cannot read is refused in the handshake.
    closed = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}
    assert ended in ({grpc.StatusCode.OK} if let_in else closed)


async def test_a_certificate_without_names_is_nobody_even_under_local_admin(site: Site) -> None:
    assert await site.ask(issue(site.clients, None)) is grpc.StatusCode.UNAUTHENTICATED
    assert await site.ask(issue(site.clients, [(EMAIL, b"a@b")])) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ([(DNS, KIOSK), (URI, SPIFFE), (DNS, b"b")], ((SPIFFE.decode(),), ("kiosk.internal", "b"))),
        (None, ((), ())),
        ([(EMAIL, b"a\0b")], ((), ())),
        ([(DNS, KIOSK + b"\0.evil.com")], None),
        ([(URI, b"\xff")], None),
        ([(URI, b"a\nb")], None),
    ],
    ids=["several", "none", "of other kinds", "NUL", "no ASCII", "a line break"],
)
def test_names_are_read_byte_for_byte(names: list[tuple[int, bytes]] | None, read: object) -> None:
    issued = issue(Authority.new("clients"), names)
    found = ClientCertificate.read(issued.certificate, b"", b"")
    assert (None if found is None else (found.uris, found.dns_names)) == read


def test_a_certificate_that_is_cut_off_names_nobody() -> None:
    der = ssl.PEM_cert_to_DER_cert(issue(Authority.new("clients"), [(DNS, KIOSK)]).certificate.decode())
    for length in range(len(der)):
        cut = ssl.DER_cert_to_PEM_cert(der[:length]).encode()
        assert ClientCertificate.read(cut, b"", b"") is None
