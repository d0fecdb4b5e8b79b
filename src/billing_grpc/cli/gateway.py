"""`billing-grpc gateway`: offer a server to browsers and curl."""

import os
from typing import Final

import click

from billing_grpc.addresses import parse_tcp
from billing_grpc.cli.options import Call, Connection, Text
from billing_grpc.cli.session import check_files, client_tls
from billing_grpc.client.channel import Dialer
from billing_grpc.client.endpoint import is_local
from billing_grpc.gateway.guard import is_host, is_origin
from billing_grpc.gateway.run import run
from billing_grpc.gateway.upstream import Upstream
from billing_grpc.stalled_reader import announcing

_STDIN: Final = 0
_STDOUT: Final = 1
_MAX_ADDRESS: Final = 1024
"""Bytes of the line that says where the server listens, which arrives at once: it is shorter than a pipe's atomic write."""
_EPILOG: Final = """\b
Examples:
  billing-grpc gateway --address unix:/run/billing/grpc.sock
  billing-grpc gateway --address tls://billing.internal:50051 --ca ca.crt \\
    --listen 0.0.0.0:8080 --host billing.example.com --origin https://console.example.com

Reference: docs/gateway.md."""


@click.command(cls=Call, epilog=_EPILOG)
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, type=Text(), help="Where to listen for HTTP: host:port."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    type=Text(),
    help="A name by which callers reach the gateway, with or without a port; may be repeated. Needed beyond loopback.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    type=Text(),
    help="The origin of a site whose pages may call, as in https://console.example.com; may be repeated.",
)
@click.option(
    "--local-admin",
    is_flag=True,
    help="For a laptop, before a server under local admin: print an address of the page that lets one browser in as admin.",
)
@click.option("--beside", is_flag=True, hidden=True, help="Read the server's address from standard input; end with it.")
@click.pass_obj
def gateway(
    connection: Connection,
    *,
    listen: str,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    local_admin: bool,
    beside: bool,
) -> None:
    """Offer a server to browsers and curl, over HTTP.

    The gateway has no rights of its own: a call needs the Authorization header of its caller. Serve until SIGINT or
    SIGTERM.
    """
    if beside:
        started = os.read(_STDIN, _MAX_ADDRESS)
        if not started:
            return
        connection = Connection(address=started.decode().strip())
    check_files(connection)
    try:
        address = parse_tcp(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--listen'") from error
    hosts = tuple(each.lower() for each in hosts)
    for each in hosts:
        if not is_host(each):
            raise click.BadParameter(f"{each!r} is not a name or name:port", param_hint="'--host'")
    for each in origins:
        if not is_origin(each):
            raise click.BadParameter(f"{each!r} is not scheme://host or scheme://host:port", param_hint="'--origin'")
    if not hosts and not address.is_loopback:
        raise click.UsageError(f"{listen} is not on loopback: give --host, the name by which callers reach the gateway")
    if local_admin and not (address.is_loopback and is_local(connection.target)):
        raise click.UsageError("--local-admin: the gateway and its server must both be on this machine, on loopback")
    with announcing(_STDOUT) as say:
        run(
            _upstream(connection),
            address,
            say,
            hosts=hosts,
            origins=origins,
            local_admin=local_admin,
            until=_end_of_input if beside else None,
        )


def _end_of_input() -> None:
    # Not through Python's stream: a thread that waits while it holds a stream's lock aborts the interpreter at its end.
    while os.read(_STDIN, 1):
        pass  # only the end of the input matters


def _upstream(connection: Connection) -> Upstream:
    if connection.token_file is not None:
        raise click.UsageError("--token-file: the gateway has no token of its own; its callers send theirs")
    if not connection.secure and not is_local(connection.target):
        raise click.UsageError(
            f"{connection.address} is another machine, to which callers' tokens are sent only over TLS: use tls://"
        )
    try:
        return Upstream(Dialer(connection.target, token=None, tls=client_tls(connection)), connection.timeout)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
