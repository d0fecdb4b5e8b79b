"""Real gateways in front of real servers, and plain HTTP to them."""

import base64
import http.client
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message
from google.rpc import status_pb2

from billing_grpc.server.auth.principals import token_digest
from tests.support.certificates import Authority
from tests.support.commands import COMMAND, Changes
from tests.support.polling import PATIENCE
from tests.support.servers import Serve, Server
from tests.support.workspaces import as_service

UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
ROLES: Final = ("reader", "provisioner", "admin")
TOKENS: Final = {role: f"bgrpc_made-up-{role}" for role in ROLES}
_TRAILERS: Final = 0x80
GATEWAYS_CERTIFICATE: Final = "spiffe://example/gateway"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return str(self.json.get("reason", ""))


class Gateway:
    """A running gateway."""

    def __init__(self, process: Server, url: str | None = None) -> None:
        self.process = process
        self.url = url or process.address

    @property
    def authority(self) -> str:
        return self.url.removeprefix("http://")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | object | None = None,
        *,
        token: str | None = TOKENS["admin"],
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request on a connection of its own; a body that is not bytes is sent as JSON."""
        sent = {"content-type": "application/json"} if body is not None else {}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.authority, timeout=PATIENCE)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            answer = connection.getresponse()
            given = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, given, answer.read())
        finally:
            connection.close()


def old_route(workspace_id: str) -> str:
    """Return the path of the replaced route for a workspace."""
    return f"/admin/workspaces/{workspace_id}/llm-billing-mode"


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """The enveloped messages of Connect's streams and of gRPC-Web."""
    found = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        found.append((flags, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


def enveloped(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


class GrpcWeb:
    """A call over gRPC-Web, as a browser makes it."""

    def __init__(self, http: Gateway, name: str, request: Message, **more: Any) -> None:
        headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **more.pop("headers", {})}
        body = enveloped(request.SerializeToString())
        self.answer = http.ask("POST", name, body, headers=headers, **more)
        assert self.answer.status == 200
        parts = frames(self.answer.body)
        self.messages = [data for flags, data in parts if not flags & _TRAILERS]
        (trailers,) = [data for flags, data in parts if flags & _TRAILERS]
        self.trailers = {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in trailers.decode().lower().splitlines())
        }

    @property
    def status(self) -> status_pb2.Status:
        raw = [line for line in self.raw_details if line]
        return status_pb2.Status.FromString(base64.b64decode(raw[0] + "===")) if raw else status_pb2.Status()

    @property
    def raw_details(self) -> list[str]:
        (trailers,) = [data for flags, data in frames(self.answer.body) if flags & _TRAILERS]
        pairs = [line.split(":", 1) for line in trailers.decode().splitlines()]
        return [value.strip() for key, value in pairs if key.lower() == "grpc-status-details-bin"]


@dataclass(frozen=True)
class Site:
    """A server with every kind of listener, and what a gateway needs to reach each of them."""

    server: Server
    folder: Path

    @property
    def upstreams(self) -> dict[str, list[str]]:
        """The options of a gateway, for each kind of listener."""
        trust = ["--ca", str(self.folder / "ca.crt"), "--server-name", "billing.internal"]
        own = ["--cert", str(self.folder / "gateway.crt"), "--key", str(self.folder / "gateway.key")]
        plain, tls, mutual, unix = self.server.addresses
        return {
            "plain": ["--address", plain],
            "tls": ["--address", tls, *trust],
            "mtls": ["--address", mutual, *trust, *own],
            "unix": ["--address", unix],
        }


def site(
    serve: Serve,
    database_url: str,
    folder: Path,
    settings: Changes | None = None,
    *,
    dns: str = "billing.internal",
    servers: Authority | None = None,
) -> Site:
    """Start a server that knows a principal of each role; an admin's certificate is the gateway's, to tempt it."""
    servers, clients = servers or Authority.new("servers"), Authority.new("clients")
    certificate, key = servers.issue(dns=(dns,)).write(folder, "server")
    clients.issue(uris=(GATEWAYS_CERTIFICATE,)).write(folder, "gateway")
    (folder / "ca.crt").write_bytes(servers.pem)
    (folder / "clients.crt").write_bytes(clients.pem)
    entries = [
        f'[[principal]]\nname = "the-{role}"\nrole = "{role}"\ntoken_sha256 = ["{token_digest(token)}"]\n'
        for role, token in TOKENS.items()
    ]
    entries.append(f'[[principal]]\nname = "gateway"\nrole = "admin"\ncertificate_uri = ["{GATEWAYS_CERTIFICATE}"]\n')
    (folder / "tokens.toml").write_text("\n".join(entries))
    server = serve(
        settings={
            "DATABASE_URL": as_service(database_url),
            "BILLING_GRPC_LOCAL_ADMIN": None,
            "BILLING_GRPC_LISTEN": f"127.0.0.1:0,tls://127.0.0.1:0,mtls://127.0.0.1:0,unix:{folder / 'socket'}",
            "BILLING_GRPC_TOKENS_FILE": folder / "tokens.toml",
            "BILLING_GRPC_TLS_CERT": certificate,
            "BILLING_GRPC_TLS_KEY": key,
            "BILLING_GRPC_TLS_CLIENT_CA": folder / "clients.crt",
            **(settings or {}),
        },
        listeners=4,
    )
    return Site(server, folder)


@contextmanager
def gateway(folder: Path, *flags: str, command: tuple[str, ...] = COMMAND) -> Iterator[Gateway]:
    """Run a gateway on a free port until the context ends."""
    folder.mkdir()
    process = Server(command, ["gateway", "--listen", "127.0.0.1:0", *flags], {}, folder, None)
    try:
        process.wait_until_listening(1)
        yield Gateway(process)
    finally:
        process.stop()
