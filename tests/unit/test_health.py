"""What no client can time: a watcher whose status changes while it is written. gRPC's context is made up here."""

from typing import Any

from grpc_health.v1 import health_pb2

from billing_grpc.server.call import RequestContext
from billing_grpc.server.health import HealthServicer


async def test_a_stop_while_a_status_is_written_is_still_said() -> None:
    health = HealthServicer()
    health.set("", serving=True)
    written: list[int] = []

    class Rpc:
        async def write(self, response: Any) -> None:
            written.append(response.status)
            if len(written) == 1:
                health.drain()
                health.end()

    rpc: Any = Rpc()
    await health.Watch(health_pb2.HealthCheckRequest(), RequestContext(rpc, "/grpc.health.v1.Health/Watch"))

    assert written == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
