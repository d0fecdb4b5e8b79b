"""Measure what a call costs with and without traces. Print ratios of one interleaved run; a collector takes the traces."""

import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import grpc

from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.addresses import TcpAddress
from billing_grpc.secret_keys import KeyList
from billing_grpc.server.listener import AccessPolicy, RpcServer
from billing_grpc.server.servicer import BillingModeService
from billing_grpc.server.telemetry import logs
from billing_grpc.server.telemetry.metrics import Metrics
from billing_grpc.server.telemetry.observed_repository import ObservedRepository
from billing_grpc.server.telemetry.spans import Tracing
from billing_grpc.server.telemetry.trace_export import exporting
from billing_grpc.testing import InMemoryRepository

ROUNDS: Final = 20
CALLS: Final = 200
WORKSPACE: Final = "7f1fc6a0-0000-4000-8000-000000000001"
REQUEST: Final = service_pb.ResolveBillingModeRequest(workspace_id=WORKSPACE)
UNSAMPLED: Final = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),)

Once = Callable[[], Awaitable[Any]]


class Taking(BaseHTTPRequestHandler):
    """A collector that discards the spans it receives."""

    def do_POST(self) -> None:
        """Read the request and answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@asynccontextmanager
async def stub(tracing: Tracing | None) -> AsyncIterator[Any]:
    """Open a client of a server with these traces, over a repository in memory, where the cost of traces shows most."""
    metrics = Metrics()
    repository = ObservedRepository(InMemoryRepository({WORKSPACE: "byok"}), metrics, tracing)
    servicer = BillingModeService(repository, lambda: None, KeyList(), 1.0, metrics)
    server = RpcServer(servicer, access_policy=AccessPolicy(local_admin=True), metrics=metrics, tracing=tracing)
    (address,) = await server.start([TcpAddress("127.0.0.1", 0)])
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            yield service_grpc.BillingModeServiceStub(channel)
    finally:
        await server.stop(1.0)


async def measure(endpoint: str) -> dict[str, float]:
    """Return the median of the rounds' medians, in seconds, by the variant's name."""
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(exporting(endpoint, 1.0, "0", Metrics()))
        off = await stack.enter_async_context(stub(None))
        on = await stack.enter_async_context(stub(tracing))
        variants: dict[str, Once] = {
            "traces off": lambda: off.ResolveBillingMode(REQUEST, timeout=5),
            "traces on, the caller's is not recorded": lambda: on.ResolveBillingMode(
                REQUEST, timeout=5, metadata=UNSAMPLED
            ),
            "traces on, every call recorded and sent": lambda: on.ResolveBillingMode(REQUEST, timeout=5),
        }
        medians: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, once in variants.items():
                times = []
                for _ in range(CALLS):
                    started = time.perf_counter()
                    await once()
                    times.append(time.perf_counter() - started)
                medians[name].append(statistics.median(times))
        return {name: statistics.median(found) for name, found in medians.items()}


def main() -> None:
    """Start a collector, measure, and print the table."""
    logs.configure("json", "ERROR")
    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as collector:
        serving = threading.Thread(target=collector.serve_forever, daemon=True)
        serving.start()
        results = asyncio.run(measure(f"http://127.0.0.1:{collector.server_port}/v1/traces"))
        collector.shutdown()
    base = next(iter(results.values()))
    print(f"median of {ROUNDS} x {CALLS} sequential calls, client and server in one process\n\n   ratio   median  ")
    for name, seconds in results.items():
        print(f"{seconds / base:8.2f} {seconds * 1000:6.3f} ms  {name}")


if __name__ == "__main__":
    main()
