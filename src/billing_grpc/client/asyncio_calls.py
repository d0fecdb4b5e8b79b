"""Make a client's calls on an event loop."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from billing_grpc.client import forked
from billing_grpc.client.calls import SLACK, Answer, Calls, CallTerms, Request, Stub, require_message
from billing_grpc.client.channel import Dialer, require_loop
from billing_grpc.client.status_errors import call_error
from billing_grpc.errors import ServerUnreachable


class AsyncioCalls(Calls):
    """The calls of one client on an event loop.

    Args:
        dialer: the connection to the server.
        terms: the deadline and the metadata of each call.
    """

    def __init__(self, dialer: Dialer, terms: CallTerms) -> None:
        self._dialer = dialer
        self.terms = terms
        self._running: set[grpc.aio.Call] = set()

    async def call(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        name: str,
        request: Request,
        timeout: float | None = None,
        *,
        since: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        seconds = self.terms.seconds(name, timeout, since)
        request_id = uuid.uuid4().hex
        invoke = method(Stub(self._dialer.channel()))
        sent = self.terms.metadata(request_id, self._dialer.authorization(), metadata)
        running = invoke(request, timeout=seconds, metadata=sent)
        self._running.add(running)
        # Not awaited: gRPC drops the message of a cancellation, by which anyio knows its own.
        answering = asyncio.ensure_future(running)
        answering.add_done_callback(_retrieve_error)
        try:
            async with asyncio.timeout(seconds + SLACK):
                await asyncio.wait({answering})
            answer = answering.result()
        except grpc.aio.AioRpcError as error:
            forked.note_end_of_call()
            failure = call_error(error, name)
            failure.add_note(f"request id {request_id}")
            raise failure from error
        except TimeoutError:
            raise forked.deadline_missed() from None
        except asyncio.CancelledError:
            # gRPC raises this too if the channel is closed during the call; only a cancelled task may let it pass.
            if is_cancelled():
                raise
            raise ServerUnreachable("this client was closed during the call") from None
        finally:
            running.cancel()
            self._running.discard(running)
        forked.note_end_of_call()
        return require_message(answer)

    async def pause(self, seconds: float) -> None:
        require_loop()
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        if self._dialer.is_usable_here():
            for each in list(self._running):
                each.cancel()
        await self._dialer.close()


def _retrieve_error(answering: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging the error of a call that was given up in the moment in which it ended."""
    if not answering.cancelled():
        answering.exception()


def is_cancelled() -> bool:
    """Return whether the current task is being cancelled, or there is none."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
