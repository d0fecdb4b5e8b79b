"""The command that starts a conformance server."""

from typing import Final

import click

from billing_grpc.conformance import server
from billing_grpc.stalled_reader import announcing

_STDOUT: Final = 1


@click.command("conformance-server")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Loopback host:port, or unix:/path.")
def conformance_server(listen: str) -> None:
    """For tests of clients: play the conformance vectors.

    The vectors include wrong answers and broken connections. A call names its case in the metadata x-conformance-case. This
    server uses no database, holds no workspaces and makes no real decisions.
    """
    with announcing(_STDOUT) as announce:
        server.run(listen, announce)
