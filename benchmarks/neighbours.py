"""Callers beside those that are measured, until SIGTERM: python -m benchmarks.neighbours HOST:PORT TOKEN bad|good.

Of the bad ones some cancel what they have just asked, some open calls and send nothing, some send bytes that are no message,
some send more than the service takes. The good ones ask for as many decisions. Prints `begun`, and at the end how often each
happened, by the status of the call, as JSON.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc

from benchmarks.workspaces import workspace
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb

_RESOLVE: Final = "/molecule.billing.v1.BillingModeService/ResolveBillingMode"
_GOOD: Final = service_pb.ResolveBillingModeRequest(workspace_id=workspace(0).id).SerializeToString()
_MALFORMED: Final = b"\xff" * 40
_OVERSIZED: Final = b"\x0a" * (5 << 20)
_DAWDLES: Final = 0.5
# Calls a second.
_BAD: Final = {"cancelled": 100, "late": 50, "malformed": 100, "oversized": 5}
_AS_MANY_GOOD: Final = {"good": sum(_BAD.values())}

Call = Callable[[], Awaitable[Any]]


def _kinds(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> dict[str, Call]:
    unary: Any = channel.unary_unary(_RESOLVE)
    stream: Any = channel.stream_unary(_RESOLVE)

    async def cancelled() -> None:
        call = unary(_GOOD, metadata=metadata, timeout=5)
        await asyncio.sleep(0)
        call.cancel()
        await call

    async def late() -> None:
        async def nothing() -> AsyncIterator[bytes]:
            await asyncio.sleep(10 * _DAWDLES)
            yield _GOOD

        await stream(nothing(), metadata=metadata, timeout=_DAWDLES)

    return {
        "good": lambda: unary(_GOOD, metadata=metadata, timeout=5),
        "cancelled": cancelled,
        "late": late,
        "malformed": lambda: unary(_MALFORMED, metadata=metadata, timeout=5),
        "oversized": lambda: unary(_OVERSIZED, metadata=metadata, timeout=5),
    }


async def _call(kind: str, call: Call, counted: Counter[str]) -> None:
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        counted[f"{kind}: {error.code().name}"] += 1
    except asyncio.CancelledError:
        counted[f"{kind}: CANCELLED"] += 1
    else:
        counted[f"{kind}: OK"] += 1


async def _go_on(kind: str, call: Call, rate: float, counted: Counter[str]) -> None:
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_call(kind, call, counted))
            await asyncio.sleep(1 / rate)


async def main(address: str, token: str, manners: str) -> None:
    """Call until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    counted: Counter[str] = Counter()
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        await channel.channel_ready()
        kinds, rates = _kinds(channel, metadata), _AS_MANY_GOOD if manners == "good" else _BAD
        running = [asyncio.create_task(_go_on(kind, kinds[kind], rate, counted)) for kind, rate in rates.items()]
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        await ended.wait()
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    sys.stdout.write(json.dumps(dict(sorted(counted.items()))))


if __name__ == "__main__":
    os.nice(10)  # the generator beside it must not wait for this process
    asyncio.run(main(*sys.argv[1:]))
