"""The commands that ask a running server: one call each, printed for people or as JSON."""

import sys
from collections.abc import Callable
from typing import Final, TypeVar, cast

import click
import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from billing_grpc import service_config
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2_grpc as service_grpc
from billing_grpc.convert import MODE_TO_PROTO
from billing_grpc.model import BillingMode

EXIT_REFUSED: Final = 1
EXIT_UNAVAILABLE: Final = 3
_UNAVAILABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def _is_text(context: click.Context, parameter: click.Parameter, value: str) -> str:
    del context, parameter
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("must be valid UTF-8") from None
    return value


_workspace_argument = click.argument("workspace_id", callback=_is_text)
_reason_option = click.option("--reason", default="", callback=_is_text, help="Why; at most 500 characters.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


@click.command("resolve")
@_workspace_argument
@_json_option
@click.pass_obj
def resolve(address: str, workspace_id: str, as_json: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Say who pays for a workspace, and why. An empty id ("") asks for one that does not exist yet."""
    request = service_pb.ResolveBillingModeRequest(workspace_id=workspace_id)
    answer = _call(
        address, lambda stub: stub.ResolveBillingMode(request, timeout=service_config.timeout("ResolveBillingMode"))
    )
    _show(answer, answer.resolution, as_json=as_json)


@click.command("get")
@_workspace_argument
@_json_option
@click.pass_obj
def get(address: str, workspace_id: str, as_json: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Show an existing workspace's billing mode."""
    request = service_pb.GetWorkspaceBillingModeRequest(workspace_id=workspace_id)
    answer = _call(
        address,
        lambda stub: stub.GetWorkspaceBillingMode(request, timeout=service_config.timeout("GetWorkspaceBillingMode")),
    )
    _show(answer, answer.billing_mode.resolution, as_json=as_json)


@click.command("set")
@_workspace_argument
@click.argument("mode", type=click.Choice([mode.value for mode in BillingMode]))
@_reason_option
@_json_option
@click.pass_obj
def set_mode(address: str, workspace_id: str, mode: str, reason: str, as_json: bool) -> None:  # noqa: FBT001 - by name
    """Give a workspace its own mode. Takes effect when the workspace next starts."""
    request = service_pb.SetWorkspaceBillingModeRequest(
        workspace_id=workspace_id, mode=MODE_TO_PROTO[BillingMode(mode)], reason=reason
    )
    _set(address, request, as_json=as_json)


@click.command("inherit")
@_workspace_argument
@_reason_option
@_json_option
@click.pass_obj
def inherit(address: str, workspace_id: str, reason: str, as_json: bool) -> None:  # noqa: FBT001 - by name
    """Make a workspace inherit the organisation's default. Takes effect when the workspace next starts."""
    request = service_pb.SetWorkspaceBillingModeRequest(workspace_id=workspace_id, inherit=pb.Inherit(), reason=reason)
    _set(address, request, as_json=as_json)


def call_commands() -> list[click.Command]:
    """The commands of this module."""
    return [resolve, get, set_mode, inherit]


def _set(address: str, request: service_pb.SetWorkspaceBillingModeRequest, *, as_json: bool) -> None:
    answer = _call(
        address,
        lambda stub: stub.SetWorkspaceBillingMode(request, timeout=service_config.timeout("SetWorkspaceBillingMode")),
    )
    _show(answer, answer.billing_mode.resolution, as_json=as_json)
    if not as_json:
        before = _text(pb.BillingMode.Name(answer.previous.resolved_mode), "BILLING_MODE_")
        click.echo(f"It was {before}; the change takes effect when the workspace next starts.")


Answer = TypeVar("Answer", bound=Message)


def _call(address: str, ask: Callable[[service_grpc.BillingModeServiceStub], Answer]) -> Answer:
    try:
        with grpc.insecure_channel(address, options=service_config.channel_options()) as channel:
            return ask(service_grpc.BillingModeServiceStub(channel))
    except grpc.RpcError as error:
        # Every error of a call is also the call, which is where its status is.
        code, details = cast("grpc.Call", error).code(), cast("grpc.Call", error).details()
        click.echo(f"billing-grpc: {code.name}: {details or 'no details'}", err=True)
        sys.exit(EXIT_UNAVAILABLE if code in _UNAVAILABLE else EXIT_REFUSED)


def _show(answer: Message, resolution: pb.BillingModeResolution, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_format.MessageToJson(answer))
        return
    mode = _text(pb.BillingMode.Name(resolution.resolved_mode), "BILLING_MODE_")
    source = _text(pb.BillingModeSource.Name(resolution.source), "BILLING_MODE_SOURCE_")
    click.echo(f"{mode}  ({source})\n{resolution.reason}")


def _text(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
