"""No secret is ever in a log: neither at the loudest level nor in what gRPC itself has to say about a header."""

import asyncio
import uuid
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from psycopg.conninfo import make_conninfo

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.auth.principals import token_digest
from tests.support.certificates import Authority, Issued
from tests.support.polling import PATIENCE
from tests.support.raw_http2 import EMPTY, connected
from tests.support.servers import Serve, Server

RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"
RIGHT: Final = "right-token-7f1fc6a0"
WRONG: Final = "wrong-token-9b2d4e11"
URI: Final = "spiffe://example/secret-name"
GRPC_FAILED: Final = "gRPC could not handle a call"


class Site:
    """A server at the loudest level, with a plain and a mutual-TLS listener."""

    def __init__(self, serve: Serve, directory: Path, database_url: str) -> None:
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        certificate, key = self.servers.issue(dns=("localhost",)).write(directory, "server")
        self.key = key.read_text()
        (directory / "ca.crt").write_bytes(self.clients.pem)
        (directory / "tokens.toml").write_text(
            f'[[principal]]\nname = "a"\nrole = "admin"\ntoken_sha256 = ["{token_digest(RIGHT)}"]\n'
            f'certificate_uri = ["{URI}"]\n'
        )
        settings = {
            "DATABASE_URL": database_url,
            "BILLING_GRPC_LOCAL_ADMIN": None,
            "BILLING_GRPC_LISTEN": "127.0.0.1:0,mtls://127.0.0.1:0",
            "BILLING_GRPC_TOKENS_FILE": directory / "tokens.toml",
            "BILLING_GRPC_TLS_CERT": certificate,
            "BILLING_GRPC_TLS_KEY": key,
            "BILLING_GRPC_TLS_CLIENT_CA": directory / "ca.crt",
            "BILLING_GRPC_LOG_LEVEL": "DEBUG",
        }
        self.server: Server = serve(settings=settings, listeners=2)

    def call(self, token: str | None = None, client: Issued | None = None) -> grpc.StatusCode:
        if client is None:
            channel = grpc.insecure_channel(self.server.addresses[0])
        else:
            credentials = grpc.ssl_channel_credentials(self.servers.pem, client.key, client.certificate)
            options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
            target = self.server.addresses[1].removeprefix("mtls://")
            channel = grpc.secure_channel(target, credentials, options=options)
        metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        with channel:
            stub = service_grpc.BillingModeServiceStub(channel)
            request = service_pb.ResolveBillingModeRequest()
            call: Any = stub.ResolveBillingMode.future(request, timeout=PATIENCE, metadata=metadata)
            ended: grpc.StatusCode = call.code()
        return ended

    def send(self, path: bytes | str, *headers: tuple[str, bytes | str], body: bytes = EMPTY) -> None:
        """A request that no library would send."""

        async def send() -> None:
            async with connected(self.server.addresses[0]) as connection:
                connection.send(connection.open(path, headers), body)
                await connection.listen(0.5)

        asyncio.run(send())


@pytest.fixture
def site(serve: Serve, directory: Path, database_url: str) -> Site:
    return Site(serve, directory, database_url)


def test_no_credentials_are_logged_good_or_bad_at_the_loudest_level(site: Site) -> None:
    known, unknown = site.clients.issue(uris=(URI,)), site.clients.issue(uris=("spiffe://example/other-secret",))
    forged = Authority.new("strangers").issue(uris=(URI,))
    assert site.call(RIGHT) is grpc.StatusCode.OK
    assert site.call(WRONG) is grpc.StatusCode.UNAUTHENTICATED
    assert site.call() is grpc.StatusCode.UNAUTHENTICATED
    assert site.call(client=known) is grpc.StatusCode.OK
    assert site.call(client=unknown) is grpc.StatusCode.UNAUTHENTICATED
    assert site.call(client=forged) is grpc.StatusCode.UNAVAILABLE
    assert site.call(WRONG, client=known) is grpc.StatusCode.UNAUTHENTICATED
    site.server.stop()

    # Not read as records: of a handshake that fails, gRPC's core writes a line of its own.
    assert site.server.stderr.count('"code":"OK"') == 2
    secrets = [RIGHT, WRONG, token_digest(RIGHT), token_digest(WRONG), "Bearer", "BEGIN", "secret-name", "other-secret"]
    for pem in (known.certificate, known.key, unknown.certificate, forged.certificate, site.key.encode()):
        secrets += [line for line in pem.decode().splitlines() if len(line) > 10]
    assert [secret for secret in secrets if secret in site.server.stderr] == []


NOT_UTF8: Final[dict[str, tuple[bytes | str, tuple[tuple[str, bytes], ...]]]] = {
    "a token": (RESOLVE, (("authorization", b"Bearer " + RIGHT.encode() + b"\xe9"),)),
    "another header": (RESOLVE, (("cookie", RIGHT.encode() + b"\xe9"),)),
    "a header of ours": (RESOLVE, (("x-request-id", RIGHT.encode() + b"\xff"),)),
    "the path": (b"/" + RIGHT.encode() + b"\xff", ()),
}


@pytest.mark.parametrize(("path", "headers"), NOT_UTF8.values(), ids=NOT_UTF8)
def test_what_is_no_utf8_is_not_repeated_in_the_log(
    path: bytes | str, headers: tuple[tuple[str, bytes], ...], site: Site
) -> None:
    name = uuid.uuid4().hex
    site.send(path, ("x-else", name), *headers)
    assert site.call(RIGHT) is grpc.StatusCode.OK
    site.server.stop()

    found = site.server.records(GRPC_FAILED)
    assert {each["error"] for each in found if each["level"] == "error"} == {"UnicodeDecodeError"}
    for held in (RIGHT, "xe9", "xff", "Traceback", "Invalid encoding", name):
        assert held not in site.server.stderr


VALUE: Final = "sk-ant-api03-a-secret-value"
WORKSPACE: Final = "5f0e9b0e-0000-4000-8000-000000000000"

# id: a call that holds a secret value where a name, an id or a word belongs
BY_MISTAKE: Final[dict[str, tuple[str, Any]]] = {
    "as a key's name": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=WORKSPACE, secret_keys=[VALUE, "OPENAI_API_KEY"]),
    ),
    "beside a key's name": (
        "ValidateSecretWrite",
        service_pb.ValidateSecretWriteRequest(workspace_id=WORKSPACE, secret_keys=[f"OPENAI_API_KEY={VALUE}"]),
    ),
    "in the environment": (
        "PlanProvisionEnv",
        service_pb.PlanProvisionEnvRequest(workspace_id=WORKSPACE, env_keys=[VALUE, f"OPENAI_API_KEY={VALUE}"]),
    ),
    "as a workspace": ("ResolveBillingMode", service_pb.ResolveBillingModeRequest(workspace_id=VALUE)),
    "in a batch": ("BatchResolveBillingModes", service_pb.BatchResolveBillingModesRequest(workspace_ids=[VALUE])),
    "as a mode": ("ResolveBillingMode", service_pb.ResolveBillingModeRequest(org_default=VALUE)),
    "as an etag": (
        "SetWorkspaceBillingMode",
        service_pb.SetWorkspaceBillingModeRequest(workspace_id=WORKSPACE, mode="BILLING_MODE_BYOK", etag=VALUE),
    ),
    "as a page": ("ListBillingModeChanges", service_pb.ListBillingModeChangesRequest(page_token=VALUE)),
}


def test_a_secret_that_was_sent_by_mistake_is_not_logged_at_the_loudest_level(site: Site) -> None:
    metadata = (("authorization", f"Bearer {RIGHT}"), ("x-api-key", VALUE), ("cookie", VALUE))
    with grpc.insecure_channel(site.server.addresses[0]) as channel:
        stub = service_grpc.BillingModeServiceStub(channel)
        for rpc, request in BY_MISTAKE.values():
            call: Any = getattr(stub, rpc).future(request, timeout=PATIENCE, metadata=metadata)
            assert call.code() in {
                grpc.StatusCode.OK,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.ABORTED,
            }
    site.server.stop()

    assert len(site.server.records("call")) >= len(BY_MISTAKE)
    assert [held for held in (VALUE, VALUE.upper(), RIGHT) if held in site.server.stderr] == []


@pytest.mark.parametrize("place", ["password authentication", "nobody listens"])
def test_the_databases_password_is_in_no_line_at_the_loudest_level(place: str, serve: Serve, database_url: str) -> None:
    password = "hunter2-of-the-database"
    reachable = make_conninfo(database_url, user="nobody_known", password=password)
    url = reachable if place == "password authentication" else f"postgresql://somebody:{password}@127.0.0.1:1/x"
    server = serve(settings={"DATABASE_URL": url, "BILLING_GRPC_LOG_LEVEL": "DEBUG"})
    server.logged("database not ready")
    assert server.resolve(WORKSPACE).error.reason in {"DATABASE_DENIED", "DATABASE_UNREACHABLE"}
    server.stop()

    assert password not in server.stderr
