"""What clients of the health service see, one that asks and one that watches."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.polling import until
from tests.support.servers import Server

SERVER: Final = ""
SERVICE: Final = "molecule.billing.v1.BillingModeService"
ADMINISTRATION: Final = "molecule.billing.v1.BillingModeService/administration"
LIVENESS: Final = (SERVER, SERVICE)
SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"


class Watcher:
    """What a client that watches a name is told, and when."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.told: list[tuple[str, float]] = []
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for answer in self._call:
                name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                self.told.append((name, time.monotonic()))
        except grpc.RpcError:
            pass  # the server went

    @property
    def last(self) -> str | None:
        return self.told[-1][0] if self.told else None

    @property
    def statuses(self) -> list[str]:
        return [status for status, _ in self.told]

    def when(self, status: str) -> float:
        """The moment at which this became the last word."""
        until(lambda: self.last == status)
        return self.told[-1][1]


def check(server: Server, name: str) -> str:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@contextmanager
def watching() -> Iterator["Watch"]:
    """Makes watchers, each on a connection of its own, that are closed when the context ends."""
    channels = []

    def new(server: Server, name: str) -> Watcher:
        channels.append(grpc.insecure_channel(server.address))
        return Watcher(channels[-1], name)

    try:
        yield new
    finally:
        for channel in channels:
            channel.close()


Watch = Callable[[Server, str], Watcher]
