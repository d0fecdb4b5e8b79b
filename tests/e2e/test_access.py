"""Callers with tokens and certificates, against a real process: let in, kept out, and rotated while it runs."""

import hashlib
import json
import signal
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.server.auth.principals import token_digest
from tests.support.certificates import Authority
from tests.support.commands import billing_grpc
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve, Server
from tests.support.workspaces import add_workspace, as_service

RESOLVE: Final = "molecule.billing.v1.BillingModeService/ResolveBillingMode"
SET: Final = "molecule.billing.v1.BillingModeService/SetWorkspaceBillingMode"
CERTIFICATE_NAMES: Final = 'certificate_uri = ["spiffe://example/provisioner"]\n'


class Site:
    """A server with every kind of listener, its files, and the clients' authority."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.servers, self.clients = Authority.new("servers"), Authority.new("clients")
        self.certificate, self.key = self.servers.issue(dns=("localhost",)).write(directory, "server")
        self.ca, self.client_ca = directory / "ca.crt", directory / "clients.crt"
        self.ca.write_bytes(self.servers.pem)
        self.client_ca.write_bytes(self.clients.pem)
        self.tokens = directory / "tokens.toml"
        self.socket = directory / "billing.sock"
        self.settings: dict[str, str | Path | None] = {
            "DATABASE_URL": as_service(database_url),
            "BILLING_GRPC_LOCAL_ADMIN": None,
            "BILLING_GRPC_LISTEN": f"127.0.0.1:0,tls://127.0.0.1:0,mtls://127.0.0.1:0,unix:{self.socket}",
            "BILLING_GRPC_TOKENS_FILE": self.tokens,
            "BILLING_GRPC_TLS_CERT": self.certificate,
            "BILLING_GRPC_TLS_KEY": self.key,
            "BILLING_GRPC_TLS_CLIENT_CA": self.client_ca,
        }

    def new_token(self, name: str, role: str) -> tuple[str, str]:
        """What `billing-grpc token new` shows: the token, and the lines for the file."""
        ended = billing_grpc("token", "new", "--name", name, "--role", role)
        assert ended.returncode == 0, ended.stderr
        token = next(line for line in ended.stdout.splitlines() if line.startswith("bgrpc_"))
        entry = ended.stdout[ended.stdout.index("[[principal]]") : ended.stdout.index("\n\nWhere")]
        return token, entry + "\n"


@pytest.fixture
def site(directory: Path, database_url: str) -> Site:
    return Site(directory, database_url)


@pytest.fixture
def grpcurl_at(grpcurl: str) -> Any:
    def run(*arguments: str, request: str = "{}") -> subprocess.CompletedProcess[str]:
        command = [grpcurl, "-d", request, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    return run


def code(server: Server, token: str | None) -> grpc.StatusCode:
    """How a call over the plain listener ends."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(server.addresses[0]) as channel:
        stub = service_grpc.BillingModeServiceStub(channel)
        request = service_pb.ResolveBillingModeRequest()
        call: Any = stub.ResolveBillingMode.future(request, timeout=PATIENCE, metadata=metadata)
        ended: grpc.StatusCode = call.code()
    return ended


def test_grpcurl_gets_in_by_a_token_over_tls_and_by_a_certificate_over_mutual_tls(
    site: Site, serve: Serve, grpcurl_at: Any
) -> None:
    token, entry = site.new_token("provisioner", "provisioner")
    site.tokens.write_text(entry + CERTIFICATE_NAMES)
    server = serve(settings=site.settings, listeners=4)
    _, tls, mutual, _ = (address.rpartition("/")[2] for address in server.addresses)
    assert [address.split("/")[0] for address in server.addresses[1:3]] == ["tls:", "mtls:"]
    trusting = ("-cacert", str(site.ca), "-authority", "localhost")
    ours = site.clients.issue(uris=("spiffe://example/provisioner",)).write(site.directory, "ours")
    theirs = Authority.new("strangers").issue(uris=("spiffe://example/provisioner",)).write(site.directory, "theirs")

    def with_certificate(pair: tuple[Path, Path]) -> tuple[str, ...]:
        return (*trusting, "-cert", str(pair[0]), "-key", str(pair[1]))

    calls_made = (
        (*trusting, "-H", f"authorization: Bearer {token}", tls, RESOLVE),
        (*with_certificate(ours), mutual, RESOLVE),
        (*with_certificate(ours), mutual, SET),
        (*trusting, tls, RESOLVE),
        (*with_certificate(theirs), "-connect-timeout", "3", mutual, RESOLVE),
        (*trusting, "-connect-timeout", "3", mutual, RESOLVE),
    )
    with ThreadPoolExecutor() as threads:  # grpcurl goes on trying for seconds where it is not let in
        ended = list(threads.map(lambda arguments: grpcurl_at(*arguments), calls_made))
    over_tls, over_mutual_tls, too_much, nobody, stranger, without_any = ended

    for answered in (over_tls, over_mutual_tls):
        assert answered.returncode == 0, answered.stderr
        assert json.loads(answered.stdout)["resolution"]["resolvedMode"] == "BILLING_MODE_PLATFORM_MANAGED"
    assert "PermissionDenied" in too_much.stderr
    assert "ROLE_DENIED" in too_much.stderr
    assert "Unauthenticated" in nobody.stderr or "CREDENTIALS_INVALID" in nobody.stderr
    assert stranger.returncode != 0
    assert without_any.returncode != 0
    assert server.process.poll() is None
    for secret in (token, "BEGIN", "Bearer"):
        assert secret not in server.stderr
    calls = [record for record in server.records("call") if record["method"] == f"/{RESOLVE}"]
    assert {"OK", "UNAUTHENTICATED"} <= {record["code"] for record in calls}
    assert {record["principal"] for record in calls if record["code"] == "OK"} == {"provisioner"}
    assert {record["role"] for record in calls if record["code"] == "OK"} == {"provisioner"}


def test_a_token_as_json_holds_the_token_and_the_entry_that_lets_it_in(site: Site, serve: Serve) -> None:
    ended = billing_grpc("token", "new", "--name", "controlplane", "--role", "admin", "--json")
    made = json.loads(ended.stdout)
    site.tokens.write_text(made["entry"])
    server = serve(settings=site.settings, listeners=4)

    assert (made["name"], made["role"], made["token_sha256"]) == ("controlplane", "admin", token_digest(made["token"]))
    assert code(server, made["token"]) is grpc.StatusCode.OK
    assert code(server, None) is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_rotate_without_a_gap_and_a_broken_file_changes_nothing(site: Site, serve: Serve) -> None:
    old, entry = site.new_token("controlplane", "admin")
    new, other = site.new_token("controlplane", "admin")
    digest = other.partition('token_sha256 = ["')[2].partition('"')[0]
    both = entry.replace('"]', f'", "{digest}"]')
    site.tokens.write_text(entry)
    server = serve(settings=site.settings, listeners=4)
    assert (code(server, old), code(server, new)) == (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)

    site.tokens.write_text(both)
    assert (code(server, old), code(server, new)) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    site.tokens.write_text("[[principal")
    server.process.send_signal(signal.SIGHUP)
    server.logged("tokens file is broken")
    assert (code(server, old), code(server, new)) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    site.tokens.write_text(other)
    assert (code(server, old), code(server, new)) == (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK)
    assert old not in server.stderr
    assert new not in server.stderr


def test_the_files_are_looked_at_again_on_a_hangup(site: Site, serve: Serve) -> None:
    site.tokens.write_text(site.new_token("controlplane", "admin")[1])
    server = serve(settings=site.settings, listeners=4)
    server.process.send_signal(signal.SIGHUP)

    server.logged("tokens file read")
    server.logged("TLS files read")
    assert code(server, None) is grpc.StatusCode.UNAUTHENTICATED


def test_the_change_log_knows_the_principal_of_the_token(site: Site, serve: Serve, database_url: str) -> None:
    workspace = add_workspace(database_url)
    token, entry = site.new_token("controlplane", "admin")
    site.tokens.write_text(entry)
    server = serve(settings=site.settings, listeners=4)
    with grpc.insecure_channel(server.addresses[0]) as channel:
        stub = service_grpc.BillingModeServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"), ("x-request-id", "e2e-7"))
        request = service_pb.SetWorkspaceBillingModeRequest(
            workspace_id=workspace, mode="BILLING_MODE_BYOK", reason="e2e"
        )
        stub.SetWorkspaceBillingMode(request, timeout=PATIENCE, metadata=metadata)
        listing = service_pb.ListBillingModeChangesRequest(workspace_id=workspace)
        (change,) = stub.ListBillingModeChanges(listing, timeout=PATIENCE, metadata=metadata).changes

    assert (change.principal, change.reason, change.request_id) == ("controlplane", "e2e", "e2e-7")
    call = until(lambda: [each for each in server.records("call") if each["method"] == f"/{SET}"])[0]
    assert (call["principal"], call["role"], call["request_id"]) == ("controlplane", "admin", "e2e-7")


def test_files_that_are_wrong_at_the_start_are_all_named_and_nothing_is_served(site: Site) -> None:
    site.tokens.write_text('[[principal]]\nname = "a"\nrole = "king"\n')
    site.key.write_bytes(site.servers.issue(dns=("localhost",)).key)

    ended = billing_grpc("serve", settings=site.settings)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "BILLING_GRPC_TOKENS_FILE: " in ended.stderr
    assert "BILLING_GRPC_TLS_" in ended.stderr
    assert "BEGIN" not in ended.stderr


def test_a_new_token_is_shown_and_the_lines_for_the_file_hold_its_digest_alone(site: Site) -> None:
    token, entry = site.new_token("controlplane", "admin")

    (principal,) = tomllib.loads(entry)["principal"]
    digest = hashlib.sha256(token.encode()).hexdigest()
    assert principal == {"name": "controlplane", "role": "admin", "token_sha256": [digest]}
    assert token not in entry
    assert len(token) > 40
    assert site.new_token("controlplane", "admin")[0] != token


NO_NAMES: Final = ("a b", 'x"]', 'x"\ncertificate_dns = ["evil"] #', "a\n", "", "x" * 65, "local")


@pytest.mark.parametrize(("name", "role"), [*((name, "admin") for name in NO_NAMES), ("a", "king")])
def test_a_token_for_a_name_or_role_that_cannot_be_is_refused(name: str, role: str) -> None:
    ended = billing_grpc("token", "new", "--name", name, "--role", role)

    assert (ended.returncode, ended.stdout) == (2, "")
