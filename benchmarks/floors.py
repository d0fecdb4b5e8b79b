"""What no server of this stack can undercut: the query alone, and protobuf alone."""

import statistics
import time
from collections.abc import Callable
from typing import Final

import psycopg
import uvloop

from benchmarks import processes, workspaces
from benchmarks.samples import SERVICE
from benchmarks.stage import Stage
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb

_BARE_QUERY: Final = "SELECT llm_billing_mode FROM workspaces WHERE id = %s"
_BARE_QUERIES: Final = 500
_REPEATED: Final = 100


def bare_query_ms(stage: Stage) -> float:
    """Return the median in milliseconds of the query alone: psycopg on uvloop, on the core where servers run."""

    async def ask() -> list[float]:
        times = []
        async with await psycopg.AsyncConnection.connect(stage.url, autocommit=True) as connection:
            for each in workspaces.asked(workspaces.COUNT)[:_BARE_QUERIES]:
                began = time.perf_counter()
                row = await (await connection.execute(_BARE_QUERY, [each.id])).fetchone()
                times.append(time.perf_counter() - began)
                if row != (each.override,):
                    stage.problems.append(f"the bare query answered {row} for {each}")
        return times

    with processes.on_cores(processes.SERVER_CORES):
        times: list[float] = uvloop.run(ask())
        return round(statistics.median(times) * 1e3, 3)


def protobuf(stage: Stage) -> dict[str, int]:
    """Return the workspaces a second of protobuf alone, for the answer to a batch: its bytes, and its objects too."""
    (request, *_) = workspaces.batch_requests()
    answered: list[bytes] = []

    def keep(body: bytes, _: object) -> bool:
        answered.append(body)
        return True

    (connection,) = stage.grpc(stage.servers[SERVICE], "BatchResolveBillingModes", keep, 1)
    connection.start(request, 0.0)
    connection.flush()
    while not connection.receive():
        pass
    connection.close()
    message = service_pb.BatchResolveBillingModesResponse.FromString(answered[0])
    fields = [{field.name: value for field, value in each.ListFields()} for each in message.resolutions]

    def serialise_and_parse() -> None:
        service_pb.BatchResolveBillingModesResponse.FromString(message.SerializeToString())

    def build_and_serialise() -> None:
        resolutions = [pb.BillingModeResolution(**each) for each in fields]
        service_pb.BatchResolveBillingModesResponse(resolutions=resolutions).SerializeToString()

    return {
        "workspaces_per_s": round(workspaces.BATCH / _median_seconds(serialise_and_parse)),
        "built_per_s": round(workspaces.BATCH / _median_seconds(build_and_serialise)),
    }


def _median_seconds(once: Callable[[], None]) -> float:
    times = []
    for _ in range(_REPEATED):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
