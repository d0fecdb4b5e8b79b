"""A gRPC server that ends by itself takes its process along: one that lives on without listeners looks healthy."""

import sys
from typing import Final

import pytest

from tests.support.polling import PATIENCE
from tests.support.servers import serving

# The real thing needs a gRPC with the bug; what the process sees of it is the server's end, with or without an error.
ENDS: Final = """
import asyncio
from billing_grpc.cli.main import main
from billing_grpc.server.listener import RpcServer

ended = RpcServer.ended

async def ended_by_itself(self):
    asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(self._server.stop(0)))
    await ended(self)
    ERROR

RpcServer.ended = ended_by_itself
main()
"""
HOW: Final = {"null": "pass", '"UnicodeDecodeError"': 'b"a-token\\xff".decode()'}


@pytest.mark.parametrize(("error", "statement"), HOW.items(), ids=["quietly", "with an error"])
def test_the_process_ends_with_its_server_and_says_why(error: str, statement: str, database_url: str) -> None:
    with serving((sys.executable, "-c", ENDS.replace("ERROR", statement))) as serve:
        server = serve(settings={"DATABASE_URL": database_url})

        assert server.process.wait(PATIENCE) == 1
        assert (
            "billing-grpc: the gRPC server ended by itself: nothing listens any more; start it again" in server.stderr
        )
        (record,) = [line for line in server.stderr.splitlines() if '"the gRPC server ended by itself"' in line]
        assert '"level":"error"' in record
        assert f'"error":{error}' in record
        for held in ("a-token", "Traceback"):
            assert held not in server.stderr
