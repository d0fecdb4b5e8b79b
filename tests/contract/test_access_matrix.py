"""Who may call what: every served method, every role, every way to show who one is, over real listeners."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from billing_grpc.addresses import TcpAddress
from billing_grpc.errors import Unauthenticated
from billing_grpc.model import Role
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.auth import roles
from billing_grpc.server.auth.principals import LOCAL, Principals, token_digest
from billing_grpc.server.auth.principals_file import FixedPrincipals, PrincipalsFile
from billing_grpc.server.call import RequestContext
from billing_grpc.server.calls.authentication import Authentication
from billing_grpc.server.calls.chain import Methods
from billing_grpc.server.listener import AccessPolicy, RpcServer
from billing_grpc.server.net.tls import TlsFiles
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.testing import InMemoryRepository
from tests.support.certificates import Authority
from tests.support.raw_http2 import EMPTY, connected

SERVICE: Final = "/molecule.billing.v1.BillingModeService/"

# The contract's table, said once more and in its own words.
ROLES_MAY: Final = {
    Role.READER: {
        "ResolveBillingMode",
        "BatchResolveBillingModes",
        "GetWorkspaceBillingMode",
        "ListBillingModeChanges",
        "ListWorkspaceBillingModes",
        "SummarizeBillingModes",
    },
    Role.PROVISIONER: {
        "ResolveBillingMode",
        "BatchResolveBillingModes",
        "ValidateSecretWrite",
        "PlanProvisionEnv",
    },
    Role.ADMIN: {
        "ResolveBillingMode",
        "BatchResolveBillingModes",
        "GetWorkspaceBillingMode",
        "SetWorkspaceBillingMode",
        "ValidateSecretWrite",
        "PlanProvisionEnv",
        "ListBillingModeChanges",
        "ListWorkspaceBillingModes",
        "SummarizeBillingModes",
    },
}
OPEN_PREFIXES: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.v1")
# The messages of reflection's v1 are those of v1alpha, and only the latter are in the pool.
V1_REFLECTION: Final = "grpc.reflection.v1.ServerReflection"

CREDENTIALS: Final = ("none", "wrong token", "revoked token", "right token", "client certificate")
DENIED: Final = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def entry(role: Role, *tokens: str) -> str:
    digests = ", ".join(f'"{token_digest(token)}"' for token in tokens)
    return (
        f'[[principal]]\nname = "a-{role}"\nrole = "{role}"\n'
        f'token_sha256 = [{digests}]\ncertificate_uri = ["spiffe://example/{role}"]\n'
    )


class Gate:
    """A server with a plain and a mutual-TLS listener, and clients of every kind."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens.toml"
        self.file.write_text("".join(entry(role, f"right-{role}", f"revoked-{role}") for role in Role))
        self.authority = Authority.new("clients")
        self.servers = Authority.new("servers")
        self._folder = folder

    async def open(self, stack: AsyncExitStack) -> None:
        (self._folder / "ca.crt").write_bytes(self.authority.pem)
        certificate, key = self.servers.issue(dns=("localhost",)).write(self._folder, "server")
        principals = PrincipalsFile(self.file)
        servicer = BillingModeService(InMemoryRepository(), lambda: None, KeyList(), 1.0, Metrics())
        server = RpcServer(
            servicer, access_policy=AccessPolicy(principals, tls=TlsFiles(certificate, key, self._folder / "ca.crt"))
        )
        plain, mutual = await server.start([TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", 0, "mtls")])
        stack.push_async_callback(server.stop, 0)
        assert isinstance(plain, TcpAddress)
        assert isinstance(mutual, TcpAddress)
        self.plain = await stack.enter_async_context(grpc.aio.insecure_channel(plain.target))
        self.mutual = {
            role: await stack.enter_async_context(self.channel(mutual, f"spiffe://example/{role}")) for role in Role
        }
        self.stranger = await stack.enter_async_context(self.channel(mutual, "spiffe://example/stranger"))
        self.file.write_text("".join(entry(role, f"right-{role}") for role in Role))  # revoked while it runs

    def channel(self, address: TcpAddress, uri: str) -> grpc.aio.Channel:
        issued = self.authority.issue(uris=(uri,))
        credentials = grpc.ssl_channel_credentials(self.servers.pem, issued.key, issued.certificate)
        return grpc.aio.secure_channel(
            address.target, credentials, options=[("grpc.ssl_target_name_override", "localhost")]
        )

    async def call(self, method: str, role: Role, credentials: str) -> grpc.StatusCode:
        """How a call with an empty request ends; past the gate it may well be refused for being empty."""
        channel = self.mutual[role] if credentials == "client certificate" else self.plain
        tokens = {"wrong token": "wrong", "revoked token": f"revoked-{role}", "right token": f"right-{role}"}
        token = tokens.get(credentials)
        return await ending(channel, method, *([] if token is None else [f"Bearer {token}"]))

    async def served(self) -> list[str]:
        """Every method of every service that the server says it serves."""
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(self.plain)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), timeout=5)
        names = [service.name for service in (await call.read()).list_services_response.service]
        call.cancel()
        pool = descriptor_pool.Default()
        found = []
        for name in names:
            known = name.replace("v1.", "v1alpha.") if name == V1_REFLECTION else name
            found += [f"/{name}/{method.name}" for method in pool.FindServiceByName(known).methods]
        return found


async def ending(channel: grpc.aio.Channel, method: str, *authorization: Any) -> grpc.StatusCode:
    call: Any = channel.unary_unary(method)
    try:
        await call(b"", timeout=5, metadata=tuple(("authorization", each) for each in authorization))
    except grpc.aio.AioRpcError as error:
        if error.code() in DENIED:
            assert_constant(error)
        return error.code()
    return grpc.StatusCode.OK


def assert_constant(error: grpc.aio.AioRpcError) -> None:
    texts = {
        "no valid credentials: send 'authorization: Bearer TOKEN', or a client certificate known here",
        "this caller's role may not call this method",
    }
    assert error.details() in texts
    status = rpc_status.from_call(error)
    (packed,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert packed.Unpack(info)
    unauthenticated = error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert info.reason == ("CREDENTIALS_INVALID" if unauthenticated else "ROLE_DENIED")
    assert info.domain == "billing.molecule"


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    async with AsyncExitStack() as stack:
        gate = Gate(tmp_path)
        await gate.open(stack)
        yield gate


async def test_every_served_method_has_its_rule_and_every_rule_its_method(gate: Gate) -> None:
    served = await gate.served()
    billing = {method for method in served if method.startswith(SERVICE)}

    assert billing == set(roles.MAY_CALL)
    assert set(served) - billing <= roles.OPEN
    assert all(method.startswith(OPEN_PREFIXES) for method in roles.OPEN)


async def test_every_method_by_every_role_with_every_kind_of_credentials(gate: Gate) -> None:
    wrong = []
    for method in await gate.served():
        if not method.startswith(SERVICE):
            continue
        for role in Role:
            for credentials in CREDENTIALS:
                if credentials not in {"right token", "client certificate"}:
                    expected: grpc.StatusCode | None = grpc.StatusCode.UNAUTHENTICATED
                elif method.removeprefix(SERVICE) in ROLES_MAY[role]:
                    expected = None
                else:
                    expected = grpc.StatusCode.PERMISSION_DENIED
                code = await gate.call(method, role, credentials)
                if code is not expected and not (expected is None and code not in DENIED):
                    wrong.append((method, role, credentials, code))
    assert wrong == []


async def test_health_and_reflection_need_no_credentials(gate: Gate) -> None:
    assert await ending(gate.plain, "/grpc.health.v1.Health/Check") is grpc.StatusCode.OK
    assert await gate.served()


RESOLVE: Final = f"{SERVICE}ResolveBillingMode"
RIGHT: Final = "Bearer right-admin"

HEADERS: Final[dict[str, list[Any]]] = {
    "another scheme": ["Basic right-admin"],
    "no scheme": ["right-admin"],
    "an empty bearer": ["Bearer "],
    "two headers, both right": [RIGHT, RIGHT],
    "two headers, one right": ["Bearer wrong", RIGHT],
    "a digest in place of its token": [f"Bearer {token_digest('right-admin')}"],
    "trailing text": [f"{RIGHT} x"],
    "an empty header": [""],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
async def test_credentials_that_are_not_quite_right_are_wrong(headers: list[Any], gate: Gate) -> None:
    assert await ending(gate.plain, RESOLVE, *headers) is grpc.StatusCode.UNAUTHENTICATED
    assert await ending(gate.plain, RESOLVE, RIGHT) is grpc.StatusCode.OK


async def test_a_call_with_authorization_is_judged_by_it_alone(gate: Gate) -> None:
    # Not even an admin's certificate helps a wrong token, and a right one is not lessened by a reader's.
    assert await ending(gate.mutual[Role.ADMIN], RESOLVE, "Bearer wrong") is grpc.StatusCode.UNAUTHENTICATED
    set_mode = f"{SERVICE}SetWorkspaceBillingMode"
    assert await ending(gate.mutual[Role.READER], set_mode, RIGHT) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_verified_certificate_that_names_nobody_here_is_nobody(gate: Gate) -> None:
    assert await ending(gate.stranger, RESOLVE) is grpc.StatusCode.UNAUTHENTICATED


async def test_being_denied_comes_before_anything_about_the_request(gate: Gate) -> None:
    call: Any = gate.plain.unary_unary(f"{SERVICE}SetWorkspaceBillingMode")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\x0a\x01x", timeout=5, metadata=(("authorization", "Bearer right-reader"),))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_every_handler_that_is_registered_is_in_the_table_or_open(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the server registers, not what it says in reflection: the two could differ.
    given: list[Any] = []
    make = grpc.aio.server

    def noted(*, handlers: Any, **options: Any) -> grpc.aio.Server:
        given.extend(handlers)
        return make(handlers=handlers, **options)

    monkeypatch.setattr(grpc.aio, "server", noted)
    monkeypatch.setattr(type(make()), "add_generic_rpc_handlers", lambda _, handlers: given.extend(handlers))
    RpcServer(service(), access_policy=AccessPolicy())

    (chain,) = given
    registered = chain.methods
    assert registered - roles.OPEN == set(roles.MAY_CALL)


def service() -> BillingModeService:
    return BillingModeService(InMemoryRepository(), lambda: None, KeyList(), 1.0, Metrics())


async def test_a_served_method_without_a_row_in_the_table_is_open_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(request: bytes, context: Any) -> bytes:
        del request, context
        raise AssertionError("a method without a row was run")

    method = "/molecule.billing.v1.Forgotten/Do"
    file = tmp_path / "tokens.toml"
    file.write_text(entry(Role.ADMIN, "right-admin"))

    def in_a_hurry(methods: Methods, services: object) -> None:
        del services
        handlers: Any = {"Do": grpc.unary_unary_rpc_method_handler(never)}
        methods.add_registered_method_handlers("molecule.billing.v1.Forgotten", handlers)

    monkeypatch.setattr("billing_grpc.server.reflection.add_to", in_a_hurry)
    for local_admin in (False, True):
        server = RpcServer(service(), access_policy=AccessPolicy(PrincipalsFile(file), local_admin=local_admin))
        (address,) = await server.start([TcpAddress("127.0.0.1", 0)])
        async with grpc.aio.insecure_channel(str(address)) as channel:
            assert await ending(channel, method, RIGHT) is grpc.StatusCode.PERMISSION_DENIED
            stranger = grpc.StatusCode.PERMISSION_DENIED if local_admin else grpc.StatusCode.UNAUTHENTICATED
            assert await ending(channel, method) is stranger
        await server.stop(0)


def test_a_method_that_nobody_listed_may_be_called_by_nobody() -> None:
    for role in Role:
        for method in ("", "/", SERVICE, f"{SERVICE}Forgotten", RESOLVE.lower(), *roles.OPEN):
            assert not roles.may_call(role, method)


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Bearer ", "Basic x", b"\xff"], ids=repr)
async def test_under_local_admin_a_call_with_authorization_is_still_judged_by_it_alone(header: str | bytes) -> None:
    server = RpcServer(service(), access_policy=AccessPolicy(local_admin=True))
    (address,) = await server.start([TcpAddress("127.0.0.1", 0)])
    async with connected(str(address)) as connection:
        connection.send(connection.open(RESOLVE, [("authorization", header)]), EMPTY)
        await connection.listen(0.5)
        connection.send(connection.open(RESOLVE), EMPTY)
        await connection.listen(0.5)
    first, last = (
        b"".join(payload for _, number, payload in connection.frames if number == stream) for stream in (1, 3)
    )
    assert b"grpc-status\x0216" in first
    assert b"grpc-status\x010" in last
    await server.stop(0)


class Peer:
    """What gRPC tells of a caller, for callers that cannot be had on one machine."""

    def __init__(self, address: str, **identity: list[bytes]) -> None:
        self._address, self._identity = address, identity

    def peer(self) -> str:
        return self._address

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._identity


PEERS: Final = {
    "unix:": True,
    "unix:/run/x.sock": True,
    "ipv4:127.0.0.1:50": True,
    "ipv6:[::1]:50": True,
    "ipv6:%5B::1%5D:50": True,
    "ipv4:10.0.0.1:50": False,
    "ipv4:12.7.0.1:50": False,
    "ipv6:[2001:db8::1]:50": False,
    "ipv6:%5B2001:db8::1%5D:50": False,
    "": False,
    "unknown": False,
}


@pytest.mark.parametrize(("peer", "local"), PEERS.items(), ids=PEERS)
@pytest.mark.parametrize("local_admin", [True, False])
def test_local_is_who_calls_from_this_machine_and_only_where_the_operator_said_so(
    peer: str, *, local: bool, local_admin: bool
) -> None:
    authentication = Authentication(FixedPrincipals(Principals({}, {}, {})), local_admin=local_admin)
    rpc: Any = Peer(peer)
    hooks = authentication.for_method(RESOLVE)
    assert hooks is not None
    call = RequestContext(rpc, RESOLVE)
    if local and local_admin:
        hooks.start(call)
        assert call.caller == LOCAL
    else:
        # gRPC has no address of a caller whose call has ended at its deadline.
        with pytest.raises(Unauthenticated if peer or not local_admin else grpc.aio.InternalError):
            hooks.start(call)
        assert call.principal is None
