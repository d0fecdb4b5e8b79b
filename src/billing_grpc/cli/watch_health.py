"""`billing-grpc watch-health`: show whether a server serves, and each change of that."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_grpc.cli import exit_codes, json_output, output
from billing_grpc.cli.options import Call, Connection, Text
from billing_grpc.cli.session import check_files, client_tls
from billing_grpc.client.channel import Dialer
from billing_grpc.errors import BillingError
from billing_grpc.wire.metadata import AUTHORIZATION

_SERVING: Final = "SERVING"
_UNREACHABLE: Final = "UNREACHABLE"
_UNKNOWN: Final = "UNKNOWN"
"""The status of an answer that is not a known one."""

_TIMEOUT: Final = 5.0
_PAUSE: Final = 1.0
"""Seconds until an unreachable server is tried again."""

_REFUSALS: Final = {
    grpc.StatusCode.NOT_FOUND: "the server has no service of this name",
    grpc.StatusCode.UNIMPLEMENTED: "the server offers no health checks, or has reached its limit of watches; try --once",
}
_EPILOG: Final = """\b
Examples:
  billing-grpc watch-health
  until billing-grpc watch-health --once molecule.billing.v1.BillingModeService; do sleep 1; done"""


@click.command("watch-health", cls=Call, epilog=_EPILOG)
@click.argument("service", required=False, default="", type=Text())
@click.option("--once", is_flag=True, help="Ask once; exit with 3 unless the status is SERVING.")
@output.json_option
@click.pass_obj
def watch_health(connection: Connection, *, service: str, once: bool, as_json: bool) -> int:
    """Say whether a server serves, and when that changes.

    SERVICE is a full name; without it, the whole server is asked about. Each line: when, and SERVING, NOT_SERVING,
    SERVICE_UNKNOWN or UNREACHABLE. Watch until Ctrl-C, even while the server is unreachable.
    """
    check_files(connection)
    try:
        dialer = Dialer(connection.target, token=connection.token_file, tls=client_tls(connection))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    watch = _Watch(dialer, service, as_json=as_json)
    with asyncio.Runner() as runner:
        try:
            if not once:
                runner.run(watch.until_interrupted())
            return runner.run(watch.once(connection.timeout or _TIMEOUT))
        finally:
            runner.run(dialer.close())


class _Watch:
    """The last known status of one service of one server."""

    def __init__(self, dialer: Dialer, service: str, *, as_json: bool) -> None:
        self._dialer = dialer
        self._request = health_pb2.HealthCheckRequest(service=service)
        self._as_json = as_json
        self._shown = ""

    async def once(self, seconds: float) -> int:
        """Show the status, and return the exit code."""
        try:
            answer = await self._stub().Check(self._request, timeout=seconds, metadata=self._metadata())
        except (grpc.aio.AioRpcError, BillingError) as error:
            self._raise_if_refused(error)
            self._show(_UNREACHABLE)
            exit_codes.flush()
            raise exit_codes.Failed(_why(error), exit_codes.UNAVAILABLE) from error
        status = _status(answer)
        self._show(status)
        return exit_codes.OK if status == _SERVING else exit_codes.UNAVAILABLE

    async def until_interrupted(self) -> None:
        """Show the status each time that it changes."""
        failures = 0
        while True:
            try:
                async for answer in self._stub().Watch(self._request, metadata=self._metadata()):
                    failures = 0
                    self._show(_status(answer))
            except (grpc.aio.AioRpcError, BillingError) as error:
                self._raise_if_refused(error)
            # A server may also end an old connection; only one that does not answer again at once is unreachable.
            failures += 1
            if failures > 1:
                self._show(_UNREACHABLE)
                await asyncio.sleep(_PAUSE)

    def _stub(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self._dialer.channel())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        authorization = self._dialer.authorization()
        return () if authorization is None else ((AUTHORIZATION, authorization),)

    def _show(self, status: str) -> None:
        if status == self._shown:
            return
        self._shown = status
        moment = json_output.time(datetime.now(UTC).replace(microsecond=0))
        if self._as_json:
            output.json_line({"time": moment, "service": self._request.service, "status": status})
        else:
            output.row([(moment, 20), (status, 0)], "green" if status == _SERVING else "bold red")
        exit_codes.flush()

    def _raise_if_refused(self, error: grpc.aio.AioRpcError | BillingError) -> None:
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        if code in _REFUSALS:
            raise exit_codes.Failed(f"{code.name}: {_REFUSALS[code]}", exit_codes.REFUSED) from error


def _why(error: grpc.aio.AioRpcError | BillingError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)


def _status(answer: object) -> str:
    # gRPC returns `None` for a message that does not parse, against its type annotation.
    if not isinstance(answer, health_pb2.HealthCheckResponse):
        return _UNKNOWN
    try:
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    except ValueError:
        return _UNKNOWN
