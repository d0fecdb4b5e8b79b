"""A start without `DATABASE_URL`: the demo workspaces, and the processes of the database that it brings."""

from contextlib import suppress
from pathlib import Path

import psutil

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from tests.support.servers import Server

BYOK, INHERITS, DISABLED, PLATFORM = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(1, 5))


def processes(data: Path) -> list[psutil.Process]:
    """Return the database processes that work on this directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # ended while we looked; a zombie counts as ended
            if any(part.startswith(str(data)) for part in process.cmdline()) and "postgres" in process.name():
                found.append(process)
    return found


def set_mode(server: Server, workspace_id: str, mode: pb.BillingMode) -> None:
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace_id, mode=mode)
    server.stub.SetWorkspaceBillingMode(request, timeout=30)
