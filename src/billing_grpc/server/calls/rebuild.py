"""Wraps a method handler of any of gRPC's four kinds in an asynchronous context."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc

# Quoted, because grpcio's classes take type parameters in the type stubs alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Around: TypeAlias = Callable[["Context"], AbstractAsyncContextManager[None]]
Behaviour: TypeAlias = Callable[..., Any]


def rebuild(handler: "Handler", around: Around) -> "Handler":
    """Return the same method, with every call running inside `around(context)`."""
    behaviour = behaviour_of(handler)
    wrapped = _generating(behaviour, around) if inspect.isasyncgenfunction(behaviour) else _returning(behaviour, around)
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    rebuilt: Handler = make(wrapped, handler.request_deserializer, handler.response_serializer)
    return rebuilt


def behaviour_of(handler: "Handler") -> Behaviour:
    """Return the function that a handler of any kind runs."""
    behaviour: Behaviour = getattr(handler, _kind(handler))
    return behaviour


def _kind(handler: "Handler") -> str:
    return f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"


def _returning(behaviour: Behaviour, around: Around) -> Behaviour:
    async def call(request: Any, context: "Context") -> Any:
        async with around(context):
            return await behaviour(request, context)

    return call


def _generating(behaviour: Behaviour, around: Around) -> Behaviour:
    async def call(request: Any, context: "Context") -> AsyncIterator[Any]:
        async with around(context):
            async for response in behaviour(request, context):
                yield response

    return call
