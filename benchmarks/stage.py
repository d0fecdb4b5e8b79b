"""Everything that a measurement needs: the database, the servers side by side, and connections to them."""

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks import processes, workspaces
from benchmarks.connections import Check, Connection, Request
from benchmarks.grpc_connection import GrpcConnection
from benchmarks.http_connection import HttpConnection
from benchmarks.load import Outcome, closed_loop, open_loop
from benchmarks.processes import Server
from benchmarks.samples import EMPTY, EMPTY_UVLOOP, FASTAPI, GO, NAIVE, NAIVE_UVLOOP, SERVICE, Sample
from billing_grpc.server.auth.principals import token_digest
from billing_grpc.storage.embedded import EmbeddedPostgres

METHODS: Final = "/molecule.billing.v1.BillingModeService/"
CONNECTIONS: Final = 4
"""Connections of gRPC clients. Over HTTP/1.1 each call in flight needs one of its own."""
_MOST_IN_FLIGHT: Final = 100
"""On one connection, as the service allows it."""
_HTTP_CONNECTIONS: Final = 64


@dataclass(slots=True)
class Stage:
    """The servers and what they are asked.

    Attributes:
        url: the database, with ten thousand workspaces.
        token: the bearer token that the service knows.
        servers: the peers by name; the service is one of them.
        problems: answers that were wrong, from all runs.
    """

    directory: Path
    url: str
    token: str
    servers: dict[str, Server] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def service(self, name: str, cores: tuple[int, ...] = processes.SERVER_CORES, **settings: str) -> Server:
        """Start a `billing-grpc serve` with tokens, metrics and the access line to a file; settings may be changed."""
        tokens = self.directory / "tokens.toml"
        tokens.write_text(
            f'[[principal]]\nname = "benchmark"\nrole = "admin"\ntoken_sha256 = ["{token_digest(self.token)}"]\n'
        )
        variables = {
            "DATABASE_URL": self.url,
            "MOLECULE_LLM_BILLING_MODE": workspaces.ORG_DEFAULT,
            "BILLING_GRPC_TOKENS_FILE": str(tokens),
            "BILLING_GRPC_LISTEN": "127.0.0.1:0",
            "BILLING_GRPC_METRICS_LISTEN": f"127.0.0.1:{processes.free_port()}",
            "BILLING_GRPC_LOG_FORMAT": "json",
            **settings,
        }
        log = self.directory / f"{name}.log"
        return Server(processes.python("billing_grpc", "serve"), variables, log, cores)

    def peer(self, name: str, command: list[str], cores: tuple[int, ...] = processes.SERVER_CORES) -> Server:
        """Start a server to compare with."""
        variables = {"DATABASE_URL": self.url, "ORG_DEFAULT": workspaces.ORG_DEFAULT, "TOKEN": self.token}
        return Server(command, variables, self.directory / f"{name}.log", cores)

    def new_database(self, name: str) -> str:
        """Create an empty database in the same Postgres; return its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return psycopg.conninfo.make_conninfo(self.url, dbname=name)

    def grpc(self, server: Server, method: str, check: Check, count: int = CONNECTIONS) -> list[Connection]:
        """Return connections for calls of one method."""
        metadata = {"authorization": f"Bearer {self.token}", "user-agent": "benchmark"}
        return [
            GrpcConnection(server.address, METHODS + method, metadata, check, _MOST_IN_FLIGHT) for _ in range(count)
        ]

    def closed(
        self,
        server: Server,
        connections: Sequence[Connection],
        requests: Sequence[Request],
        callers: int,
        seconds: float,
    ) -> Sample:
        """Run a closed loop against a server; return what it measured."""
        return self._run(server, connections, lambda: closed_loop(connections, requests, callers, seconds))

    def open(
        self,
        server: Server,
        connections: Sequence[Connection],
        requests: Sequence[Request],
        rate: float,
        seconds: float,
    ) -> Sample:
        """Run an open loop against a server; return what it measured."""
        return self._run(server, connections, lambda: open_loop(connections, requests, rate, seconds))

    def resolve(self, name: str, *, seconds: float, callers: int = 0, rate: float = 0.0) -> Sample:
        """Ask a peer for random workspaces: so many callers in a closed loop, or at this rate in an open one."""
        server = self.servers[name]
        if name in {FASTAPI, GO}:
            connections: list[Connection] = [
                HttpConnection(server.address, workspaces.is_http_answer) for _ in range(callers or _HTTP_CONNECTIONS)
            ]
            requests = workspaces.http_requests(self.token)
        else:
            empty = name in {EMPTY, EMPTY_UVLOOP}
            check = workspaces.is_empty if empty else workspaces.is_resolved
            connections = self.grpc(server, "ResolveBillingMode", check)
            requests = workspaces.resolve_requests()
        if rate:
            return {"peer": name, "rate": round(rate), **self.open(server, connections, requests, rate, seconds)}
        return {"peer": name, "callers": callers, **self.closed(server, connections, requests, callers, seconds)}

    def _run(self, server: Server, connections: Sequence[Connection], load: Any) -> Sample:
        try:
            before = server.cpu_seconds()
            outcome: Outcome = load()
            used = server.cpu_seconds() - before
        finally:
            for connection in connections:
                connection.close()
        self.problems += outcome.problems
        return {
            "calls_per_s": round(outcome.rate, 1),
            "cpu_us": round(used / len(outcome.latencies) * 1e6, 1),
            "p50_ms": round(outcome.percentile(50) * 1e3, 3),
            "p99_ms": round(outcome.percentile(99) * 1e3, 3),
            "calls": len(outcome.latencies),
            "wrong": len(outcome.problems),
            "generator": round(outcome.generator, 2),
        }


@contextmanager
def opened() -> Iterator[Stage]:
    """Start the database and all servers; stop them when the context ends."""
    directory = Path(tempfile.mkdtemp(prefix="billing-benchmark-"))
    # As root the database runs as another user, which needs access to the folder.
    directory.chmod(0o711)
    try:
        with processes.on_cores(processes.OTHER_CORES), EmbeddedPostgres(directory / "postgres") as postgres:
            workspaces.fill(postgres.url, workspaces.COUNT)
            stage = Stage(directory, postgres.url, secrets.token_urlsafe(32))
            with ExitStack() as stack:
                for name, server in _started(stage):
                    stage.servers[name] = stack.enter_context(server)
                yield stage
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _started(stage: Stage) -> Iterator[tuple[str, Server]]:
    peers = processes.python("benchmarks.peers")
    yield SERVICE, stage.service("service")
    yield EMPTY, stage.peer("empty", [*peers, "empty"])
    yield EMPTY_UVLOOP, stage.peer("empty_uvloop", [*peers, "empty", "uvloop"])
    yield NAIVE, stage.peer("naive", [*peers, "naive"])
    yield NAIVE_UVLOOP, stage.peer("naive_uvloop", [*peers, "naive", "uvloop"])
    yield FASTAPI, stage.peer("fastapi", [*peers, "fastapi", "uvloop"])
    route = processes.go_route(stage.directory)
    if route is not None:
        yield GO, stage.peer("go", route)
    time.sleep(0.5)  # the pools fill up
