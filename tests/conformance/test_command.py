"""`billing-grpc conformance-server`: says where it listens, stops when told, and never leaves the machine."""

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.conformance.cases import METADATA_KEY
from tests.support.commands import COMMAND, billing_grpc, environment
from tests.support.polling import PATIENCE

WORKSPACE = "7f1fc6a0-0000-4000-8000-00000000000a"


@contextmanager
def started(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of the command and the address that it says it listens on."""
    process = subprocess.Popen(
        [*COMMAND, "conformance-server", *flags], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on ")
        yield process, line.removeprefix("listening on ").strip()
    finally:
        process.kill()
        process.communicate()


def ask(address: str, case: str) -> pb.BillingModeResolution:
    with grpc.insecure_channel(address) as channel:
        request = service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE)
        stub = service_grpc.BillingModeServiceStub(channel)
        metadata = ((METADATA_KEY, case),)
        return stub.ResolveBillingMode(request, timeout=PATIENCE, metadata=metadata).resolution


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_listens_answers_by_case_and_stops_when_told(number: signal.Signals) -> None:
    with started() as (process, address):
        assert address.startswith("127.0.0.1:")
        assert ask(address, "resolution/set-byok-org-default-unset").resolved_mode == pb.BILLING_MODE_BYOK
        assert ask(address, "closed/resolve-mode-99").resolved_mode == 99
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0


def test_it_listens_on_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"unix:{Path(folder) / 's'}"
        with started("--listen", path) as (process, address):
            assert address == path
            assert ask(address, "resolution/set-disabled-org-default-byok").resolved_mode == pb.BILLING_MODE_DISABLED
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0", "tls://127.0.0.1:0", "here"]
)
def test_it_refuses_every_address_that_others_could_reach(address: str) -> None:
    ended = billing_grpc("conformance-server", "--listen", address)

    assert ended.returncode == 2
    assert "--listen" in ended.stderr
    assert ended.stdout == ""


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = billing_grpc("conformance-server", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")

    assert ended.returncode == 1
    assert "cannot listen on" in ended.stderr


def test_its_help_says_what_it_is_for() -> None:
    assert "For tests of clients" in billing_grpc("conformance-server", "--help").stdout
