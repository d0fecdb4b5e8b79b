"""A start with `DATABASE_URL`: whatever state that database is in, it is used, never filled, never migrated."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import grpc
import psutil
import psycopg
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from tests.support.commands import SETTINGS, Changes, billing_grpc
from tests.support.polling import PATIENCE, until
from tests.support.servers import Serve, Server, decision
from tests.support.workspaces import add_workspace, as_service

CLOSED: Final = ("platform_managed", "constant_fallback")
UNKNOWN: Final = "5f0e9b0e-0000-4000-8000-000000000000"
OPEN: Final = {"MOLECULE_LLM_BILLING_MODE": "byok"}
TABLES: Final = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
LONGER_THAN_THE_DEFAULT: Final = 1.5
"""Seconds; the default of the storage timeout is one."""


def count(database_url: str, query: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def metrics(server: Server) -> list[str]:
    """What its metrics port exposes; the port is the one it listens on besides that of the calls."""
    listening = [each.laddr.port for each in psutil.Process(server.pid).net_connections() if each.status == "LISTEN"]
    (port,) = set(listening) - {server.port}
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()


def reflects(server: Server) -> bool:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=30)
        with suppress(grpc.RpcError):
            list(call)
        code = call.code()
    assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}
    return bool(code == grpc.StatusCode.OK)


def test_a_configured_database_is_used_as_it_is(serve: Serve, database_url: str, directory: Path) -> None:
    data = directory / "data"
    server = serve(settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_DATA_DIR": data})
    server.logged("database ready")
    assert psutil.Process(server.pid).children(recursive=True) == []
    assert not data.exists()
    assert server.stdout == f"listening on {server.address}\n"
    assert count(database_url, "SELECT count(*) FROM workspaces") == 0
    workspace = add_workspace(database_url, "byok")
    assert decision(server.resolve(workspace)) == ("byok", "workspace_override")


def test_the_server_starts_before_its_database_and_before_the_migrations(
    serve: Serve, empty_database_url: str, directory: Path
) -> None:
    sockets = directory / "sockets"
    late = make_conninfo(empty_database_url, host=str(sockets))
    server = serve(settings={"DATABASE_URL": late, **OPEN})
    warning = server.logged("database not ready", level="warning")
    assert warning["reason"] == "DATABASE_UNREACHABLE"
    down = server.resolve(UNKNOWN)
    assert (decision(down), down.error.reason) == (CLOSED, "DATABASE_UNREACHABLE")

    sockets.symlink_to(str(conninfo_to_dict(empty_database_url)["host"]))  # the database comes up
    unmigrated = until(lambda: [each for each in [server.resolve(UNKNOWN)] if each.error.reason == "SCHEMA_NOT_READY"])
    assert decision(unmigrated[0]) == CLOSED
    assert count(empty_database_url, TABLES) == 0

    assert billing_grpc("migrate", "up", settings={"DATABASE_URL": late}).returncode == 0
    workspace = add_workspace(empty_database_url, "disabled")
    assert decision(server.resolve(workspace)) == ("disabled", "workspace_override")
    assert decision(server.resolve(UNKNOWN)) == ("byok", "org_default")


def test_a_database_without_the_migration_is_said_at_the_start_and_left_alone(
    serve: Serve, empty_database_url: str
) -> None:
    server = serve(settings={"DATABASE_URL": empty_database_url})
    warning = server.logged("database not ready", level="warning")
    assert warning["reason"] == "SCHEMA_NOT_READY"
    assert "billing-grpc migrate up" in warning["remedy"]
    server.stop()
    assert count(empty_database_url, TABLES) == 0


def test_metrics_count_decisions_blocked_writes_and_degraded_answers(serve: Serve, empty_database_url: str) -> None:
    settings = {"DATABASE_URL": empty_database_url, "BILLING_GRPC_METRICS_LISTEN": "127.0.0.1:0", **OPEN}
    server = serve(settings=settings)
    server.resolve()
    server.resolve(UNKNOWN)
    for keys in (["OPENAI_API_KEY", "HARMLESS"], ["MOLECULE_LLM_TOKEN"]):
        server.stub.ValidateSecretWrite(
            service_pb.ValidateSecretWriteRequest(workspace_id=UNKNOWN, secret_keys=keys), timeout=30
        )
    exposed = metrics(server)
    for line in (
        'billing_grpc_resolutions_total{mode="byok",source="org_default"} 1.0',
        'billing_grpc_resolutions_total{mode="platform_managed",source="constant_fallback"} 2.0',
        'billing_grpc_degraded_resolutions_total{reason="SCHEMA_NOT_READY"} 2.0',
        'billing_grpc_blocked_secret_writes_total{verdict="blocked_platform_managed"} 1.0',
        'billing_grpc_blocked_secret_writes_total{verdict="blocked_reserved"} 1.0',
    ):
        assert line in exposed


@pytest.mark.parametrize(("switch", "open_"), [("on", True), ("off", False)], ids=["on", "off"])
def test_reflection_can_be_turned_off(serve: Serve, database_url: str, switch: str, *, open_: bool) -> None:
    server = serve(settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_REFLECTION": switch})
    assert reflects(server) is open_
    assert decision(server.resolve()) == CLOSED


def test_the_flags_alone_configure_a_server(serve: Serve, database_url: str, directory: Path) -> None:
    published = directory / "mode"
    published.write_text("disabled")
    flags = {
        "--local-admin": "on",
        "--database-url": database_url,
        "--listen": f"127.0.0.1:0,unix:{directory / 'socket'}",
        "--metrics-listen": "127.0.0.1:0",
        "--molecule-llm-billing-mode-file": str(published),
        "--storage-timeout": "30",
        "--extra-blocked-keys": "new_vendor_key",
        "--reflection": "off",
        "--log-level": "debug",
        "--log-format": "json",
    }
    nothing: Changes = dict.fromkeys(SETTINGS)
    server = serve(*(f"{flag}={value}" for flag, value in flags.items()), settings=nothing, listeners=2)
    assert server.addresses[1] == f"unix:{directory / 'socket'}"
    assert decision(server.resolve()) == ("disabled", "org_default")
    assert metrics(server)
    assert not reflects(server)
    request = service_pb.PlanProvisionEnvRequest(workspace_id=add_workspace(database_url, "platform_managed"))
    assert "NEW_VENDOR_KEY" in server.stub.PlanProvisionEnv(request, timeout=30).strip_keys

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor() as threads:
        holder.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        answer = threads.submit(server.resolve, request.workspace_id)
        time.sleep(LONGER_THAN_THE_DEFAULT)
        holder.rollback()
        assert decision(answer.result()) == ("platform_managed", "workspace_override")


def test_a_flag_wins_over_its_setting(serve: Serve, database_url: str) -> None:
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "BILLING_GRPC_STORAGE_TIMEOUT": "never", **OPEN}
    flags = [f"--database-url={database_url}", "--storage-timeout=5", "--molecule-llm-billing-mode=disabled"]
    server = serve(*flags, settings=settings)
    server.logged("database ready")
    assert decision(server.resolve()) == ("disabled", "org_default")


def test_a_stop_lets_running_calls_finish(serve: Serve, database_url: str) -> None:
    workspace = add_workspace(database_url, "byok")
    server = serve(settings={"DATABASE_URL": as_service(database_url), "BILLING_GRPC_STORAGE_TIMEOUT": "30"})
    server.logged("database ready")
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor() as threads:
        holder.execute("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")
        answer = threads.submit(server.resolve, workspace)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: count(database_url, waiting))
        server.process.terminate()
        server.logged("stopping")
        assert not answer.done()
        holder.rollback()
        assert decision(answer.result()) == ("byok", "workspace_override")
    assert server.process.wait(PATIENCE) == 0
