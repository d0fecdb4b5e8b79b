"""What a call leaves in memory: nothing of ours that only the garbage collector could free.

Such objects pile up between two collections, and each collection stops all calls. A call that fails is not tested: gRPC
itself keeps the error that ends it, and with the error all that the call used.
"""

import gc
from collections import Counter
from typing import Any, Final

import grpc
import psycopg

from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.storage.postgres import PostgresRepository
from billing_grpc.testing import running_server

WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
CALLS: Final = 20
OURS: Final = ("billing_grpc.", "psycopg")
OF_A_CALL: Final = ("_ServicerContext", "RPCState")
"""What gRPC holds for a call, with the call's connection and messages."""

REQUESTS: Final[dict[str, Any]] = {
    "ResolveBillingMode": service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE),
    "BatchResolveBillingModes": service_pb.BatchResolveBillingModesRequest(workspace_ids=[WORKSPACE]),
    "GetWorkspaceBillingMode": service_pb.GetWorkspaceBillingModeRequest(workspace_id=WORKSPACE),
    "SetWorkspaceBillingMode": service_pb.SetWorkspaceBillingModeRequest(
        workspace_id=WORKSPACE, mode=pb.BILLING_MODE_BYOK
    ),
    "ValidateSecretWrite": service_pb.ValidateSecretWriteRequest(workspace_id=WORKSPACE, secret_keys=["OTHER"]),
    "PlanProvisionEnv": service_pb.PlanProvisionEnvRequest(workspace_id=WORKSPACE),
    "ListBillingModeChanges": service_pb.ListBillingModeChangesRequest(workspace_id=WORKSPACE),
    "ListWorkspaceBillingModes": service_pb.ListWorkspaceBillingModesRequest(),
    "SummarizeBillingModes": service_pb.SummarizeBillingModesRequest(),
}


async def test_a_call_leaves_nothing_to_the_garbage_collector(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO workspaces (id, llm_billing_mode) VALUES (%s, 'byok')", [WORKSPACE])
    left: dict[str, list[str]] = {}
    async with (
        PostgresRepository.opened(database_url) as repository,
        running_server(repository) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub: Any = service_grpc.BillingModeServiceStub(channel)
        for method, request in REQUESTS.items():
            left[method] = await _garbage(getattr(stub, method), request)
        with psycopg.connect(database_url) as connection:
            connection.execute("ALTER TABLE workspaces RENAME TO elsewhere")
        left["a decision that is degraded"] = await _garbage(stub.ResolveBillingMode, REQUESTS["ResolveBillingMode"])
    assert not any(left.values()), left


async def _garbage(rpc: Any, request: Any) -> list[str]:
    """What each call leaves."""
    await rpc(request, timeout=10)  # makes what is made once
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(CALLS):
            await rpc(request, timeout=10)
        gc.collect()
        found = Counter(_kind(each) for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return [kind for kind, number in found.items() if number >= CALLS and (kind.startswith(OURS) or kind in OF_A_CALL)]


def _kind(found: object) -> str:
    """The name of an object's type with its module; of a function, its own."""
    named: Any = found if callable(found) and hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}".removeprefix("grpc._cython.cygrpc.")
